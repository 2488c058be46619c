"""Control group: the cgroup that a run has of its own: it counts memory and kills for memory, and may limit it.

The command makes it and enters it, between its fork and its gate; the shim reads it, and removes it when the tree is
gone. Version 1 (the controller `memory`) and version 2 are told apart by their files. Standard library only: part of
the shim.
"""

from __future__ import annotations

import os
import signal
import time

from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable

_CLEAR_SECONDS = 2.0
_LOOK_SECONDS = 0.02
#: microseconds in which a group may use its share of the processors, and the least share that the kernel takes
_PERIOD, _LEAST_QUOTA = 100_000, 1_000
#: another process may sweep the empty group away before it is entered
_TRIES = 3


def enter(path: str, *, memory: int | None = None, cpus: float | None = None) -> bool:
    """Make the group with these limits and move this process, which has one thread, into it; False = it is not in it.

    `memory` is in bytes, swap included; `cpus` are processors, fractions too.
    """
    for _ in range(_TRIES):
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass
        except OSError:
            return False
        try:
            _limit(path, memory, cpus)
            _write(_entrance(path), b"0")
        except OSError:
            remove(path)
            continue
        return True
    return False


def remove(path: str) -> bool:
    """Remove the group; False while a process is in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def members(path: str) -> list[int]:
    """The pids of the processes in the group; empty where there is no group."""
    try:
        with open(os.path.join(path, "cgroup.procs"), "rb") as file:
            return [pid for pid in map(int, file.read().split()) if pid > 0]  # 0: of another pid namespace
    except (OSError, ValueError):
        return []


def kill(path: str) -> None:
    """Kill all processes in the group."""
    try:
        _write(os.path.join(path, "cgroup.kill"), b"1")  # in one step, but of version 2 and newer kernels only
    except OSError:
        for member in members(path):
            try:
                os.kill(member, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass


def clear(path: str, wait: Callable[[float], None]) -> bool:
    """Kill what is left in the group and remove it; False if something would not die in time."""
    deadline = time.monotonic() + _CLEAR_SECONDS
    while not remove(path):
        last = time.monotonic() > deadline  # before the kill: who was held up for longer has killed nothing meanwhile
        kill(path)
        wait(_LOOK_SECONDS)
        if last:
            return remove(path)
    return True


def _limit(path: str, memory: int | None, cpus: float | None) -> None:
    unified = not os.path.exists(os.path.join(path, "tasks"))
    if memory is not None:
        size = str(memory).encode()
        _write(os.path.join(path, "memory.max" if unified else "memory.limit_in_bytes"), size)
        # with swap beside it a limit is none; kernels that do not count swap have no such file
        swap = os.path.join(path, "memory.swap.max" if unified else "memory.memsw.limit_in_bytes")
        if os.path.exists(swap):
            _write(swap, b"0" if unified else size)
    if cpus is not None:
        quota = max(_LEAST_QUOTA, round(cpus * _PERIOD))
        if unified:
            _write(os.path.join(path, "cpu.max"), b"%d %d" % (quota, _PERIOD))
        else:
            _write(os.path.join(path, "cpu.cfs_period_us"), b"%d" % _PERIOD)
            _write(os.path.join(path, "cpu.cfs_quota_us"), b"%d" % quota)


def _entrance(path: str) -> str:
    # a single thread that moves itself by `tasks` waits for no lock of the kernel; version 2 has `cgroup.procs` alone
    tasks = os.path.join(path, "tasks")
    return tasks if os.path.exists(tasks) else os.path.join(path, "cgroup.procs")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)  # never creates a file, should the folder be no group
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


class RunGroup:
    """The group of a run that has entered it, as its shim reads it."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` where there is no such group."""
        self.path = path
        #: whether each kill for memory in the group is noticed; version 1 tells nothing of those for the whole host
        self.tells_all = not os.path.exists(os.path.join(path, "tasks"))
        self._events = os.open(self._events_file(), os.O_RDONLY)
        #: turns readable at (in version 1: right before) a kill for memory; -1 = the kernel does not tell
        self.notice = syscalls.watch_file(self._events_file()) if self.tells_all else self._watch_oom_control()

    def _events_file(self) -> str:
        names = ("memory.events.local", "memory.events") if self.tells_all else ("memory.oom_control",)
        paths = [os.path.join(self.path, name) for name in names]
        return next((path for path in paths if os.path.exists(path)), paths[-1])

    def _watch_oom_control(self) -> int:
        notice = syscalls.event_counter()
        if notice >= 0:
            try:
                _write(os.path.join(self.path, "cgroup.event_control"), b"%d %d" % (notice, self._events))
            except OSError:
                os.close(notice)
                return -1
        return notice

    def take_notice(self) -> bool:
        """Whether notice was given since this was asked last; the next one turns the descriptor readable again."""
        try:
            return self.notice >= 0 and bool(os.read(self.notice, 4096))
        except BlockingIOError:
            return False

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for memory; -1 where it does not say."""
        try:
            lines = os.pread(self._events, 4096, 0).splitlines()
            return next((int(line.split()[1]) for line in lines if line.startswith(b"oom_kill ")), -1)
        except (OSError, ValueError):
            return -1

    def peak_kib(self) -> int | None:
        """The most memory that the group had at once, files that it read and wrote included; None = not told."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            try:
                with open(os.path.join(self.path, name), "rb") as file:
                    return int(file.read()) // 1024
            except (OSError, ValueError):
                continue
        return None

    def close(self) -> None:
        """Close the descriptors; the group stays."""
        os.close(self._events)
        if self.notice >= 0:
            os.close(self.notice)
            self.notice = -1
