"""Process handles: references to processes that are not our children, safe against reused pids; members of a run."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil

from workers.shim import atomic_files, syscalls

#: two readings of a start time by the date may differ by this much (clock corrections)
_CREATED_SLACK_SECONDS = 2.0


class ProcessHandle(Protocol):
    """A handle on one process that need not be our child; it never means another process that has got the same pid."""

    def alive(self) -> bool:
        """False once the process has ended, also while nobody has reaped it."""

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process and to no other; does nothing if it has ended."""

    def fileno(self) -> int | None:
        """A descriptor that turns readable when the process ends; None where there is none, so `alive` is polled."""

    def exit_status(self) -> int | None:
        """The wait status of the ended process; None where the kernel does not tell it, or does not tell it yet."""

    def close(self) -> None:
        """Close the descriptor; the process goes on."""


@dataclass(frozen=True)
class PidfdHandle:
    """A handle on a process by a pidfd."""

    fd: int

    @classmethod
    def take(cls, pid: int, ticks: int) -> PidfdHandle | None:
        """Open a pidfd for the process with this pid and start time; None = gone, or the pid is another's by now.

        Raises `OSError` where that cannot be told (no descriptor is left): the process may well be alive.
        """
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        handle = cls(fd)
        # in this order: what the descriptor holds can no longer be replaced while its start time is read
        seen = syscalls.start_ticks(pid)
        if seen == ticks and handle.alive():
            return handle
        unreadable = seen is None and handle.alive()
        handle.close()
        if unreadable:
            raise OSError(errno.EIO, "its start time cannot be read")
        return None

    def alive(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            signal.pidfd_send_signal(self.fd, number)

    def fileno(self) -> int | None:
        return self.fd

    def exit_status(self) -> int | None:
        return syscalls.pidfd_exit_status(self.fd)

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class PolledHandle:
    """A handle on a process without a descriptor, which is asked again and again whether it lives."""

    pid: int
    #: whether the process lives; raises `OSError` where that cannot be told
    alive: Callable[[], bool]
    #: False for a pid of another namespace, which must not be signalled
    ours: bool = True

    def send(self, number: signal.Signals) -> None:
        if self.ours and self.alive():
            _kill(self.pid, number)

    def fileno(self) -> int | None:
        return None

    def exit_status(self) -> int | None:
        return None

    def close(self) -> None:
        return


def by_lock(pid: int, path: Path, *, ours: bool = True) -> PolledHandle:
    """A handle on a shim by the lock that it keeps on its start file; works on every platform, in any pid namespace."""
    return PolledHandle(pid, partial(atomic_files.locked, path), ours)


def by_start_time(pid: int, earliest: float, latest: float) -> PolledHandle:
    """A handle on a process by its pid and the span in which it was started, for platforms without pidfd."""

    def alive() -> bool:
        try:
            process = psutil.Process(pid)
            same = earliest - _CREATED_SLACK_SECONDS <= process.create_time() <= latest + _CREATED_SLACK_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return PolledHandle(pid, alive)


def members(run_id: str, claim: str, *, session: int, group: int) -> list[int]:
    """The living processes of a run whose shim is dead: by session and group, and by the marker in their environment.

    Neither alone would do: a daemon leaves session and group, and a program may clear its environment.
    """
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return [process.pid for process in others if _belongs(process, run_id, claim, session, group)]


def _belongs(process: psutil.Process, run_id: str, claim: str, session: int, group: int) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if group > 0 and os.getsid(process.pid) == session and os.getpgid(process.pid) == group:
            return True
        environment = process.environ()
    except (psutil.Error, OSError):
        return False  # gone, or of another user: then not of this run
    return environment.get("FLOWFLEET_CLAIM") == claim and environment.get("FLOWFLEET_RUN_ID") == run_id


def signal_members(
    run_id: str, claim: str, number: signal.Signals, *, session: int, group: int, also: Iterable[int] = ()
) -> int:
    """Send a signal to what is left of a run whose shim is dead; returns how many processes have got it.

    `also` are processes that are known to be the run's by other means. One of another user (`sudo`) gets none.
    """
    return sum(_kill(pid, number) for pid in {*members(run_id, claim, session=session, group=group), *also})


def _kill(pid: int, number: signal.Signals) -> bool:
    if pid <= 0:
        return False  # a record without a pid: 0 would be our own group
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):  # it has ended meanwhile, or became another user's
        return False
    return True
