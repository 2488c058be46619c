"""Monkey: kills, freezes, cuts and slows parts of a fleet at random while short runs flow, by one printed seed.

    make chaos SECONDS=1800 SEED=7

At its end all is mended, the fleet comes to rest, and the oracle of the crash matrix has the word. A run that comes to
no end in time is stuck: status, explain and the logs of all parts are printed.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import processes
from tests.chaos import oracle
from tests.chaos.arena import GRACE_SECONDS, NUMBERS, TTL_SECONDS, Arena
from tests.chaos.oracle import Verdicts
from tests.chaos.zygote import Zygote
from tests.valkey import Valkey
from tests.waiting import SCALE, until

#: a run older than this that has come to no end is stuck
STUCK_SECONDS = 60.0
#: how often a game says how far it is
TOLD_SECONDS = 60.0
POLLERS, WORKERS = ("agent-a", "agent-b"), ("one", "two")


@dataclass
class Monkey:
    """One seed's way through a fleet; `run()` is all of it."""

    seed: int
    seconds: float
    arena: Arena
    valkey: Valkey
    #: faults by kind, and those of them that met a live run
    done: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    #: run → what it is expected to come to, and when it was created
    expected: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    #: what undoes a fault, by the time when that is due
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    open_runs: set[str] = field(default_factory=set)
    wiped: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.kinds: dict[str, tuple[int, Callable[[], object]]] = {
            "kill worker": (5, lambda: self._part(WORKERS).kill()),
            "kill poller": (4, lambda: self._part(POLLERS).kill()),
            "freeze worker": (4, lambda: self._freeze(WORKERS, TTL_SECONDS + GRACE_SECONDS - 2.5)),
            "freeze poller": (3, lambda: self._freeze(POLLERS, 6.0)),
            "kill shim": (3, self._kill_shim),
            "freeze shim": (2, self._freeze_shim),
            "stop worker in order": (2, lambda: self._part(WORKERS).signal(signal.SIGTERM)),
            "cut Redis": (3, self._cut_redis),
            "freeze Redis": (2, self._freeze_redis),
            "restart Redis": (1, self.valkey.restart),
            "kill Redis": (1, self._wipe_redis),
            "API answers 503": (3, lambda: self.arena.local.fail("", times=self.random.randint(1, 12))),
            "API breaks after doing": (3, lambda: self.arena.local.fail("POST", "drop_after", times=3)),
            "API says nothing": (1, lambda: self.arena.local.fail("", "mute", times=2)),
            "API refuses in bulk": (2, lambda: self.arena.local.fail("bulk", "null_abort", times=2)),
        }

    # its way

    def run(self) -> Verdicts:
        """Faults and runs until the time is over; then rest, and the oracle's word."""
        for name in POLLERS:
            self.arena.poller(name)
        for name in WORKERS:
            self.arena.worker(name, slots=4)
        until(lambda: self.arena.tend() or self.arena.deployment, 30, "a deployment for all runs")
        begun = now = time.monotonic()
        next_run = now
        # the first faults come when there is something to meet
        next_fault = now + 3.0
        next_line = now + TOLD_SECONDS
        while now - begun < self.seconds:
            self._undo(now)
            self.arena.tend()
            if now >= next_run:
                self._create(now)
                next_run = now + self.random.expovariate(1 / 1.2) * SCALE / 2
            if now >= next_fault:
                self._harm()
                next_fault = now + self.random.uniform(1.0, 7.0)
            self._look(now)
            if now >= next_line:
                next_line = now + TOLD_SECONDS
                print(f"{now - begun:.0f} s of {self.seconds:.0f}: {self._so_far()}", flush=True)
            time.sleep(0.05)
            now = time.monotonic()
        self.heal()
        self._rest()
        return self._verdicts()

    def _create(self, now: float) -> None:
        expected, hold = self.random.choice(
            [("ok", "0.1"), ("ok", "0.5"), ("code 3", "0.2"), ("ok", "3"), ("code 3", "1")]
        )
        # past the line, which may break after a run was made that nobody here would know of
        run_id = self.arena.create_past_the_line(hold, 3 if expected == "code 3" else 0)
        self.expected[run_id], self.since[run_id] = expected, now
        self.open_runs.add(run_id)

    def _harm(self) -> None:
        names = list(self.kinds)
        (name,) = self.random.choices(names, [self.kinds[one][0] for one in names])
        live = bool(self._begun())
        self.kinds[name][1]()
        self.done[name] += 1
        self.met[name] += live

    def _begun(self) -> list[str]:
        """Runs that are claimed or begun, and not at their end."""
        return [run for run in self.open_runs if self.arena.state(run)["type"] not in ("SCHEDULED", *oracle.ENDS)]

    def _look(self, now: float) -> None:
        self.open_runs = {run for run in self.open_runs if not self.arena.ended(run)}
        for run in self.open_runs:
            age = now - self.since[run]
            assert age < STUCK_SECONDS * SCALE, f"run {run} is stuck since {age:.0f} s: {self.arena.state(run)}"

    def _undo(self, now: float) -> None:
        due = [undo for at, undo in self.later if at <= now]
        self.later = [(at, undo) for at, undo in self.later if at > now]
        for undo in due:
            undo()

    def heal(self) -> None:
        """Undo what is not undone yet."""
        self._undo(float("inf"))
        self.arena.local.heal()

    def _rest(self) -> None:
        left: list[str] = []

        def rest() -> bool:
            nonlocal left
            self.arena.tend()
            self._look(time.monotonic())
            left = [f"run {run}" for run in self.open_runs] or oracle.leftovers(self.arena)
            return not left

        try:
            until(rest, 60, "the fleet to come to rest", pause=0.3)
        except AssertionError as error:
            raise AssertionError(f"the fleet does not come to rest: {left}") from error

    def _verdicts(self) -> Verdicts:
        found = Verdicts()
        for run, expected in self.expected.items():
            found.add(oracle.judge(self.arena, run, expected, unsure=run in self.unsure))
        if not self.wiped:
            found.add(oracle.claims_of_starts(self.arena))
        return found

    def report(self) -> str:
        """What the monkey has done, in one paragraph."""
        ends = Counter(self.arena.state(run)["name"] for run in self.expected)
        return (
            f"seed {self.seed}: {self._so_far()}; ends {dict(ends)}; parts started again {self.arena.restarts} times\n"
            + "\n".join(f"  {name}: {number}, met a run {self.met[name]}" for name, number in self.done.most_common())
        )

    def _so_far(self) -> str:
        runs = f"{len(self.expected)} runs, {len(self.open_runs)} of them open"
        return f"{runs}; {self.done.total()} faults, {self.met.total()} met a run"

    # faults

    def _part(self, names: tuple[str, ...]):
        return self.arena.kept[self.random.choice(names)][0]

    def _after(self, least: float, most: float, undo: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + self.random.uniform(least, most), undo))

    def _freeze(self, names: tuple[str, ...], most: float) -> None:
        part = self._part(names)
        part.signal(signal.SIGSTOP)
        self._after(0.3, most, lambda: part.signal(signal.SIGCONT))

    def _shim(self) -> int:
        shims = [pid for pid in self.arena.shims() if not processes.stopped(pid)]
        return self.random.choice(shims) if shims else 0

    def _kill_shim(self) -> None:
        pid = self._shim()
        if pid:
            self.unsure |= self._runs_of(pid)
            processes.kill(pid)

    def _freeze_shim(self) -> None:
        pid = self._shim()
        if pid:
            processes.kill(pid, signal.SIGSTOP)
            self._after(0.3, 4.0, lambda: processes.kill(pid, signal.SIGCONT))

    def _runs_of(self, pid: int) -> set[str]:
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            title = ""
        return {run for run in self.expected if run in title}

    def _cut_redis(self) -> None:
        bridge = self.arena.bridge
        if not bridge.closed:
            bridge.cut()
            self._after(0.2, 4.0, bridge.mend)

    def _freeze_redis(self) -> None:
        self.valkey.freeze()
        time.sleep(self.random.uniform(0.3, 3.0))
        self.valkey.thaw()

    def _wipe_redis(self) -> None:
        self.wiped = True
        self.valkey.restart(kill=True, wipe=True)


