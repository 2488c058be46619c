"""Processes: which ones belong to a side of the bench, what they cost in CPU and memory, and their end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: the variable by which every process of a side is known; children inherit it
MARK = "BENCH_SIDE"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def mark_of(side: str) -> str:
    """The mark of a side of this very bench: another one on the machine has others, and is left alone."""
    return f"{side}.{os.getpid()}"


@dataclass(frozen=True)
class Process:
    """One process at one moment."""

    pid: int
    parent: int
    started: int  # ticks since boot: with the pid it names the process for good
    cpu_seconds: float

    @property
    def command(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""

    def carries(self, mark: str) -> bool:
        try:
            return f"{MARK}={mark}".encode() in Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def look(pid: int) -> Process | None:
    """Read one process; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Process(pid, int(fields[1]), int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS)


def everyone() -> list[Process]:
    """All processes that we may see."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [found for pid in pids if (found := look(pid))]


def of_side(mark: str) -> list[Process]:
    """The processes of a side: those that carry its mark, and their descendants."""
    everybody = everyone()
    mine = {process.pid for process in everybody if process.carries(mark)}
    grown = True
    while grown:
        more = {process.pid for process in everybody if process.parent in mine and process.pid not in mine}
        grown = bool(more)
        mine |= more
    return [process for process in everybody if process.pid in mine and process.pid != os.getpid()]


@dataclass(frozen=True)
class Memory:
    """MB of one process: resident, and its fair share of shared pages."""

    rss: float
    pss: float


def memory(pid: int) -> Memory:
    """What the kernel counts for it now."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return Memory(kib["Rss"] / 1024, kib["Pss"] / 1024)


class CpuMeter:
    """Adds up the CPU time of all processes of a side, those included that come and go.

    They are sampled, since a shim that nobody waits for leaves its sum to nobody; what a process used after its last
    sample is missed, at most one interval, on both sides alike.
    """

    def __init__(self, mark: str, interval: float = 0.2) -> None:
        self._mark = mark
        self._interval = interval
        self._first: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], float] = {}
        self._strangers: dict[tuple[int, int], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu", daemon=True)

    def __enter__(self) -> Self:
        for process in of_side(self._mark):
            self._first[process.pid, process.started] = process.cpu_seconds
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._sample()

    @property
    def seconds(self) -> float:
        return sum(last - self._first.get(key, 0.0) for key, last in self._last.items())

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic()
        found = everyone()
        known = {process.pid for process in found if (process.pid, process.started) in self._last}
        for process in found:
            key = process.pid, process.started
            if key not in self._last and now - self._strangers.setdefault(key, now) > 2:
                continue  # seen for a while, and nobody of ours: its environment is not read again
            if key in self._last or process.parent in known or process.carries(self._mark):
                self._last[key] = process.cpu_seconds


def end_all(mark: str, wait: Callable[[float], None] = time.sleep) -> int:
    """Kill whatever of a side is still alive; the number says how many there were."""
    killed = 0
    for _ in range(20):
        left = of_side(mark)
        if not left:
            break
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        wait(0.1)
    return killed
