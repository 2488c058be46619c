"""Log cap: the log file of a run, kept below a soft cap while the run writes to it, and its last lines.

The run writes to the file itself (O_APPEND), so no reader's death can break it. To keep the newest part, the head of
the file is given back to the disk as a hole: offsets stay what they were, and no line is lost or torn. Where a file
system has no holes, the tail is copied to the front and the file cut, at the risk of losing what is written in
that moment.
"""

from __future__ import annotations

import os

from . import syscalls

_CHUNK = 64 * 1024


class LogCap:
    """The soft cap of one log file, applied every few seconds."""

    def __init__(self, path: str, limit: int, *, holes: bool) -> None:
        self._limit = limit
        self._fd = os.open(path, os.O_RDWR)
        self._holes = holes

    def apply(self) -> None:
        """Drop the oldest lines if the file takes more room than its cap; a full or broken disk changes nothing."""
        try:
            self._apply()
        except OSError:
            pass  # the run matters more than the size of its log; tried again at the next call

    def _apply(self) -> None:
        status = os.fstat(self._fd)
        if self._limit <= 0 or min(status.st_size, status.st_blocks * 512) <= self._limit:
            return
        cut = self._line_start(status.st_size - self._limit)
        if self._holes and syscalls.punch_hole(self._fd, cut):
            return
        self._holes = False
        self._copy_down(cut)

    def _line_start(self, offset: int) -> int:
        # the first line that begins at or after the offset; within one endless line the offset itself
        position = offset - 1
        while data := os.pread(self._fd, _CHUNK, position):
            found = data.find(b"\n")
            if found >= 0:
                return position + found + 1
            position += len(data)
        return offset

    def _copy_down(self, cut: int) -> None:
        written = 0
        # until nothing new has arrived: what comes between the last look and the cut is lost
        while data := os.pread(self._fd, _CHUNK, cut + written):
            written += os.pwrite(self._fd, data, written)
        os.ftruncate(self._fd, written)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def last_lines(path: str | os.PathLike[str], *, count: int = 10, limit: int = 8192) -> tuple[str, ...]:
    """The last lines of a log, at most `limit` bytes of it; empty when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ()
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - limit)
        data = os.pread(fd, limit, start)
    except OSError:
        return ()
    finally:
        os.close(fd)
    lines = data.lstrip(b"\0").decode("utf-8", "replace").splitlines()
    if start and len(lines) > 1:
        lines = lines[1:]  # the first one is cut
    return tuple(lines[-count:])
