"""Fixtures that all tests share: one Valkey and one Prefect server for a session, one world for a test."""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests import processes
from tests.lawless_api import LawlessApi
from tests.needs import missing, need
from tests.prefect1_world import World1
from tests.prefect_server import PrefectServer
from tests.valkey import Valkey, binary
from tests.waiting import SCALE, until
from tests.world import World

MARK = "FFTEST_UP"


class UpRun:
    """`UpRun(folder, "--api", URL).start()`; `close` leaves nothing behind."""

    def __init__(self, folder, *options, **variables):
        self.folder = folder
        self.data = folder / "data"
        self.options = options
        self.mark = uuid.uuid4().hex
        self.scratch = folder / "tmp"
        self.scratch.mkdir(exist_ok=True)
        self.output = folder / "output"
        self.env = processes.environment() | {
            "HOME": str(folder),
            "TMPDIR": str(self.scratch),
            "XDG_STATE_HOME": str(folder / "xdg-state"),
            MARK: self.mark,
            **variables,
        }
        self.process = None

    def start(self):
        argv = [str(Path(sys.executable).with_name("flowfleet")), "up", "--data-dir", str(self.data), *self.options]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                argv, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        return self

    def run(self, seconds=60):
        """To its end: exit code and output."""
        self.start()
        return self.wait(seconds), self.text()

    def wait(self, seconds=60):
        return self.process.wait(seconds * SCALE)

    def text(self):
        return self.output.read_text()

    def ready(self, seconds=120):
        """What `up.json` says, once it is there."""

        def look():
            assert self.process.poll() is None, f"up ended with {self.process.returncode}:\n{self.text()}"
            path = self.data / "up.json"
            return json.loads(path.read_text()) if path.exists() else None

        return until(look, seconds, "up.json")

    def signal(self, number):
        self.process.send_signal(number)

    def left(self):
        """Processes of this `up` that still live."""
        return processes.marked(MARK, self.mark)

    def describe(self, lines=50):
        """What it printed, and the end of each part's log."""
        told = [f"exit code {self.process.poll()}" if self.process else "not started"]
        for log in (self.output, *sorted((self.data / "logs").glob("*.log"))):
            if log.exists():
                end = log.read_text(errors="replace").splitlines()[-lines:]
                told += [f"--- {log.name}", *(f"    {line}" for line in end)]
        return "\n".join(told)

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return processes.sweep(MARK, self.mark)


def pytest_configure(config: pytest.Config) -> None:
    """Take the user's own flowfleet and Prefect settings off, before any test module reads them."""
    for name in list(os.environ):
        if name.startswith(("FLOWFLEET_", "PREFECT_")) and not name.startswith("FLOWFLEET_TEST_"):
            del os.environ[name]
    settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI") == "true":
        settings.load_profile("ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Full numbers only where they are asked for; on a very slow machine a fixed third of the slow groups.

    The long ones come first, so that several processes (`make test` has two) end at about the same time.
    """
    asked = "stress" in (config.option.markexpr or "")
    third = bool(os.environ.get("FLOWFLEET_TEST_THIRD"))
    kept, dropped = [], []
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        left_out = (item.get_closest_marker("stress") is not None and not asked) or (
            third and slow and zlib.crc32(item.nodeid.encode()) % 3 != 0
        )
        (dropped if left_out else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = sorted(kept, key=lambda item: item.get_closest_marker("slow") is None and not together(item.nodeid))
    scale_limits(config, items)


def scale_limits(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The limit of a test, which ends one that hangs, is a wait like the others."""
    asked = config.getoption("timeout")
    usual = float(config.getini("timeout") if asked is None else asked)
    for item in items:
        own = item.get_closest_marker("timeout")
        item.add_marker(pytest.mark.timeout((own.args[0] if own else usual) * SCALE), append=False)


def together(nodeid: str) -> str | None:
    """What must run in one process: tests that share a costly fixture of their module, or one Prefect server."""
    path = nodeid.partition("::")[0]
    if path.endswith("acceptance/test_ends.py"):
        return "ends of plain workers" if "[plain" in nodeid else "ends"
    if path.endswith("acceptance/test_environments.py"):
        return "environments"
    if path.endswith(("acceptance/test_prefect1_truth.py", "acceptance/test_prefect1_runs.py")):
        return path.rpartition("/")[2]
    if path.endswith("chaos/test_ledger_model.py"):
        return "model"  # one long test, so it comes among the first
    return "one Prefect server" if "integration/test_prefect3_" in path else None


class Lanes(LoadScopeScheduling):
    """Each test goes to whichever process is free, but for those that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid) or nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Instead of `--dist loadgroup`, whose groups xdist 3.8 loses silently under pytest 9.2."""
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test with a fleet says what the fleet looked like."""
    report = yield
    if report.failed and call.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            value = getattr(value, "world", value)  # noqa: PLW2901 - a group of tests may share one fleet
            if isinstance(value, World):
                report.sections.append((f"fleet {value.fleet}", value.describe()))
            # a fixture that makes several of them has them in a list
            runs = getattr(value, "runs", None)
            for run in runs if isinstance(runs, list) else ():
                if isinstance(run, UpRun):
                    report.sections.append((f"flowfleet up in {run.data}", run.describe()))
    return report


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """A command that a test calls in this process sends all logs to a stream that ends with the test: so do they."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A real server for the whole session; each test takes a fleet name of its own."""
    try:
        binary()
    except RuntimeError as error:
        missing(str(error))
    with Valkey.private(tcp=True) as server:
        yield server


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real Prefect 3 server for the whole session; each test takes a pool of its own."""
    need(importlib.util.find_spec("prefect") is not None, "a real Prefect 3 server: install the extra demo")
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fleet(prefect_server: PrefectServer, valkey: Valkey, tmp_path: Path) -> Iterator[World]:
    """A fleet of its own on the session's servers; nothing of it is left afterwards."""
    world = World(tmp_path, prefect_server.api_url, valkey.tcp_url)
    yield world
    world.close()


@pytest.fixture
def world1(tmp_path: Path, valkey: Valkey) -> Iterator[World1]:
    """A fleet of its own on a Prefect 1 API of its own."""
    world = World1(tmp_path, valkey.tcp_url)
    yield world
    world.close()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., UpRun]]:
    """As many `flowfleet up` as a test wants, each not started yet; none leaves a process."""
    runs: list[UpRun] = []

    def make(*options: str, folder: Path | None = None, **variables: str) -> UpRun:
        place = folder or tmp_path / f"up-{len(runs)}"
        place.mkdir(exist_ok=True)
        runs.append(UpRun(place, *options, **variables))
        return runs[-1]

    make.runs = runs  # type: ignore[attr-defined] # for the report of a test that fails
    yield make
    left = {pid: what for run in runs for pid, what in run.close().items()}
    assert left == {}


@pytest.fixture
def make_lawless(valkey: Valkey, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """As many fleets as a test wants, each on an API of its own that takes every state from everybody."""
    made: list[tuple[World, LawlessApi]] = []

    def make(api: LawlessApi | None = None) -> World:
        api = (api or LawlessApi()).start()
        folder = tmp_path / f"world{len(made)}"
        made.append((World(folder, api.api_url, valkey.tcp_url), api))
        return made[-1][0]

    try:
        yield make
        for world, _ in made:
            world.close()
    finally:
        for _, api in made:
            api.stop()


@pytest.fixture
def lawless(make_lawless: Callable[..., World]) -> World:
    """One such fleet."""
    return make_lawless()