def explain(arena: Arena) -> str:
    """What status and explain say of the runs that are left."""
    told = []
    for argv in (("status",), *(("explain", run) for run in arena.runs if not arena.ended(run))):
        done = arena.command("flowfleet", *argv)
        told += [f"-- flowfleet {' '.join(argv)} --", (done.stdout + done.stderr).strip()]
    return "\n".join(told)


def play(seed: int, seconds: float, folder: Path, zygote: Zygote) -> tuple[Monkey, list[str]]:
    """One game; the monkey, and what the oracle found. A fleet that gets stuck is printed."""
    with Valkey.private(tcp=True, aof=True) as valkey:
        arena = Arena(folder, ("127.0.0.1", valkey.port), zygote, "lawless")
        monkey = Monkey(seed, seconds, arena, valkey)
        try:
            found = list(monkey.run())
            if found:
                print(oracle.describe(arena))
            return monkey, found
        except AssertionError:
            monkey.heal()
            print(f"seed {seed}\n{explain(arena)}\n{oracle.describe(arena)}")
            raise
        finally:
            arena.close()


def main() -> None:
    """`python -m tests.chaos.monkey SECONDS [SEED]`; exits 1 where the oracle has found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=random.randrange(10**6))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    zygote = Zygote(NUMBERS)
    try:
        with tempfile.TemporaryDirectory(prefix="ffmonkey") as folder:
            monkey, found = play(asked.seed, asked.seconds, Path(folder), zygote)
            print(monkey.report())
            kinds = Counter(line.partition(":")[0] for line in found)
            print(f"lost {kinds['lost']}, doubled {kinds['doubled']}, false reports {kinds['false']}")
            print("\n".join(found))
            sys.exit(1 if found else 0)
    finally:
        zygote.close()


if __name__ == "__main__":
    main()
