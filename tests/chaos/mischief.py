"""Mischief: what a monkey does to a fleet on the API without locks; each deed says which live runs it has met."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowfleet.errors import LedgerError
from flowfleet.ledger import connect
from tests import folders, processes
from tests.chaos.arena import GRACE_SECONDS, TTL_SECONDS, Arena, ArenaPart
from tests.lawless_api import Fault
from tests.tcp_bridge import TO_CLIENT
from tests.valkey import Valkey

POLLERS, WORKERS = ("agent-a", "agent-b"), ("one", "two")
#: the live runs that it met; None = there was nothing to do it to
Deed = Callable[[], set[str] | None]


@dataclass
class Mischief:
    """Harm, and what undoes it; `done` and `met` count it by kind."""

    arena: Arena
    valkey: Valkey
    random: random.Random
    #: runs that are claimed or begun, and not at their end
    live: Callable[[], set[str]]
    done: Counter[str] = field(default_factory=Counter)
    #: those that did something to a live run
    met: Counter[str] = field(default_factory=Counter)
    #: runs whose shim was killed, and runs that were cancelled
    unsure: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    wiped: bool = False

    def __post_init__(self) -> None:
        #: what undoes a fault, by the time when that is due
        self._later: list[tuple[float, Callable[[], object]]] = []
        #: faults of single requests that nobody has met yet, and of which kind they are
        self._awaited: list[tuple[str, Fault, int]] = []
        self._trouble: set[str] = set()
        arena, bridge = self.arena, self.arena.api_bridge

        def at_requests(*fault: Any) -> Deed:
            return lambda: self._at_requests(*fault)

        self._kinds: dict[str, tuple[int, Deed]] = {
            "kill worker": (5, lambda: self._signal(WORKERS, signal.SIGKILL)),
            "kill poller": (4, lambda: self._signal(POLLERS, signal.SIGKILL)),
            "freeze worker": (4, lambda: self._freeze(WORKERS, TTL_SECONDS + GRACE_SECONDS - 2.5)),
            "freeze poller": (3, lambda: self._freeze(POLLERS, 6.0)),
            "kill shim": (3, self._kill_shim),
            "freeze shim": (2, self._freeze_shim),
            "stop worker in order": (2, lambda: self._signal(WORKERS, signal.SIGTERM)),
            "cut Redis": (3, lambda: self._on_the_line("Redis", arena.bridge.cut, arena.bridge.mend, 4.0)),
            "slow line to Redis": (2, self._slow_redis),
            "freeze Redis": (2, self._freeze_redis),
            "restart Redis": (1, self._restart_redis),
            "kill Redis": (1, self._wipe_redis),
            "API away": (3, lambda: self._on_the_line("API", bridge.cut, bridge.mend, 6.0)),
            "API frozen": (2, lambda: self._on_the_line("API", lambda: bridge.hold(TO_CLIENT), bridge.let_go, 5.0)),
            "API slow": (2, self._slow_api),
            "API answers 503": (3, at_requests("API answers 503", "", "status", 12)),
            "API breaks after doing": (3, at_requests("API breaks after doing", "POST", "drop_after", 3)),
            "API says nothing": (1, at_requests("API says nothing", "", "mute", 2)),
            "API refuses in bulk": (2, at_requests("API refuses in bulk", "bulk", "null_abort", 2)),
            "cancel a run": (3, self._cancel),
        }

    def harm(self) -> None:
        """One deed of chance."""
        names = list(self._kinds)
        (name,) = self.random.choices(names, [self._kinds[one][0] for one in names])
        met = self._kinds[name][1]()
        if met is not None:
            self.done[name] += 1
            self.met[name] += bool(met)

    def undo(self, now: float) -> None:
        """Undo what is due, and see which faults of requests were met."""
        due = [undo for at, undo in self._later if at <= now]
        self._later = [(at, undo) for at, undo in self._later if at > now]
        for undo in due:
            undo()
        for name, fault, times in list(self._awaited):
            if fault.times < times:
                self._awaited.remove((name, fault, times))
                self.done[name] += 1
                self.met[name] += bool(self.live())

    def heal(self) -> None:
        """Undo what is not undone yet."""
        self.undo(float("inf"))
        self._awaited.clear()
        self.arena.local.heal()

    def _after(self, least: float, most: float, undo: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + self.random.uniform(least, most), undo))

    # parts

    def _part(self, names: tuple[str, ...]) -> tuple[str, ArenaPart | None]:
        """One of them, and its process if that lives and goes on."""
        name = self.random.choice(names)
        part: ArenaPart = self.arena.kept[name][0]
        alive = part.process.poll() is None and not processes.stopped(part.pid)
        return name, part if alive else None

    def _runs_of(self, name: str) -> set[str]:
        """The live runs that this part has in hand: a worker's by its folders, all of them where a poller leads."""
        if name in WORKERS:
            held = folders.found(self.arena.folder, f"state/**/{name}/runs/*.*")
            return {path.name.partition(".")[0] for path in held if not (path / "settled").exists()} & self.live()
        ledger = connect(self.valkey.tcp_url, self.arena.fleet, socket_timeout=5)
        try:
            leader = ledger.gate.leader()
        except LedgerError:
            return set()
        finally:
            ledger.close()
        return self.live() if leader is not None and leader.name == name else set()

    def _signal(self, names: tuple[str, ...], number: signal.Signals) -> set[str] | None:
        name, part = self._part(names)
        if part is None:
            return None
        met = self._runs_of(name)
        part.signal(number)
        if number == signal.SIGKILL:
            part.wait()
        return met

    def _freeze(self, names: tuple[str, ...], most: float) -> set[str] | None:
        name, part = self._part(names)
        if part is None:
            return None
        met = self._runs_of(name)
        part.signal(signal.SIGSTOP)
        self._after(0.3, most, lambda: part.signal(signal.SIGCONT))
        return met

    # shims

    def _shim(self) -> tuple[int, set[str]]:
        """A shim of a live run; 0 = there is none."""
        live = self.live()
        shims = [
            (pid, runs) for pid in self.arena.shims() if not processes.stopped(pid) and (runs := _named(pid, live))
        ]
        return self.random.choice(shims) if shims else (0, set())

    def _kill_shim(self) -> set[str] | None:
        pid, runs = self._shim()
        if not pid:
            return None
        self.unsure |= runs
        processes.kill(pid)
        return runs

    def _freeze_shim(self) -> set[str] | None:
        pid, runs = self._shim()
        if not pid:
            return None
        processes.kill(pid, signal.SIGSTOP)
        self._after(0.3, 4.0, lambda: processes.kill(pid, signal.SIGCONT))
        return runs

    # lines

    def _on_the_line(
        self, line: str, harm: Callable[[], object], mend: Callable[[], object], most: float
    ) -> set[str] | None:
        """One trouble at a time on each line."""
        if line in self._trouble:
            return None

        def undo() -> None:
            self._trouble.discard(line)
            mend()

        self._trouble.add(line)
        harm()
        self._after(0.3, most, undo)
        return self.live()

    def _slow_redis(self) -> set[str] | None:
        seconds, bridge = self.random.uniform(0.05, 0.4), self.arena.bridge

        def delay(by: float) -> None:
            bridge.delay = by

        return self._on_the_line("Redis", lambda: delay(seconds), lambda: delay(0.0), 6.0)

    def _slow_api(self) -> set[str] | None:
        # the answers alone: a write that comes late would come over later ones, at an API that refuses none
        seconds, bridge = self.random.uniform(0.5, 2.0), self.arena.api_bridge

        def delay(by: float) -> None:
            bridge.late_answers = by

        return self._on_the_line("API", lambda: delay(seconds), lambda: delay(0.0), 8.0)

    # Redis

    def _freeze_redis(self) -> set[str]:
        self.valkey.freeze()
        time.sleep(self.random.uniform(0.3, 3.0))
        self.valkey.thaw()
        return self.live()

    def _restart_redis(self) -> set[str]:
        self.valkey.restart()
        return self.live()

    def _wipe_redis(self) -> set[str]:
        self.wiped = True
        self.valkey.restart(kill=True, wipe=True)
        return self.live()

    # the API

    def _at_requests(self, name: str, where: str, kind: str, times: int) -> None:
        # counted when the first of them has been met
        times = self.random.randint(1, times)
        self._awaited.append((name, self.arena.local.fail(where, kind, times=times), times))

    def _cancel(self) -> set[str] | None:
        runs = sorted(run for run in self.live() - self.cancelled if self.arena.state(run)["type"] == "RUNNING")
        run = self.random.choice(runs) if runs else ""
        if not run or not self.arena.local.cancel(run):
            return None
        self.cancelled.add(run)
        return {run}

    def cancel(self, run: str) -> None:
        """Cancel this one, as a user does who waits for nothing else."""
        if self.arena.local.cancel(run):
            self.cancelled.add(run)


def _named(pid: int, runs: set[str]) -> set[str]:
    """Which of the runs the process names in its title."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return set()
    return {run for run in runs if run in title}
