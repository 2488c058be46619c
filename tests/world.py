"""World: one fleet for one test, with its own name, pool and folders, started from the installed commands."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from flowfleet.ledger import Ledger, connect
from flowfleet.log_lines import INDENT
from flowfleet.monitor.snapshot import take_snapshot
from tests import folders, processes, tiny_engine
from tests.rest import Rest
from tests.valkey import free_port
from tests.waiting import SCALE, until

#: where the console scripts of the environment under test are
BIN = Path(sys.executable).parent
#: stands in the environment of everything that a world starts, and of all that those start
MARK = "FFTEST_WORLD"

#: the names of good ends
GOOD = ("Completed", "Success")

#: what flow files begin with: `note(word)` appends a line to the run's own notes, so that flows count themselves
PRELUDE = f"""
import os, sys, time
from pathlib import Path

{inspect.getsource(tiny_engine.notes_path)}
{inspect.getsource(tiny_engine.note)}
from prefect import flow, task
"""


def flows_python() -> str:
    """The interpreter of all flows: ours, unless the tests are asked for runs of another prefect (`make oldest`)."""
    return os.environ.get("FLOWFLEET_TEST_FLOWS_PYTHON", sys.executable)


def flows_prefect() -> str:
    """The version of prefect that it has."""
    ask = "from importlib.metadata import version; print(version('prefect'))"
    return subprocess.run([flows_python(), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def events(log: str) -> str:
    """A log with each event in one line: what had no room in its first line stands below, indented."""
    return log.replace("\n" + " " * INDENT, " ")


class Part:
    """A started command: its process, its log, the address of its own pages."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        address: str = "",
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.log = folder / f"{name}.log"
        self.out = folder / f"{name}.out"
        with self.log.open("ab") as log, self.out.open("ab") as out:
            self.process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd or folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, path: str, *, seconds: float = 60) -> tuple[int, str]:
        """GET one of its pages: the code (0 = no answer) and the text."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=seconds) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Does it say so itself? A dead one fails the test, with its last lines."""
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.tail()}"
        return self.ask("/api/ready", seconds=5)[0] == 200

    def wait_ready(self) -> Part:
        until(self.ready, 40, f"{self.name} to be ready")
        return self

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Its exit code."""
        return self.process.wait(seconds * SCALE)

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL; nobody but this one process."""
        self.signal(signal.SIGKILL)
        self.wait()

    def said(self) -> list[str]:
        """What it has printed."""
        return self.out.read_text(errors="replace").splitlines()

    def text(self) -> str:
        """Its log, each event in one line."""
        return events(self.log.read_text(errors="replace")) if self.log.exists() else ""

    def all_text(self) -> str:
        """Its log and what it has printed."""
        return self.text() + self.out.read_text(errors="replace")

    def tail(self, lines: int = 50) -> str:
        return "\n".join(self.text().splitlines()[-lines:])


