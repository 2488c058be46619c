"""System calls: the few of them, and of /proc files, that Python has no function for.

Standard library only, without dataclasses and typing: the shim carries this module, and each page of it counts once
for every run. Each function says what it returns where the platform lacks it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Iterable

LINUX = sys.platform.startswith("linux")

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_KEEP_SIZE_AND_PUNCH = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_NONBLOCK_AND_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)  # as of eventfd and of inotify
_IN_MODIFY = 2
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = getattr(_libc, "prctl", None) if LINUX else None
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None) if LINUX else None
if _prctl is not None:
    _prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def boot_clock() -> float:
    """Seconds since the host started, sleep included; a frozen process cannot fool it, nor a change of the date."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def set_name(name: str) -> None:
    """Set the name of this process in `ps -o comm` (15 bytes); does nothing where there is no such call."""
    if _prctl is not None:
        text = ctypes.create_string_buffer(name.encode()[:15])
        _prctl(_PR_SET_NAME, ctypes.addressof(text), 0, 0, 0)


def set_title(title: str) -> None:
    """Set the command line that `ps` shows, written over our own arguments, as far as they have room."""
    _overwrite(45, os.fsencode(title))


def set_environ(pairs: Iterable[tuple[str, str]]) -> None:
    """Set what `/proc/PID/environ` shows, written over what this process was started with, as far as there is room.

    Only after os.environ was cleared: the C library may still look for its variables there.
    """
    _overwrite(47, b"\0".join(os.fsencode(f"{name}={value}") for name, value in pairs))


def _overwrite(field: int, data: bytes) -> None:
    # fields of /proc/self/stat, counted from the state: arg_start, arg_end, env_start, env_end
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[field]), int(fields[field + 1])
    except (OSError, IndexError, ValueError):
        return
    room = end - start
    if start > 0 and room > 1:
        ctypes.memmove(start, data[: room - 1].ljust(room, b"\0"), room)


def become_subreaper() -> bool:
    """Make orphans below this process its children; False where the platform cannot."""
    return _prctl is not None and _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def die_with_parent() -> bool:
    """Let this process get a KILL when its parent ends, also after an exec; False where the platform cannot."""
    return _prctl is not None and _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0


def punch_hole(fd: int, length: int) -> bool:
    """Give the first `length` bytes of a file back to the disk, offsets stay; False where that is not possible."""
    return _fallocate is not None and _fallocate(fd, _KEEP_SIZE_AND_PUNCH, 0, length) == 0


def stat_fields(pid: int | str) -> list[str] | None:
    """`/proc/PID/stat` from the state on (state, parent, group, session, …), or None: no such process, no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode("ascii", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split() or None


def start_ticks(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot; pid, boot id and this identify a process."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


def children() -> list[int] | None:
    """The pids of our own children, ended ones that nobody waited for included; None without /proc."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return _children_by_scan()


def _children_by_scan() -> list[int] | None:
    # a kernel built without the children file still lists all processes
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    us = str(os.getpid())
    return [int(pid) for pid in pids if (fields := stat_fields(pid)) and fields[1] == us]


def descendants() -> dict[int, tuple[int, int]] | None:
    """All processes below us, ended ones that nobody waited for too: pid → (start ticks, group); None without /proc.

    What is forked during the look may be missing.
    """
    found: dict[int, tuple[int, int]] = {}
    below = _below_by_files() if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else _below_by_scan()
    for pid in below or ():
        fields = stat_fields(pid)
        if fields:
            found[pid] = (int(fields[19]), int(fields[2]))
    return None if below is None else found


def _below_by_files() -> list[int]:
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue  # it has ended meanwhile
        for thread in threads:
            try:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    todo += (new := [int(child) for child in file.read().split()])
            except OSError:
                continue
            found += new
    return found


def _below_by_scan() -> list[int] | None:
    # a kernel built without the children file still lists all processes
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    children_of: dict[str, list[str]] = {}
    for pid in pids:
        fields = stat_fields(pid)
        if fields:
            children_of.setdefault(fields[1], []).append(pid)
    found: list[int] = []
    todo = [str(os.getpid())]
    while todo:
        todo += (new := children_of.pop(todo.pop(), []))
        found += map(int, new)
    return found


def signal_process(pid: int, ticks: int, number: int) -> None:
    """Send a signal to the process that had this pid and start time; does nothing if it is gone.

    Between the look and the signal its pid could become a stranger's; a pidfd, where there is one, keeps that out.
    """
    try:
        if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
            os.kill(pid, number)
            return
        fd = os.pidfd_open(pid)
        try:
            if start_ticks(pid) == ticks:
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
    except ProcessLookupError:
        pass
    except OSError:  # a kernel without the call, or no descriptor is left
        if start_ticks(pid) == ticks:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # it is gone, or has become another user's


def oom_kills() -> int:
    """How often the kernel has killed for want of memory since boot; -1 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), -1)
    except (OSError, ValueError):
        return -1


def event_counter() -> int:
    """A descriptor that the kernel turns readable at an event; -1 where there is none."""
    eventfd = getattr(_libc, "eventfd", None) if LINUX else None
    return int(eventfd(0, _NONBLOCK_AND_CLOEXEC)) if eventfd is not None else -1


def watch_file(path: str) -> int:
    """A descriptor that turns readable whenever this file changes; -1 where that cannot be told."""
    start = getattr(_libc, "inotify_init1", None) if LINUX else None
    fd = int(start(_NONBLOCK_AND_CLOEXEC)) if start is not None else -1
    if fd >= 0 and _libc.inotify_add_watch(fd, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(fd)
        return -1
    return fd


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of a process that was not our child, once it is reaped; else None, as before Linux 6.15."""
    told = _pidfd_info(pidfd)
    if told is None or not struct.unpack_from("=Q", told, 0)[0] & _PIDFD_INFO_EXIT:
        return None
    return int(struct.unpack_from("=i", told, 60)[0])


def pidfd_info_works(pidfd: int) -> bool:
    """True where the kernel has this call at all."""
    return _pidfd_info(pidfd) is not None


def _pidfd_info(pidfd: int) -> bytearray | None:
    told = bytearray(64)
    struct.pack_into("=Q", told, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, told)
    except OSError:
        return None
    return told
