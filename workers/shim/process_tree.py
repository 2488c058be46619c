"""Process tree: all processes of one run, as its shim signals, reaps, counts and clears them.

A process group alone would not do: a child with a session of its own, or a daemon, has left it. Where there is /proc,
every process below the shim is found, and a subreaper has the orphans below it too. Without /proc (macOS) only the
group can be signalled: what has left it goes on, and so does a daemon after the end of the run.

Standard library only: part of the shim.
"""

from __future__ import annotations

import os
import signal
import time

from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable, Mapping

_CLEAR_SECONDS = 5.0
_LOOK_SECONDS = 0.02
#: a tree that forks faster than it is killed does not hold up the shim's loop for longer; it is killed on with the next
#: look
_KILL_SECONDS = 0.5


class ProcessTree:
    """The command's process group, and with a subreaper every orphan that it leaves."""

    def __init__(self, root: int, *, proc: bool, subreaper: bool) -> None:
        """`root` is the pid of the forked command, also the id of its group; 0 while nothing is forked."""
        self._proc = proc
        self._subreaper = subreaper and syscalls.become_subreaper()
        self._root = root
        self._status: int | None = None
        #: peak memory of the largest process and CPU time of all, of those that have ended
        self.max_rss_kib = 0
        self.cpu_seconds = 0.0

    def signal_all(self, number: int) -> None:
        """Send a signal once to each process of the run, the command and its group first."""
        self._signal_group(number)
        for pid, (ticks, group) in self._below().items():
            if group != self._root:  # a second TERM ends programs that would have made good use of one
                syscalls.signal_process(pid, ticks, number)

    def kill_all(self) -> None:
        """Kill each process of the run, until no look finds a new one."""
        self._signal_group(signal.SIGKILL)
        self._kill_below()

    def _kill_below(self) -> None:
        seen: set[tuple[int, int]] = set()
        deadline = time.monotonic() + _KILL_SECONDS
        while time.monotonic() < deadline:
            new = {(pid, ticks) for pid, (ticks, _) in self._below().items()} - seen
            if not new:
                return
            seen |= new
            for pid, ticks in new:
                syscalls.signal_process(pid, ticks, signal.SIGKILL)

    def _below(self) -> Mapping[int, tuple[int, int]]:
        # all below the shim: it has no other children than the run's. A pid with its start time and its group
        return (syscalls.descendants() if self._proc and self._root else None) or {}

    def _signal_group(self, number: int) -> None:
        if not self._root:
            return  # 0 would be our own group
        try:
            os.killpg(self._root, number)
        except (ProcessLookupError, PermissionError):
            pass  # macOS answers EPERM for a group of zombies only

    def ended(self) -> bool:
        """True once the command has ended; it stays a zombie for now, so that no other group can get its number."""
        if not self._proc:  # macOS has waitid from Python 3.13 on only
            self._reap_all()
            return self._status is not None
        while True:
            try:
                end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return True
            if end is None:
                return False
            if end.si_pid == self._root:
                return True
            self._reap(end.si_pid)

    def kill_group(self) -> tuple[int, int]:
        """Kill the group of an ended command; returns its exit code or minus its signal, and how many outlived it."""
        leftovers = self._count_leftovers()
        self._signal_group(signal.SIGKILL)
        if self._status is None:
            self._reap(self._root)
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status), leftovers

    def clear(self, wait: Callable[[float], None]) -> bool:
        """Kill what is left until nothing is; False if something would not die in time."""
        deadline = time.monotonic() + _CLEAR_SECONDS
        while self._anything_left():
            # looked at before the kill: a shim that was itself held up for longer has killed nothing meanwhile
            last = time.monotonic() > deadline
            self._kill_below()  # no group any more: its number may be another's by now
            wait(_LOOK_SECONDS)
            if last:
                return not self._anything_left()
        return True

    def _anything_left(self) -> bool:
        return self._reap_all() or self._group_alive()

    def _count_leftovers(self) -> int:
        # the processes that have outlived the command; 1 stands for any number where they cannot be counted
        pids = syscalls.children() if self._subreaper else None
        if pids is None:
            # asked only of a command that is reaped: its zombie would count as a living group
            return int(self._status is not None and self._group_alive())
        states = [syscalls.stat_fields(pid) for pid in pids if pid != self._root]
        return sum(1 for fields in states if fields and fields[0] not in "ZX")

    def _reap(self, pid: int, flags: int = 0) -> int:
        pid, status, usage = os.wait4(pid, flags)
        if pid == 0:
            return 0
        unit = 1 if syscalls.LINUX else 1024  # macOS counts bytes
        self.max_rss_kib = max(self.max_rss_kib, usage.ru_maxrss // unit)
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        if pid == self._root:
            self._status = status
        return pid

    def _reap_all(self) -> bool:
        """Reap children that have ended; True while there are others (with a subreaper: all of the run)."""
        while True:
            try:
                if not self._reap(-1, os.WNOHANG):
                    return True
            except ChildProcessError:
                return False

    def _group_alive(self) -> bool:
        if self._subreaper or not self._root:
            # with a subreaper every member becomes our child, and the children are counted; or nothing was forked
            return False
        try:
            os.killpg(self._root, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
