"""The warm parent with the real prefect 1.4.1: what it takes on, what it leaves to a cold start, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.bench_of_runs import FULL, BenchOfRuns
from tests.prefect1_env import python
from tests.waiting import SCALE, until
from workers.deployers import process_handles, warm_client
from workers.deployers.fork_client import ForkClient, ForkServerProgram
from workers.deployers.process import ProcessDeployer
from workers.deployers.warm_client import WarmClient
from workers.environment import EnvironmentLayers
from workers.interpreter import Interpreter
from workers.shim import syscalls, warm_parent

#: what prefect says to `--help` takes no API
VERSION = ("-m", "prefect", "version")


def parent_of(environ: dict[str, str]) -> ForkServerProgram:
    given = Interpreter(path=str(python()), prefect="1.4.1")
    return warm_client.parent_program(given, EnvironmentLayers(base=environ))


class WarmBench:
    """Runs of the real Prefect 1 on one warm parent, and on the worker's own launcher where that is not fit."""

    def __init__(self, folder: Path, program: ForkServerProgram | None = None) -> None:
        home = folder / "home"
        home.mkdir()
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONWARNINGS": "ignore", "LANG": "C.UTF-8"}
        self.bench = BenchOfRuns(folder, FULL)
        self.fork_client = ForkClient(program=program or parent_of(self.environ), on_demand=False)
        # each parent has lived long, by this clock: the pauses before the next one are those of a good one
        self.warm = WarmClient(self.fork_client, clock=itertools.count(0, 1000).__next__)
        assert self.bench.fork_client is not None
        self.bench.deployer = ProcessDeployer(
            host=self.bench.host, abilities=FULL, fork_client=self.bench.fork_client, warm=self.warm
        )
        self.answers: list[Any] = []
        launch = self.warm.launch
        self.warm.launch = lambda request: self.answers.append(launch(request)) or self.answers[-1]  # type: ignore[method-assign]

    def start(self) -> WarmBench:
        self.warm.start()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        until(lambda: self.warm.ready, 60, "the warm parent")

    def spec(self, *argv: str, env: dict[str, str] | None = None, **changes: Any) -> Any:
        return self.bench.spec(str(python()), *(argv or VERSION), env={**self.environ, **(env or {})}, **changes)

    def cold(self, *argv: str, **changes: Any) -> str | None:
        """Run it to its end; why it began cold, None = it was forked."""
        spec = self.spec(*argv, **changes)
        end = self.bench.run(spec)
        assert end.code == 0, (end, (spec.folder / "log").read_text())
        if not argv:
            assert (spec.folder / "log").read_text().endswith("1.4.1\n")
        answer = self.answers[-1]
        return "not asked" if answer is None else answer["cold"]

    def close(self) -> None:
        self.bench.close()
        self.warm.close()


@contextmanager
def warmed(folder: Path, program: ForkServerProgram | None = None) -> Iterator[WarmBench]:
    bench = WarmBench(folder, program)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmBench]:
    with warmed(tmp_path_factory.mktemp("warm")) as made:
        yield made.start()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[WarmBench]:
    """One for a test that breaks it."""
    with warmed(tmp_path) as made:
        yield made.start()


# --- what is forked, and what is not


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONHASHSEED", "0"), ("PYTHONUNBUFFERED", "1"), ("PYTHONWARNINGS", "default"), ("LD_BIND_NOW", "1"),
        ("MALLOC_ARENA_MAX", "1"), ("LC_ALL", "C"), ("LANG", "C"), ("TZ", "UTC+1"),
        ("HOME", "/"),
        ("DASK_TEMPORARY_DIRECTORY", "/tmp"), ("PREFECT__HOME_DIR", "/tmp/else"), ("PREFECT__SERVER__HOST", "http://else"),
        ("PREFECT__TASKS__DEFAULTS__MAX_RETRIES", "3"), ("OPENSSL_CONF", "/dev/null"),
    ],
)  # fmt: skip
def test_a_run_with_a_variable_of_its_own_that_is_read_once_begins_cold(bench, name, value):
    assert bench.cold(env={name: value}) == f"its variable {name} is read once at the start"


