"""Hooks: the times that must fit, and the program that runs them in the flow's interpreter."""

import errno
import importlib.util
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import workers
from flowfleet.api import traits
from flowfleet.api.client import StateType
from flowfleet.errors import SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import CancelHow, State
from flowfleet.settings.classes import WorkerSettings
from tests.unit.memory_ledger import a_claim
from tests.unit.test_prefect3_engine import PREFECT, Paper
from tests.waiting import until
from workers.deployment import Exit, StopReason
from workers.interpreter import STARTERS
from workers.runs.adoption import Adoption
from workers.runs.hooks import Hooks, check_times
from workers.shim import atomic_files
from workers.state.attempts import Attempts, held_to_intent
from workers.state.run_folders import RunFolders
from workers.stop import Stop

FILE = Path(workers.__file__).parent / "shim" / "prefect3_hooks.py"
RUN = SimpleNamespace(state=SimpleNamespace(name="Cancelling"))
LOGGER = logging.getLogger("hooks")
#: what the program finds in a prefect of paper, beside the engine
PAPER = {
    "__init__.py": "flow = True",
    "logging/loggers.py": """
import logging
def flow_run_logger(run, flow=None):
    return logging.getLogger("hooks")
""",
    "client/__init__.py": "",
    "client/orchestration.py": """
from contextlib import contextmanager
from types import SimpleNamespace
@contextmanager
def get_client(sync_client):
    run = SimpleNamespace(deployment_id=1, state=SimpleNamespace(name="Crashed"))
    yield SimpleNamespace(read_flow_run=lambda _: run, read_deployment=lambda _: SimpleNamespace())
""",
    "flows.py": PREFECT["flows.py"]
    + """
async def load_flow_from_flow_run(flow_run, ignore_storage, use_placeholder_flow):
    from prefect.deployments.steps.core import run_steps
    await run_steps(os.environ["STEPS"], deployment=SimpleNamespace(entrypoint="code/flow.py:go", path=None))
    return SimpleNamespace(on_crashed_hooks=[lambda flow, flow_run, state: print(json.dumps(f"hook in {state.name}"))])
""",
}


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("prefect3_hooks", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_grace_that_leaves_hooks_no_time_is_refused_where_there_are_hooks():
    settings = WorkerSettings(redis="redis://h", fleet="f", host="h")
    check_times(settings, traits.of("prefect3"))
    long = replace(settings, stop_grace=240.0)
    check_times(long, traits.of("prefect1"))
    with pytest.raises(SettingsError, match=r"--stop-grace 240 is too long: .* give less than 240"):
        check_times(long, traits.of("prefect3"))


def test_hooks_of_both_kinds_are_called_by_name_and_one_that_fails_is_told(program, caplog):
    called = []

    def plain(flow, flow_run, state):
        called.append(("plain", flow, flow_run, state.name))

    async def waits(*, state, flow_run, flow):
        called.append(("waits", flow, flow_run, state.name))

    class Fails:
        def __call__(self, flow, flow_run, state):
            raise KeyError(state.name)

    caplog.set_level(logging.INFO)
    assert [program.call(hook, "flow", RUN, LOGGER) for hook in (plain, waits, Fails())] == [True, True, False]
    assert called == [(name, "flow", RUN, "Cancelling") for name in ("plain", "waits")]
    assert "An error was encountered while running hook 'Fails'" in caplog.messages


def test_steps_that_install_packages_again_for_the_hooks_run_no_engine_again(tmp_path):
    paper = Paper(tmp_path, sys.executable)
    for name, text in PAPER.items():
        (paper.given / "prefect" / name).parent.mkdir(exist_ok=True)
        (paper.given / "prefect" / name).write_text(text)
    install = "import os, site; os.makedirs(os.path.join(site.getusersitepackages(), 'a-1.0.dist-info'))"
    run_id = "00000000-0000-4000-8000-000000000001"
    said = paper.run(str(STARTERS / "prefect3_hooks.py"), "crashed", STEPS=install, PREFECT__FLOW_RUN_ID=run_id)
    assert said == ["hook in Crashed"]
    assert list(tmp_path.rglob("a-1.0.dist-info"))


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, True),
        ({"begun": False}, False),
        ({"engine": False}, False),
        ({"kind": "zeppelin"}, False),
        ({"stopped": CancelHow.ASKED}, True),
        ({"stopped": CancelHow.OVER}, False),
        ({"backend": "prefect1"}, False),
    ],
    ids=str,
)
def test_hooks_are_run_only_where_the_engine_had_begun_in_a_process_of_ours_and_nobody_is_in_a_hurry(
    tmp_path, changed, wanted
):
    folder = RunFolders(tmp_path).create("run", "claim", {})
    os.close(atomic_files.create_once(folder.path / "start", {"v": 1, "by": "shim"}))
    handle = {"v": 1, "kind": changed.get("kind", "process"), "shim_started_at": 1.0}
    atomic_files.write_json(folder.path / "started.json", handle)
    if not changed.get("engine", True):
        folder.note(engine=False)
    if "stopped" in changed:
        stop = Stop(reason=StopReason.CANCEL, kill=changed["stopped"] is CancelHow.OVER)
        folder.write_stop(stop, "w@h")
    folder.write_exit(Exit(code=0), begun=changed.get("begun", True))
    hooks = Hooks(
        worker="w@h",
        api=SimpleNamespace(traits=traits.of(changed.get("backend", "prefect3"))),
        deployer=None,
        start_specs=None,
        attempts=Attempts(),
        run_log=None,
        to_api=None,
        failpoints=Failpoints(),
    )
    assert hooks.wanted(folder) is wanted


