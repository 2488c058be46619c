"""Child: one process of `flowfleet up` or of an agent, in a session of its own, with its log file."""

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
from urllib.parse import urlsplit

import psutil

from flowfleet.errors import FleetError, SettingsError
from flowfleet.local import lifeline
from flowfleet.local.data_folder import DataFolder

#: how a part that has nothing to complain of ends, in the words of `Part.ended`
ENDED_IN_ORDER = "ended with code 0"
_LAST_LINES = 12
_POLL_SECONDS = 0.05
#: how long to wait after KILL, when only the kernel has something left to do
_KILL_SECONDS = 5.0


class PartDied(FleetError):
    """A part ended by itself, or did not get ready."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process that `flowfleet up` or an agent is responsible for: it watches and stops the process.

    This program has started it, or an earlier one, killed before it could clean up, has left it running.
    """

    name: str
    folder: DataFolder
    process: psutil.Process
    #: None: an earlier program has left the process
    child: subprocess.Popen[bytes] | None
    #: seconds between TERM and KILL
    grace: float
    #: True when TERM goes to the whole process group: the `prefect` command is only the parent of its server
    whole_group: bool

    @classmethod
    def start(
        cls,
        name: str,
        folder: DataFolder,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        log_mode: str | None = "wb",
        grace: float = 10.0,
        whole_group: bool = False,
        tied: bool = False,
    ) -> Part:
        """Start a process as a part.

        Each start writes a new log; `log_mode` "ab" goes on with the last one, and None prints where this program does.
        A `tied` part is a program of ours that ends in order once this process is gone, even killed.
        """
        words = folder.words(name)
        words.unlink(missing_ok=True)
        with contextlib.ExitStack() as files:
            log = files.enter_context(folder.log(name).open(log_mode)) if log_mode else None
            # a session of its own: Ctrl-C in the terminal is for this program alone, which knows the order to stop in
            child = subprocess.Popen(
                argv,
                env={**env, **lifeline.variables(words)} if tied else env,
                cwd=cwd,
                stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                start_new_session=True,
            )
        process = psutil.Process(child.pid)
        # a pid alone may be another process's tomorrow
        note = {"pid": child.pid, "created": process.create_time()}
        folder.note(name).write_text(json.dumps(note), encoding="utf-8")
        return cls(name=name, folder=folder, process=process, child=child, grace=grace, whole_group=whole_group)

    @classmethod
    def left(cls, name: str, folder: DataFolder, *, grace: float = 10.0, whole_group: bool = False) -> Part | None:
        """The part of this name that an earlier program has left running, as its note says; None where it is gone."""
        try:
            facts = json.loads(folder.note(name).read_text(encoding="utf-8"))
            process = psutil.Process(int(facts["pid"]))
            # the time of creation derives from the boot time, which a clock step may move a little
            if not _alive(process) or abs(process.create_time() - float(facts["created"])) >= 2.0:
                return None
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return cls(name=name, folder=folder, process=process, child=None, grace=grace, whole_group=whole_group)

    @property
    def log(self) -> Path:
        """The path of the log file."""
        return self.folder.log(self.name)

    @property
    def pid(self) -> int:
        """The process id, and that of the process group, which each part leads."""
        return int(self.process.pid)

    @property
    def adopted(self) -> bool:
        """Whether an earlier program has left the process."""
        return self.child is None

    def ended(self) -> str | None:
        """How the process ended, in words; None while it lives."""
        if self.child is None:
            # the exit code of a process that is not our child cannot be seen
            return None if _alive(self.process) else "has ended"
        code = self.child.poll()
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def listens(self, url: str) -> bool:
        """Whether this process, or one below it, listens on the TCP port of this URL.

        An answer from there may be a stranger's. True as well where the system does not let us see who listens.
        """
        port = urlsplit(url).port
        try:
            family = (self.process, *self.process.children(recursive=True))
            return any(_listens(process, port) for process in family)
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            return False

    def last_words(self) -> str:
        """The sentence with which a tied part has ended; empty where it had none to say."""
        try:
            return self.folder.words(self.name).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def wait(self) -> int | None:
        """Wait for the end of the process, and return its exit code; None for one that is not our child."""
        code: int | None = (self.child or self.process).wait()
        return code

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the process in order: TERM, its grace, then KILL to its whole group. Returns when it is gone.

        The grace ends at once when `hurry` returns True.
        """
        running = self.process.is_running()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if running:
                (os.killpg if self.whole_group else os.kill)(self.pid, signal.SIGTERM)
                wait_until(lambda: self._over() or hurry(), self.grace)
            # even after an orderly end: what it may have left in its group has nobody else to end it; but the pid of an
            # adopted process that was gone already may be another's by now
            if running or not self.adopted:
                os.killpg(self.pid, signal.SIGKILL)
        wait_until(lambda: self.ended() is not None and not group_alive(self.pid), _KILL_SECONDS)
        if self.child is not None and self.child.stdin is not None:
            self.child.stdin.close()  # not before: to a tied part its end is a second signal
        self.folder.note(self.name).unlink(missing_ok=True)

    def _over(self) -> bool:
        return self.ended() is not None and not (self.whole_group and group_alive(self.pid))


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


def _listens(process: psutil.Process, port: int | None) -> bool:
    found = process.net_connections(kind="tcp")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in found)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Call `condition` until it is true or the seconds are over."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() <= until:
        time.sleep(_POLL_SECONDS)


def part_died(part: Part, how: str) -> PartDied:
    """The error about a part that has failed, with the end of its log; `how` says in words what happened."""
    lines: list[str] = []
    with contextlib.suppress(OSError), part.log.open("rb") as file:
        file.seek(max(0, part.log.stat().st_size - 16384))
        lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    text = "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
    return PartDied(f"The {part.name} {how}. The end of {part.log}:\n{text}")


def wait_ready(
    part: Part, ready: Callable[[], bool], seconds: float, *, pause: Callable[[float], None] = time.sleep
) -> float:
    """Wait until a part is ready and return the seconds it took. Raises `PartDied`; `pause` may raise to break off."""
    began = time.monotonic()
    while not ready():
        how = part.ended()
        if how is not None:
            raise part_died(part, f"{how} while it was starting")
        if time.monotonic() - began > seconds:
            raise part_died(part, f"was not ready after {seconds:.0f} s")
        pause(_POLL_SECONDS)
    return time.monotonic() - began


def console_script(name: str) -> str | None:
    """The path of a console script: beside our own interpreter, else on PATH; None when there is none."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def own_script(name: str) -> str:
    """The path of a console script of ours; raises `SettingsError` when there is none."""
    found = console_script(name)
    if found is None:
        raise SettingsError(f"The command {name} is not installed beside {sys.executable}: install flowfleet again.")
    return found