@pytest.mark.parametrize(
    "env",
    [
        {"PREFECT__LOGGING__LEVEL": "DEBUG"}, {"PREFECT__CLOUD__API": "http://127.0.0.1:1"}, {"OMP_NUM_THREADS": "1"},
        {"PREFECT__CONTEXT__SECRETS__A": "b"}, {"PYTHONPATH": "/no/such/folder:.:"}, {"A": "b\n=ü\udcff"},
        {"B": "x" * 50_000}, {},
    ],
    ids=lambda env: next(iter(env), "none"),
)  # fmt: skip
def test_an_engine_with_no_variables_of_its_own_or_with_others_is_forked(bench, env):
    assert bench.cold(env=env) is None


def test_without_a_variable_that_the_parent_has_a_run_begins_cold(bench):
    spec = bench.spec()
    del spec.env["PYTHONWARNINGS"]
    assert bench.bench.run(spec).code == 0

    assert bench.answers[-1]["cold"] == "its variable PYTHONWARNINGS is read once at the start"


def made(folder: Path, name: str, text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "name", ["toml.py", "requests/__init__.py", "resource.py", "sitecustomize.py", "usercustomize.py"]
)
@pytest.mark.parametrize("by", ["cwd", "PYTHONPATH"])
def test_a_module_of_the_flows_that_stands_before_a_loaded_one_is_honoured(bench, tmp_path, name, by):
    folder = made(tmp_path / "flows", name, "print('ours')\n")
    given = {"cwd": str(folder)} if by == "cwd" else {"env": {"PYTHONPATH": str(folder)}}
    spec = bench.spec("-m", "prefect", "version", **given)
    bench.bench.run(spec)

    assert bench.answers[-1]["cold"].startswith(f"{folder}/{name.partition('/')[0]}")
    # `-m` looks for sitecustomize before it knows the working folder
    if not (by == "cwd" and "customize" in name) and name != "usercustomize.py":
        assert "ours" in (spec.folder / "log").read_text()


def test_what_the_flows_bring_along_beside_that_is_no_reason(bench, tmp_path):
    flows = tmp_path / "flows"
    modules = ("flow.py", "workers/__init__.py", "spawn.py", "framing.py", "__main__.py")
    for name in (*modules, "prefect/flows/a.py", "toml.txt"):
        made(flows, name)

    assert bench.cold(cwd=str(flows), env={"PYTHONPATH": str(flows)}) is None


def test_a_warm_parent_loads_its_own_modules_where_the_flows_python_has_a_package_workers(tmp_path):
    flows = made(tmp_path / "flows", "workers/__init__.py", "WHOSE = 'theirs'\n")
    for name in ("workers/spawn.py", "workers/shim/__init__.py", "flowfleet_shim.py", "spawn.py", "framing.py"):
        made(flows, name, f"raise RuntimeError('the wrong {name} was imported')\n")
    made(flows, "sitecustomize.py", "import workers\nassert workers.WHOSE == 'theirs'\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    program = parent_of(environ)
    with warmed(tmp_path, dataclasses.replace(program, env={**program.env, "PYTHONPATH": str(flows)})) as bench:
        bench.start()

        assert (
            bench.cold("-c", "import workers", env={"PYTHONPATH": str(flows)}) == "it is not the engine of this Python"
        )


def test_a_zipped_path_begins_cold(bench, tmp_path):
    with zipfile.ZipFile(tmp_path / "flows.zip", "w") as archive:
        archive.writestr("flow.py", "")

    assert "is no folder" in bench.cold(env={"PYTHONPATH": str(tmp_path / "flows.zip")})


def test_another_command_is_executed(bench):
    assert bench.cold("-c", "print(1)") == "it is not the engine of this Python"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"A=B": "c"}, "the name of its variable A=… has a = in it"),
        ({"": "c"}, "one of its variables has no name"),
        ({"A": "b\0"}, "its variable A has a character in its value"),
        ({"A": "x" * 200_000}, "too large for this host"),
    ],
    ids=["=", "", "0", "large"],
)
def test_an_environment_that_only_the_kernel_can_judge_is_left_to_it(bench, env, says):
    with pytest.raises(Exception, match=says):
        bench.bench.start(bench.spec(env=env))


