"""External runs: given to a callable, watched at the API, never started twice."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowfleet.api import traits
from flowfleet.api.client import RunState, StateType
from flowfleet.errors import ApiUnavailable, UnsupportedRun, UserCodeFailed
from flowfleet.retry import SharedOutage
from tests.unit.memory_ledger import HandClock
from workers.deployers.external import (
    COMES_BACK_SECONDS,
    DOUBT_SECONDS,
    ExternalDeployer,
    ExternalWatch,
    InDoubt,
    NotAsked,
)
from workers.deployment import Exit, RunLimits, StartSpec, StopReason
from workers.reporting.exit_table import Step, decide
from workers.state.run_folders import RunFolder
from workers.stop import Stop

RUN = "aaaaaaaa-0000-4000-8000-000000000000"
CLAIM = "bbbbbbbb-0000-4000-8000-000000000000"


class World:
    """One deployer with a callable above one of processes, a clock, and what the API says."""

    def __init__(self, folder: Path, deploy: Any = lambda _order: "a place") -> None:
        self.path = folder / f"{RUN}.{CLAIM}"
        self.path.mkdir()
        self.folder = RunFolder(self.path)
        self.clock = HandClock()
        self.says: dict[str, RunState] | Exception = {RUN: state(StateType.PENDING)}
        #: what the other deployer was asked
        self.asked: list[str] = []
        self.watch = ExternalWatch(
            self.states,
            SharedOutage("the Prefect API", self.clock).of(),
            seconds=3600.0,
            clock=self.clock,
        )
        self.deployer = self.another(deploy)
        self.spec = StartSpec(
            run_id=RUN, claim=CLAIM, argv=["x"], env={}, cwd=None, folder=self.path, not_after=None,
            limits=RunLimits(log_limit=1, stop_grace=1.0),
        )  # fmt: skip

    def another(self, deploy: Any) -> ExternalDeployer:
        below: Any = SimpleNamespace(
            kind="process",
            start=lambda spec: self.asked.append("start") or SimpleNamespace(handle={"run": spec.run_id}),
            adopt=lambda _folder: self.asked.append("adopt"),
            close=lambda: self.asked.append("close"),
        )
        return ExternalDeployer(deploy, below=below, watch=self.watch, host="here")

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        if isinstance(self.says, Exception):
            raise self.says
        return {run_id: self.says[run_id] for run_id in run_ids if run_id in self.says}

    def start(self) -> Any:
        return self.deployer.start(self.spec)

    def seen(self, said: RunState | None, after: float = 0.0) -> None:
        self.says = {RUN: said} if said else {}
        self.clock.sleep(after)
        self.watch.look()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def state(kind: StateType, **given: Any) -> RunState:
    return RunState(run_id=RUN, run_name="run", kind=kind, name=str(kind), **given)


def decided(run: Any, said: RunState) -> Any:
    return decide(run.poll(), said, traits=traits.of("prefect1"), looked_before=False)


def test_a_deployment_lives_until_its_run_has_ended_at_the_api(world):
    run = world.start()
    assert run.handle == {"v": 1, "kind": "external", "host": "here", "id": "a place"}
    assert (run.poll(), run.fileno()) == (None, None)
    for kind in (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING):
        world.seen(state(kind), after=10_000)
        assert run.poll() is None
    world.says = ApiUnavailable("nobody answers")
    world.watch.look()
    assert run.poll() is None, "an API that does not answer changes nothing"
    world.seen(state(StateType.COMPLETED))
    assert run.poll().code == 0
    assert decided(run, state(StateType.COMPLETED)).step is Step.RELEASE


def test_a_run_that_is_gone_is_over(world):
    run = world.start()
    world.seen(None)
    assert run.poll().ok


def raising(error: BaseException) -> Any:
    def deploy(_order: StartSpec) -> str:
        raise error

    return deploy


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ValueError("no quota left."), UserCodeFailed, r"^no quota left\.$"),
        (SystemExit(3), UserCodeFailed, "^3$"),
        (KeyError(), UserCodeFailed, "^KeyError$"),
        (UnsupportedRun("of its own"), UnsupportedRun, "^of its own$"),
    ],
)
def test_what_a_callable_raises_fails_the_run_in_its_own_words_and_ends_no_worker(tmp_path, error, kind, says):
    with pytest.raises(kind, match=says):
        World(tmp_path, raising(error)).start()


def test_a_callable_that_could_not_ask_leaves_no_doubt_that_the_run_is_not_deployed(tmp_path):
    def deploy(_order: StartSpec) -> str:
        raise NotAsked from ApiUnavailable("nobody answers")

    world = World(tmp_path, deploy)
    with pytest.raises(ApiUnavailable, match="nobody answers"):
        world.start()
    assert world.folder.abandon("not asked")
    assert world.another(None).adopt(world.path) is None


def test_a_run_of_which_the_callable_cannot_tell_is_watched_in_doubt_by_the_next_worker_too(tmp_path):
    world = World(tmp_path, lambda _order: InDoubt(why="its own code is not sure"))
    assert world.start().handle["doubtful"] is True
    run = world.another(None).adopt(world.path)
    world.seen(state(StateType.PENDING))
    world.seen(state(StateType.PENDING), after=DOUBT_SECONDS - 1)
    assert run.poll() is None
    world.seen(state(StateType.PENDING), after=2)
    assert "its own code is not sure, and it has not begun since" in decided(run, state(StateType.PENDING)).message


def test_a_process_that_the_callable_started_after_all_is_the_deployment(world):
    deployer = world.another(lambda spec: deployer.start_below(spec))  # noqa: PLW0108 - it is not there yet
    assert deployer.start(world.spec).handle == {"run": RUN}
    assert sorted(path.name for path in world.path.iterdir()) == []  # a crash from here on is the other deployer's


@pytest.mark.parametrize(("answer", "place"), [(None, ""), (7, "7"), ({"a": 1}, "{'a': 1}"), ("x" * 999, "x" * 500)])
def test_whatever_the_callable_returns_is_told_as_text(tmp_path, answer, place):
    assert World(tmp_path, lambda _order: answer).start().handle["id"] == place


def test_the_next_worker_adopts_it_with_what_it_said(world):
    world.start()
    run = world.another(None).adopt(world.path)
    assert run.handle["id"] == "a place"
    world.seen(state(StateType.PENDING), after=DOUBT_SECONDS * 2)
    assert run.poll() is None
    world.seen(state(StateType.FAILED))
    assert run.poll().ok
    assert world.another(None).adopt(world.path).poll().ok, "an end that was seen is adopted too"


def test_a_run_whose_worker_was_killed_while_it_was_deployed_is_watched_and_not_deployed_again(tmp_path):
    class Killed(BaseException):
        pass

    deploy = raising(Killed())
    world = World(tmp_path, deploy)
    with pytest.raises(Killed):
        world.start()
    run = world.another(deploy).adopt(world.path)
    assert run.poll() is None
    assert not world.folder.abandon("too late")

    world.seen(state(StateType.PENDING))
    world.seen(state(StateType.PENDING), after=DOUBT_SECONDS - 1)
    assert run.poll() is None
    world.seen(state(StateType.PENDING), after=2)
    decision = decided(run, state(StateType.PENDING))
    assert (decision.kind, decision.step) == (StateType.FAILED, Step.TELL)
    assert "killed while it was deployed" in decision.message


def test_a_doubtful_one_that_is_seen_running_is_watched_to_its_end(world):
    (world.path / "deploying.json").write_text(json.dumps({"v": 1}))
    run = world.deployer.adopt(world.path)
    world.seen(state(StateType.RUNNING))
    world.seen(state(StateType.PENDING))
    world.seen(state(StateType.PENDING), after=DOUBT_SECONDS + 1)
    assert run.poll() is None


def test_a_run_that_comes_back_by_itself_is_let_go_once_no_process_of_it_can_wait_for_that(world):
    run, comes_back = world.start(), state(StateType.RUNNING, comes_back=True)
    world.seen(comes_back)
    world.seen(comes_back, after=COMES_BACK_SECONDS - 1)
    world.seen(state(StateType.RUNNING))  # its own process went on
    world.seen(comes_back)
    assert run.poll() is None
    world.seen(comes_back, after=COMES_BACK_SECONDS + 1)
    assert decided(run, comes_back).step is Step.RELEASE


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (StopReason.TIMEOUT, "it took longer than --run-timeout allows"),
        (StopReason.WORKER, "its worker w@h was stopped"),
        (None, "it was told to end"),
    ],
)
def test_a_stop_lets_go_of_it_and_says_that_it_may_go_on(world, reason, words):
    run = world.start()
    if reason is not None:
        world.folder.write_stop(Stop(reason=reason), "w@h")
    run.stop()
    decision = decided(run, state(StateType.RUNNING))
    assert decision.kind is StateType.FAILED
    assert f"not watched any more: {words}; where it was deployed it may go on" in decision.message
    assert Exit.from_record(run.poll().to_record()) == run.poll()


def test_what_is_not_external_is_the_other_deployer_s(world):
    deployer = world.another(None)
    assert deployer.start(world.spec).handle == {"run": RUN}
    assert world.folder.abandon("never begun")
    assert deployer.adopt(world.path) is None
    deployer.close()
    assert world.asked == ["start", "adopt", "close"]


def test_the_deployer_of_a_worker_has_the_switch_of_the_one_below_and_one_with_a_callable_has_none(tmp_path):
    world = World(tmp_path)
    for below in (True, False):
        own: Any = SimpleNamespace(kind="process", has_switch=below)
        assert ExternalDeployer(None, below=own, watch=world.watch, host="here").has_switch is below
        assert not ExternalDeployer(lambda _order: "", below=own, watch=world.watch, host="here").has_switch