def test_a_child_that_this_host_cannot_adopt_now_is_waited_for_and_not_taken_for_over(tmp_path):
    run = RunFolders(tmp_path).create("run", "claim", {})
    folder = run.path / "hooks" / "run.claim-hooks"
    folder.mkdir(parents=True)
    os.close(atomic_files.create_once(folder / "start", {"v": 1, "by": "shim"}))
    child = SimpleNamespace(poll=lambda: Exit(code=0), close=lambda: None)
    answers, jobs, gone_on = [OSError(errno.EMFILE, "too many open files"), child], [], []

    def adopt(path):
        assert path == folder
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    hooks = Hooks(
        worker="w@h",
        api=SimpleNamespace(traits=traits.of("prefect3")),
        deployer=SimpleNamespace(adopt=adopt),
        start_specs=None,
        attempts=Attempts(),
        run_log=SimpleNamespace(say=lambda *said: pytest.fail(str(said))),
        to_api=SimpleNamespace(post=jobs.append),
        failpoints=Failpoints(),
    )
    hooks.start()
    hooks.run(run, StateType.CANCELLING, lambda: gone_on.append(True))
    (job,) = jobs
    with pytest.raises(OSError, match="too many"):
        job()
    assert gone_on == []
    assert not (folder / "settled").exists()
    job()
    until(lambda: gone_on == [True], 10, "its end, which is a job of its own")
    assert (folder / "settled").exists()


@pytest.mark.parametrize("hooks", [True, False])
def test_an_adopted_run_whose_hooks_are_over_at_once_has_ended_and_keeps_no_slot(tmp_path, hooks):
    claim = a_claim()
    folder = RunFolders(tmp_path).create(claim.run_id, claim.claim, held_to_intent(claim))
    folder.write_exit(Exit(code=0), begun=True)
    attempts, ended = Attempts(), []

    def before_end(attempt, end, go_on):
        assert attempts.occupying() == {attempt.key}
        if hooks:
            go_on()
        return hooks

    child = SimpleNamespace(handle={"kind": "process"}, poll=lambda: Exit(code=0), close=lambda: None)
    Adoption(
        worker="w@h",
        claims=None,
        claim_adoption=None,
        deployer=SimpleNamespace(adopt=lambda _path: child),
        attempts=attempts,
        hand_back=None,
        to_ledger=None,
        on_alive=pytest.fail,
        on_ended=ended.append,
        on_cancelled=pytest.fail,
        before_end=before_end,
    ).adopt_all([folder], frozenset())
    assert [(one.held.state, one.exit.code) for one in ended] == [(State.ENDED, 0)]
    assert attempts.get(folder.key).held.state is State.ENDED
    assert attempts.occupying() == set()