# --- how it ends


def test_the_end_of_a_forked_command_is_that_of_an_executed_one(bench):
    wrong = bench.spec("-m", "prefect", "no-such-command")
    assert bench.bench.run(wrong).code == 2
    assert bench.answers[-1]["cold"] is None
    assert "No such command" in (wrong.folder / "log").read_text()

    broken = bench.spec("-m", "prefect", "execute", "flow-run")
    assert bench.bench.run(broken).code == 1
    text = (broken.folder / "log").read_text()
    assert bench.answers[-1]["cold"] is None
    assert "Not currently executing a flow within a Cloud context." in text
    assert "Traceback" in text
    assert "workers" not in text
    assert "flowfleet_shim" not in text


def test_a_working_folder_that_is_not_there_is_told_and_the_run_never_begins(bench):
    with pytest.raises(Exception, match="its working folder /no/such does not exist"):
        bench.bench.start(bench.spec(cwd="/no/such"))


def test_a_run_that_comes_too_late_never_begins(bench):
    spec = bench.spec(not_after=syscalls.boot_clock() - 1)
    with pytest.raises(Exception, match="too late"):
        bench.bench.start(spec)

    assert bench.bench.folder(spec).exit_record()["late"]


#: an engine that waits for its API to answer
HANGING = ("-m", "prefect", "execute", "flow-run")


