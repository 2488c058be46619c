"""Dead man's switch: by when a run must have ended, unless its worker's right to it is renewed.

Only for runs that are started again somewhere else when their host falls silent: the leader waits until this switch
must have run out. The worker writes the deadline into the run's folder (`lease.json`) with each renewal that the ledger
accepts, by the boot-time clock: no change of the date moves it, and it goes on while the host sleeps. It is written
over in place, at one width, since that needs no room on a full disk. And it is not synced: who reads it is on the same
host, and under another boot the run is gone and the clock means nothing.

Standard library only: part of the shim.
"""

from __future__ import annotations

import json
import os

from . import syscalls

NAME = "lease.json"
#: the record of such a stop, as `stop.json` has it of others; the reason is `StopReason.SWITCH`
STOP = {"reason": "dead-mans-switch"}
#: the shim looks at the file this often, so a host that was frozen ends its overdue runs so soon after the thaw
LOOK_SECONDS = 1.0
_WIDTH = 20


def write(folder: str | os.PathLike[str], deadline: float) -> None:
    """Write the deadline (boot-time clock) of the run in this folder; raises `OSError`."""
    text = f"{deadline:.6f}".ljust(_WIDTH)
    # twice, so that a reader knows a text that is half the old and half the new one
    data = f'{{"v": 1, "deadline": {text}, "again": {text}}}\n'.encode()
    fd = os.open(os.path.join(folder, NAME), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)


def read(folder: str | os.PathLike[str]) -> float | None:
    """The deadline (boot-time clock) of the run in this folder; None when there is none that can be read."""
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            record = json.loads(file.read(200))
        return float(record["deadline"]) if record["deadline"] == record["again"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Switch:
    """The switch of one run, as its shim holds it."""

    def __init__(self, folder: str, deadline: float | None) -> None:
        """`deadline` holds until another one stands in the folder; None = the run has no switch."""
        self._folder = folder
        self._deadline = deadline

    def shortened(self, timeout: float) -> float:
        """The time to wait: not until the deadline, which may be moved, and for which `select` has no clock."""
        return timeout if self._deadline is None else min(timeout, LOOK_SECONDS)

    def over(self) -> bool:
        """Whether the time of the run is over, by the deadline as its worker has it now."""
        # twice: a deadline that was being written at the first look, or was moved before the clock was read, is no end
        return self._seems_over() and self._seems_over()

    def _seems_over(self) -> bool:
        if self._deadline is None:
            return False
        written = read(self._folder)
        if written is not None:
            self._deadline = written
        return syscalls.boot_clock() >= self._deadline