class World:
    """`start_poller()`, `start_worker()`, `deploy(source)`, `create_run(…)`, `wait_state(…)`, `status()`."""

    def __init__(self, folder: Path, api_url: str, redis_url: str, *, fleet: str = "") -> None:
        self.mark = uuid.uuid4().hex[:12]
        self.fleet = fleet or f"t-{self.mark}"
        self.pool = f"pool-{self.mark}"
        self.folder = folder
        self.api_url = api_url
        self.redis_url = redis_url
        self.api: Any = Rest(api_url)
        self.notes_folder = folder / "notes"
        self.home = folder / "prefect"
        self.parts: list[Part] = []
        self.runs: list[str] = []
        #: settings of every part; a test may add, or take away by None
        self.env: dict[str, str | None] = {}
        for path in (self.notes_folder, self.home, folder / "flows", folder / "state"):
            path.mkdir(parents=True, exist_ok=True)

    # parts

    def environment(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """Of our commands, and through them of the flows: nothing of the user's own flowfleet or Prefect."""
        env: dict[str, str | None] = dict(processes.environment())
        env |= {
            "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}",
            "HOME": str(self.folder),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "DO_NOT_TRACK": "1",
            "FLOWFLEET_REDIS": self.redis_url,
            "FLOWFLEET_FLEET": self.fleet,
            # the default looks whether this machine is a container or a unit, which tests must not depend on
            "FLOWFLEET_ON_STOP": "detach",
            "FLOWFLEET_PYTHON": os.environ.get("FLOWFLEET_TEST_FLOWS_PYTHON"),
            "FFTEST_NOTES": str(self.notes_folder),
            MARK: self.mark,
        }
        return {name: value for name, value in (env | self.env | dict(extra or {})).items() if value is not None}

    def start(
        self,
        command: str,
        name: str,
        options: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        before: Sequence[str] = (),
        address: str | None = None,
        cwd: Path | None = None,
        wait: bool = True,
    ) -> Part:
        """One of the console scripts as a part; `before` is what runs it (`ip netns exec …`)."""
        address = address or f"http://127.0.0.1:{free_port()}"
        argv = [*before, str(BIN / command), "start", "--agent-address", address, *options]
        part = self.part(name, argv, env, address, cwd)
        return part.wait_ready() if wait else part

    def part(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str | None] | None = None,
        address: str = "",
        cwd: Path | None = None,
    ) -> Part:
        """Any program as a part."""
        number = sum(part.name.startswith(f"{name}-") for part in self.parts) + 1
        part = Part(f"{name}-{number}", argv, self.environment(env), self.folder, address, cwd)
        self.parts.append(part)
        return part

    def start_poller(self, name: str = "agent", *options: str, **how: Any) -> Part:
        return self.start("poller", name, ["--name", name, *options], **how)

    def start_worker(
        self, name: str = "worker", *options: str, slots: int = 2, pools: Sequence[str] | None = None, **how: Any
    ) -> Part:
        offered = [item for pool in (pools or [self.pool]) for item in ("--pool", pool)]
        return self.start("worker", name, ["--name", name, "--slots", str(slots), *offered, *options], **how)

    def command(
        self, *argv: str, seconds: float = 30, cwd: Path | None = None, **env: str | None
    ) -> subprocess.CompletedProcess[str]:
        """A command that asks or orders, to its end."""
        return processes.run(
            BIN / argv[0], *argv[1:], env=self.environment(env), cwd=cwd or self.folder, seconds=seconds
        )

    def status(self) -> dict[str, Any]:
        """`flowfleet status --json`."""
        done = self.command("flowfleet", "status", "--json")
        if done.returncode == 4:  # a Redis that stalls for longer than the command waits for it
            done = self.command("flowfleet", "status", "--json")
        assert done.returncode == 0, f"status: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return dict(json.loads(done.stdout))

    def ledger(self, redis_url: str = "") -> closing[Ledger]:
        """The fleet's ledger, here or at another Redis; a Redis that only stalls is waited for."""
        return closing(connect(redis_url or self.redis_url, self.fleet, socket_timeout=60))

    def seen(self) -> dict[str, Any]:
        """What `status` would say, without starting the command: for waits that ask again and again."""
        with self.ledger() as ledger:
            return take_snapshot(ledger).to_json()

    def records(self) -> list[Mapping[str, Any]]:
        """The claims that are gone: all that the ledger keeps."""
        with self.ledger() as ledger:
            return list(ledger.claims.records(limit=10_000))

    def wait_told(self, seconds: float = 10) -> None:
        """No report is left on disk: a worker lets go of it only after the claim is gone from the ledger."""
        reports = lambda: folders.found(self.folder, "state/**/outbox/*.json")  # noqa: E731
        until(lambda: reports() == [], seconds, "all reports to be off the disk", pause=0.1)

    def wait_empty(self, seconds: float = 30) -> None:
        """The ledger holds no claim any more, and status says so."""
        until(lambda: self.seen()["runs"] == [], seconds, "the ledger to be empty", pause=0.1)
        assert self.status()["runs"] == []

    # flows

    def deploy(
        self, source: str, *, name: str = "flow", pool: str = "", files: Mapping[str, str] | None = None, **facts: Any
    ) -> str:
        """A flow file (its flow is `go`) in a folder of its own, and its deployment to the pool that a worker made."""
        pool = pool or self.pool
        until(lambda: self.api.pool(pool), 30, f"pool {pool}")
        folder = self.folder / "flows" / f"{name}-{uuid.uuid4().hex[:6]}"
        for path, text in {**(files or {}), "flow.py": PRELUDE + textwrap.dedent(source)}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return self.api.deploy(f"{name}-{uuid.uuid4().hex[:8]}", pool, "flow.py:go", str(folder), **facts)

    def deploy_tiny(
        self,
        hold: float | str = 0,
        code: int = 0,
        *,
        pool: str = "",
        variables: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> str:
        """A deployment whose runs need no engine: they note `ran`, stay (seconds, or till `release`), note `done`."""
        pool = pool or self.pool
        until(lambda: self.api.pool(pool), 30, f"pool {pool}")
        given = {"command": f"{sys.executable} -I {tiny_engine.__file__} {hold} {code}", **(variables or {})}
        return self.api.deploy(
            f"tiny-{uuid.uuid4().hex[:8]}", pool, "none.py:go", str(self.folder), job_variables=given, **facts
        )

    def release(self) -> None:
        """Let all held runs go on."""
        (self.notes_folder / "release").touch()

    def create_run(self, deployment: str, parameters: Mapping[str, Any] | None = None, **facts: Any) -> str:
        run_id = self.api.create_run(deployment, parameters, **facts)
        self.runs.append(run_id)
        return run_id

    def run(self, source: str, *names: str, seconds: float = 60, **facts: Any) -> tuple[str, dict[str, Any]]:
        """Deploy, run, and wait for a state: the run's id and that state."""
        run_id = self.create_run(self.deploy(source, **facts))
        return run_id, self.wait_state(run_id, *names, seconds=seconds)

    def wait_state(self, run_id: str, *names: str, seconds: float = 60) -> dict[str, Any]:
        return self.api.wait_state(run_id, *names, seconds=seconds)

    def notes(self, run_id: str) -> list[list[str]]:
        """What the run noted about itself: word, pid, time."""
        path = self.notes_folder / run_id
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def words(self, run_id: str) -> list[str]:
        """The first word of each of its notes."""
        return [line[0] for line in self.notes(run_id)]

    def wait_note(self, run_id: str, word: str, seconds: float = 60) -> list[str]:
        """The first line with this word."""
        return until(
            lambda: next((line for line in self.notes(run_id) if line[0] == word), None),
            seconds,
            f"note {word!r} of run {run_id}",
        )

    def held(self, code: int = 0) -> tuple[str, int]:
        """A run of the tiny engine that stays till `release`, and its process, once the API has it as Running."""
        run_id = self.create_run(self.deploy_tiny("hold", code))
        return run_id, self.wait_held(run_id)

    def wait_held(self, run_id: str) -> int:
        """The process of a run that stays, once the API has answered it: the API may be cut from then on."""
        until((self.notes_folder / f"{run_id}.held").exists, 60, f"run {run_id} to hold")
        return int(self.wait_note(run_id, "ran")[1])

    def all_once(self, runs: Sequence[str], seconds: float = 60) -> None:
        """Every run comes to its good end, and its user code ran once."""
        for run_id in runs:
            self.wait_state(run_id, *GOOD, seconds=seconds)
        assert {run_id: self.words(run_id) for run_id in runs} == {run_id: ["ran", "done"] for run_id in runs}

    def kill_engine(self, run_id: str, kill: Callable[[int, int], None] = os.kill) -> None:
        """SIGKILL for the run's process; by `os.killpg` for its whole group."""
        (handle,) = folders.found(self.folder, f"state/**/runs/{run_id}.*/started.json")
        kill(json.loads(handle.read_text())["command_pid"], signal.SIGKILL)

    # the end

    def close(self) -> None:
        """Stop every part in order, then see that nothing is left; leftovers are ended, and an error."""
        workers = [part for part in self.parts if not part.name.startswith("agent")]
        for part in [*workers, *(part for part in self.parts if part not in workers)]:
            part.signal(signal.SIGCONT)
            part.signal(signal.SIGTERM)
        stuck = []
        for part in self.parts:
            try:
                part.wait(15)
            except subprocess.TimeoutExpired:
                stuck.append(part.name)
                part.kill()
        # a shim outlives the exit that it has recorded by a moment, and so does an engine what it has told the API;
        # what one look finds may be a run that ends during it, so the looks count only together
        strays: dict[int, str] = {}

        def gone() -> bool:
            nonlocal strays
            strays = self._strays()
            return not strays

        try:
            until(gone, 20, "all processes to be gone that belong to no live run")
        except AssertionError as error:
            raise AssertionError(f"processes are left that belong to no live run: {strays}") from error
        finally:
            processes.sweep(MARK, self.mark)
        assert not stuck, f"did not stop within 15 s of SIGTERM: {stuck}"

    def _strays(self) -> dict[int, str]:
        """Runs outlive their workers on purpose, so what is left of them is no fault by itself; all else is."""
        left = processes.marked(MARK, self.mark)
        owned = self._owned_pids() if left else set()
        return {pid: what for pid, what in left.items() if pid not in owned}

    def _owned_pids(self) -> set[int]:
        """Processes that carry the mark of a run whose attempt has not ended."""
        owned: set[int] = set()
        for folder in folders.found(self.folder, "state*/**/runs/*.*"):
            if not (folder / "exit.json").exists():
                owned |= set(processes.marked("FLOWFLEET_CLAIM", folder.name.rpartition(".")[2]))
                owned |= _pids_in(folder / "started.json")
        return owned

    def describe(self) -> str:
        """For a failed test: status, explain of each run, the last lines of each part."""
        said = ["-- flowfleet status --", self._told("status")]
        for run_id in self.runs[:5]:
            said += [f"-- flowfleet explain {run_id} --", self._told("explain", run_id)]
            try:
                said.append(f"at the API: {self.api.history(run_id)}: {self.api.state(run_id)}")
            except (AssertionError, OSError) as error:
                said.append(f"at the API: {error}")
            said.append(f"notes: {self.notes(run_id)}")
        for part in self.parts:
            said += [f"-- {part.name} (exit {part.process.poll()}), last lines --", part.tail()]
        return "\n".join(said)

    def _told(self, *argv: str) -> str:
        try:
            done = self.command("flowfleet", *argv, seconds=10)
        except (subprocess.TimeoutExpired, OSError) as error:
            return str(error)
        return (done.stdout + done.stderr).strip()


def _pids_in(path: Path) -> set[int]:
    """Every pid that a handle on disk names, with what it started."""
    try:
        handle = json.loads(path.read_text())
    except (OSError, ValueError):
        return set()
    return {value for key, value in handle.items() if "pid" in key and isinstance(value, int)}
