"""Child: one child process of `flowfleet up` or of an agent, in a session of its own, with its log file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from flowfleet.errors import FleetError

_LAST_LINES = 12
_POLL_SECONDS = 0.05
#: how long to wait after KILL, when only the kernel has something left to do
_KILL_SECONDS = 5.0


class PartDied(FleetError):
    """A part ended by itself, or did not get ready."""


class Part(Protocol):
    """A process that `flowfleet up` or an agent is responsible for: it watches and stops the process."""

    @property
    def name(self) -> str:
        """The part's name in logs, answers and `up.json`."""

    @property
    def pid(self) -> int:
        """The part's process id."""

    @property
    def log(self) -> Path:
        """The path of the part's log file."""

    def ended(self) -> str | None:
        """How the process ended, in words; None while it lives."""

    def stop(self, hurry: Callable[[], bool]) -> None:
        """End the process in order: TERM, its grace, then KILL to its whole group. Returns when it is gone.

        The grace ends at once when `hurry` returns True.
        """


@dataclass(frozen=True, kw_only=True)
class ChildCommand:
    """A command to start as a part, and how to stop its process."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path
    #: seconds between TERM and KILL
    grace: float = 10.0
    #: True when each start writes a new log
    fresh_log: bool = True
    #: True when TERM goes to the whole process group: the `prefect` command is only the parent of its server
    whole_group: bool = False


class ChildProcess:
    """A part that this program has started itself."""

    def __init__(self, command: ChildCommand, note: Path) -> None:
        self._command = command
        self._note = note
        with command.log.open("wb" if command.fresh_log else "ab") as log:
            # a session of its own: Ctrl-C in the terminal is for `up` alone, which knows the order to stop in
            self._process = subprocess.Popen(
                list(command.argv),
                env=dict(command.env),
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        remember(note, self._process.pid)

    @property
    def name(self) -> str:
        return self._command.name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> Path:
        return self._command.log

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        if self._process.poll() is None:
            if self._command.whole_group:
                os.killpg(self._process.pid, signal.SIGTERM)
            else:
                self._process.terminate()
            wait_until(lambda: self._over() or hurry(), self._command.grace)
        # even after an orderly end: what it may have left in its group has nobody else to end it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        self._note.unlink(missing_ok=True)

    def _over(self) -> bool:
        if self._process.poll() is None:
            return False
        return not (self._command.whole_group and group_alive(self._process.pid))


class AdoptedProcess:
    """A part that an earlier `up`, killed before it could clean up, has left running."""

    def __init__(
        self,
        name: str,
        process: psutil.Process,
        log: Path,
        note: Path,
        *,
        grace: float = 10.0,
        whole_group: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._note = note
        self._grace = grace
        self._whole_group = whole_group

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def ended(self) -> str | None:
        # the exit code of a process that is not our child cannot be seen
        return None if _alive(self._process) else "has ended"

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.is_running():
                # a part leads its process group, so its pid is the group's id too
                (os.killpg if self._whole_group else os.kill)(self.pid, signal.SIGTERM)
                wait_until(lambda: self._over() or hurry(), self._grace)
                os.killpg(self.pid, signal.SIGKILL)
                wait_until(lambda: not group_alive(self.pid), _KILL_SECONDS)
        self._note.unlink(missing_ok=True)

    def _over(self) -> bool:
        return not _alive(self._process) and not (self._whole_group and group_alive(self.pid))


def remember(note: Path, pid: int) -> None:
    """Write the pid and the time of creation into the note: a pid alone may be another process's tomorrow."""
    with contextlib.suppress(psutil.NoSuchProcess):
        note.write_text(json.dumps({"pid": pid, "created": psutil.Process(pid).create_time()}), encoding="utf-8")


def remembered(note: Path) -> psutil.Process | None:
    """The process that a note describes; None when it lives no more."""
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        process = psutil.Process(int(facts["pid"]))
        # the time of creation derives from the boot time, which a clock step may move a little
        if _alive(process) and abs(process.create_time() - float(facts["created"])) < 2.0:
            return process
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return None


def group_alive(group: int) -> bool:
    """True while a process of this group lives; zombies do not count, since some inits reap orphans late."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return any(_belongs(process, group) for process in psutil.process_iter())


def _belongs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and _alive(process)
    except (ProcessLookupError, PermissionError):
        return False


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Call `condition` until it is true or the seconds are over; returns whether it was true."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def last_lines(log: Path, count: int = _LAST_LINES) -> list[str]:
    """The last lines of a log; empty when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def part_died(part: Part, how: str) -> PartDied:
    """The error about a part that has failed, with the end of its log; `how` says in words what happened."""
    lines = "\n".join(f"    {line}" for line in last_lines(part.log)) or "    (it wrote nothing)"
    return PartDied(f"The {part.name} {how}. The end of {part.log}:\n{lines}")


def wait_ready(
    part: Part,
    ready: Callable[[], bool],
    seconds: float,
    *,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Wait until a part is ready and return the seconds it took. Raises `PartDied`; `pause` may raise to break off."""
    began = clock()
    while not ready():
        how = part.ended()
        if how is not None:
            raise part_died(part, f"{how} while it was starting")
        if clock() - began > seconds:
            raise part_died(part, f"was not ready after {seconds:.0f} s")
        pause(_POLL_SECONDS)
    return clock() - began


def console_script(name: str, which: Callable[[str], str | None] = shutil.which) -> str | None:
    """The path of a console script: beside our own interpreter, else on PATH; None when there is none."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else which(name)
