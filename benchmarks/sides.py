"""Sides: the stock process worker and flowfleet, each started and stopped in the same way, against one server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from benchmarks import processes
from benchmarks.cgroup import Group
from benchmarks.processes import MARK, Process
from benchmarks.runs import wait
from tests.valkey import free_port

BIN = Path(sys.executable).parent


@dataclass
class Started:
    """One program that the bench started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"    {self.name}: {line}" for line in lines)


@dataclass
class Side:
    """What both sides have: the programs, their environment, their end."""

    name: str  # also the pool's
    folder: Path
    env: Mapping[str, str]
    slots: int
    parts: list[Started] = field(default_factory=list)
    #: where the kernel counts what all of them use, if anybody asks
    group: Group | None = None

    @property
    def mark(self) -> str:
        return processes.mark_of(self.name)

    def launch(self, name: str, argv: Sequence[str]) -> Started:
        log = self.folder / f"{name}.log"
        env = {**self.env, MARK: self.mark}
        with log.open("ab") as out:
            process = subprocess.Popen(
                argv, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        if self.group is not None:
            self.group.add(process.pid)
        self.parts.append(Started(name, process, log))
        return self.parts[-1]

    def start(self, workers: int = 1) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raise with its last lines when a part has ended by itself."""
        for part in self.parts:
            if part.process.poll() is not None:
                raise RuntimeError(f"{part.name} ended with {part.process.returncode}:\n{part.tail()}")

    def tails(self) -> str:
        return "\n".join(part.tail() for part in self.parts)

    def stop(self) -> None:
        """TERM, time, KILL: parts in reverse order, then whatever is left of the side."""
        for part in reversed(self.parts):
            if part.process.poll() is None:
                part.process.send_signal(signal.SIGTERM)
            try:
                part.process.wait(20)
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait(5)
        self.parts.clear()
        processes.end_all(self.mark)

    def helpers(self) -> tuple[list[Process], list[Process]]:
        """What is neither a program that we started nor part of an engine: the parents of engines, and others."""
        programs = {part.process.pid for part in self.parts}
        found = processes.of_side(self.mark)
        by_pid = {process.pid: process for process in found}

        def of_engine(process: Process | None) -> bool:
            while process is not None:
                if "prefect.engine" in process.command or "_workspace_supervisor" in process.command:
                    return True
                process = by_pid.get(process.parent)
            return False

        helpers = [process for process in found if process.pid not in programs and not of_engine(process)]
        above = {process.parent for process in found if of_engine(process)}
        return [one for one in helpers if one.pid in above], [one for one in helpers if one.pid not in above]


@contextmanager
def stopping(*sides: Side) -> Iterator[None]:
    """Stop these sides behind the block, and print the ends of their logs where it fails."""
    try:
        yield
    except BaseException:
        for side in sides:
            print(side.tails(), file=sys.stderr)
        raise
    finally:
        for side in sides:
            side.stop()


@contextmanager
def running(side: Side, workers: int = 1) -> Iterator[Side]:
    """The side's programs, from ready to gone."""
    with stopping(side):
        side.start(workers)
        yield side
        side.check()


class Stock(Side):
    """`prefect worker start --type process`."""

    def start(self, workers: int = 1) -> None:
        for number in range(1, workers + 1):
            self.launch(
                f"stock-{number}",
                [
                    *(str(BIN / "prefect"), "worker", "start", "--pool", self.name, "--type", "process"),
                    *("--limit", str(self.slots), "--name", f"stock-{number}"),
                ],
            )
        wait(self._ready, 90, "the stock worker to start")

    def _ready(self) -> bool:
        self.check()
        return all("started!" in part.log.read_text(errors="replace") for part in self.parts)


class Fleet(Side):
    """One poller and workers of ours."""

    def start(self, workers: int = 1) -> None:
        addresses = [self._launch("poller", "poller", "start")]
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            options = ("--pool", self.name, "--slots", str(self.slots), "--python", sys.executable)
            addresses.append(self._launch(name, "worker", "start", "--name", name, "--on-stop", "cancel", *options))
        wait(lambda: self._ready(addresses), 90, "poller and workers to be ready")

    def _launch(self, name: str, program: str, *argv: str) -> str:
        address = f"http://127.0.0.1:{free_port()}"
        self.launch(name, [str(BIN / program), *argv, "--agent-address", address])
        return address

    def _ready(self, addresses: Sequence[str]) -> bool:
        self.check()
        return all(_answers(f"{address}/api/ready") for address in addresses)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def environment(folder: Path, server: Mapping[str, str], api: str, redis: str) -> dict[str, str]:
    """What a side runs with: nothing of the user's own settings, the door of the proxy as the API."""
    env = {name: value for name, value in server.items() if not name.startswith("FLOWFLEET_")}
    for name in ("PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        env.pop(name, None)
    env |= {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "home"),
        "FLOWFLEET_REDIS": redis,
        "FLOWFLEET_FLEET": "bench",
        "XDG_STATE_HOME": str(folder / "state"),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    return env