@pytest.fixture
def silent() -> Iterator[dict[str, str]]:
    """The environment of an engine whose API accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield {"PREFECT__BACKEND": "server", "PREFECT__CLOUD__API": url, "PREFECT__CONTEXT__FLOW_RUN_ID": "x"}


def connected(started_run: Any) -> bool:
    """It has come as far as to ask its API."""
    files = Path(f"/proc/{started_run.handle['command_pid']}/fd")
    try:
        return any(str(one.readlink()).startswith("socket:") for one in files.iterdir())
    except FileNotFoundError:
        return False  # it has closed one meanwhile


def hanging(bench: WarmBench, env: dict[str, str]) -> tuple[Any, Any]:
    spec = bench.spec(*HANGING, env=env)
    started_run = bench.bench.start(spec)
    assert bench.answers[-1]["cold"] is None
    until(lambda: connected(started_run), 30, "the engine to ask its API")
    return spec, started_run


@pytest.mark.parametrize(("stop", "number"), [("stop", signal.SIGTERM), ("kill", signal.SIGKILL)])
def test_a_forked_engine_is_stopped_like_any_other(bench, silent, stop, number):
    spec, started_run = hanging(bench, silent)
    getattr(started_run, stop)()

    end = bench.bench.end_of(started_run)
    assert (end.signal, end.stopped_by) == (number, {"stop": "term", "kill": "kill"}[stop])
    assert bench.bench.living(spec) == []


def test_a_forked_engine_holds_nothing_of_its_shim_and_is_found_by_its_marks(bench, silent):
    spec, started_run = hanging(bench, silent)
    pid, shim = started_run.handle["command_pid"], started_run.handle["pid"]
    opened = {}
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that it has closed meanwhile
            opened[int(one.name)] = str(one.readlink())

    assert {fd: link for fd, link in opened.items() if fd > 2 and not link.startswith("socket:")} == {}
    assert len(opened) == 4
    os.kill(shim, signal.SIGKILL)
    until(lambda: not bench.bench.folder(spec).shim_alive(), 10, "the lock of the shim to be free")
    assert processes.alive(pid)
    assert process_handles.members(spec.run_id, spec.claim, session=0, group=0) == [pid]
    started_run.kill()
    bench.bench.end_of(started_run)
    assert bench.bench.living(spec) == []


def test_runs_of_a_killed_parent_go_on_and_the_next_ones_begin_cold_until_there_is_another(fresh, silent):
    spec, first = hanging(fresh, silent)
    old = fresh.fork_client.pid
    os.kill(old, signal.SIGKILL)
    until(lambda: not processes.alive(old), 10, "the parent to be gone")

    assert fresh.cold() == "not asked"
    fresh.wait_ready()
    assert fresh.fork_client.pid != old
    assert fresh.cold() is None
    assert first.poll() is None
    # a new worker finds it and its true end
    again = fresh.bench.adopt(spec)
    again.stop()
    assert fresh.bench.end_of(again).signal == signal.SIGTERM


def test_a_parent_killed_between_request_and_answer_starts_the_run_once(fresh):
    for number in range(8):
        if not processes.alive(fresh.fork_client.pid):
            fresh.cold()
        fresh.wait_ready()
        pid = fresh.fork_client.pid
        killer = threading.Timer(0.0015 * number, os.kill, (pid, signal.SIGKILL))
        killer.start()
        spec = fresh.spec()
        end = fresh.bench.run(spec)
        killer.join()
        until(lambda pid=pid: not processes.alive(pid), 10, "the parent to be gone")
        assert end.code == 0
        assert (spec.folder / "log").read_text() == "1.4.1\n"


def test_a_hanging_parent_is_given_up_and_the_run_begins_cold(fresh):
    fresh.fork_client._answer_seconds = 0.5
    os.kill(fresh.fork_client.pid, signal.SIGSTOP)

    assert fresh.cold() == "not asked"
    fresh.fork_client._answer_seconds = 20.0 * SCALE
    fresh.wait_ready()
    assert fresh.cold() is None


def test_a_parent_that_is_out_of_date_is_replaced(fresh, tmp_path):
    first = fresh.fork_client.pid
    made(tmp_path / "home" / ".prefect", "config.toml", "[logging]\nlevel = 'DEBUG'\n")

    assert fresh.cold() == "not asked"
    fresh.wait_ready()
    assert fresh.fork_client.pid != first
    assert fresh.cold() is None


def test_a_parent_ends_with_its_worker_also_while_it_is_loading(fresh, tmp_path):
    pid = fresh.fork_client.pid
    fresh.warm.close()
    assert not processes.alive(pid)
    (tmp_path / "second").mkdir()
    # it would load for longer than it is waited for
    with warmed(tmp_path / "second", with_code("import time; time.sleep(300)")) as bench:
        bench.warm.start()
        pid = until(lambda: bench.fork_client.pid, 10, "the process")
        begun = time.monotonic()
        bench.warm.close()
        assert time.monotonic() - begun < 30
        assert not processes.alive(pid)


# --- where there can be none

THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


def with_code(code: str) -> ForkServerProgram:
    """A parent in whose Python this happens first."""
    file = str(Path(warm_parent.__file__))
    run = f"import runpy, sys; sys.argv = ['-', *sys.argv[1:]]; runpy.run_path({file!r}, run_name='__main__')"
    return ForkServerProgram(argv=(str(python()), "-c", f"{code}\n{run}"), env=dict(os.environ), greeting_seconds=60)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (THREAD, "runs a thread"),
        ("import sys; sys.modules['prefect'] = None", "prefect"),
        ("import sys; sys.version_info = (3, 8, 0)", "needs Python 3.9"),
        ("left = open(__import__('os').devnull)", "keeps a file open"),
    ],
    ids=["threads", "no prefect", "old Python", "an open file"],
)
def test_where_no_parent_can_be_runs_begin_cold_and_that_is_told_once(tmp_path, caplog, code, why):
    caplog.set_level("INFO", "workers")
    with warmed(tmp_path, with_code(code)) as bench:
        bench.warm.start()

        def told() -> list[Any]:
            return [record for record in caplog.records if record.name == "workers.deployers.warm_client"]

        until(told, 60, "the word that there is none")
        assert bench.cold() == "not asked"
        (record,) = told()[:1]
        assert why in str(getattr(record, "why", "")) + str(getattr(record, "error", ""))


def test_only_a_prefect_that_is_known_is_loaded():
    for prefect, known in (("1.4.1", True), ("0.15.13", False), ("3.4.0", False)):
        assert warm_client.is_possible(Interpreter(path="python", prefect=prefect), FULL) is known


def test_a_parent_for_the_c_locale_takes_on_the_runs_of_its_worker(tmp_path):
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C"}
    with warmed(tmp_path, parent_of(environ)) as bench:
        bench.environ = environ
        bench.start()

        assert bench.cold() is None
