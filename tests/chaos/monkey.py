"""Monkey: kills, freezes, cuts and slows parts of a fleet at random while short runs flow, by one printed seed.

    make chaos SECONDS=1800 SEED=7 [REQUEUE=1]

Some runs are cancelled, too. At its end all is mended, the fleet comes to rest, and the oracle of the crash matrix has
the word. A run that comes to no end in time is stuck: status, explain and the logs of all parts are printed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import oracle
from tests.chaos.arena import NUMBERS, Arena
from tests.chaos.mischief import POLLERS, WORKERS, Mischief
from tests.chaos.oracle import Verdicts
from tests.chaos.zygote import Zygote
from tests.valkey import Valkey
from tests.waiting import SCALE, until

#: a run older than this that has come to no end is stuck
STUCK_SECONDS = 60.0
#: how often a game says how far it is
TOLD_SECONDS = 60.0
#: a longer lease: the machine's own stalls would end more runs than the monkey does
REQUEUE = ("--on-lost-run", "requeue", "--max-attempts", "100", "--lease-seconds", "4")


@dataclass
class Monkey:
    """One seed's way through a fleet; `run()` is all of it."""

    seed: int
    seconds: float
    arena: Arena
    valkey: Valkey
    #: lost runs are started again by us
    requeue: bool = False
    #: run → what it is expected to come to, and when it was created
    expected: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    #: runs that stay until they are cancelled → when that is due
    cancel_at: dict[str, float] = field(default_factory=dict)
    open_runs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.mischief = Mischief(self.arena, self.valkey, self.random, self._begun)

    # its way

    def run(self) -> Verdicts:
        """Faults and runs until the time is over; then rest, and the oracle's word."""
        for name in POLLERS:
            self.arena.poller(name, *(REQUEUE if self.requeue else ()))
        for name in WORKERS:
            self.arena.worker(name, slots=4)
        until(lambda: self.arena.tend() or self.arena.deployment, 30, "a deployment for all runs")
        begun = now = time.monotonic()
        next_run = now
        # the first faults come when there is something to meet
        next_fault = now + 3.0
        next_line = now + TOLD_SECONDS
        while now - begun < self.seconds:
            self.mischief.undo(now)
            self.arena.tend()
            if now >= next_run:
                self._create(now)
                next_run = now + self.random.expovariate(1 / 1.2) * SCALE / 2
            if now >= next_fault:
                self.mischief.harm()
                next_fault = now + self.random.uniform(1.0, 5.0)
            self._look(now)
            if now >= next_line:
                next_line = now + TOLD_SECONDS
                print(f"{now - begun:.0f} s of {self.seconds:.0f}: {self._so_far()}", flush=True)
            time.sleep(0.05)
            now = time.monotonic()
        self.mischief.heal()
        self._rest()
        return self._verdicts()

    def _create(self, now: float) -> None:
        expected, hold = self.random.choice(
            [("ok", "0.1"), ("ok", "0.5"), ("code 3", "0.2"), ("ok", "3"), ("code 3", "1"), ("cancelled", "hold")]
        )
        # past the line, which may break after a run was made that nobody here would know of
        engine = expected == "cancelled"
        run_id = self.arena.create_past_the_line(hold, 3 if expected == "code 3" else 0, engine=engine)
        self.expected[run_id], self.since[run_id] = expected, now
        self.open_runs.add(run_id)

    def _runs(self, run: str) -> bool:
        """Whether it is Running, and nobody will write that once more: the API takes it over a cancel."""
        told = any(mark[0] == "running" for mark in self.arena.marks(run))
        return told and self.arena.state(run)["type"] == "RUNNING"

    def _begun(self) -> set[str]:
        """Runs that are claimed or begun, and not at their end."""
        return {run for run in self.open_runs if self.arena.state(run)["type"] not in ("SCHEDULED", *oracle.ENDS)}

    def _look(self, now: float) -> None:
        self.open_runs = {run for run in self.open_runs if not self.arena.ended(run)}
        for run in sorted(self.open_runs):
            if self.expected[run] == "cancelled" and self._runs(run):
                # a while after its begin, whatever the fleet is at then
                at = self.cancel_at.setdefault(run, now + self.random.uniform(0.3, 4.0))
                if now >= at:
                    self.mischief.cancel(run)
            age = now - self.since[run]
            assert age < STUCK_SECONDS * SCALE, f"run {run} is stuck since {age:.0f} s: {self.arena.state(run)}"

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
        for run, given in self.expected.items():
            end, expected, unsure = self.arena.state(run)["type"], given, run in self.mischief.unsure
            if run in self.mischief.cancelled and end == "CANCELLED":
                # else it has the end that it was on its way to
                expected = "cancelled"
            elif given == "cancelled" and unsure and end in oracle.CRASHES:
                # it went with its shim, before anybody had cancelled it
                expected = "lost"
            found.add(oracle.judge(self.arena, run, expected, unsure=unsure, again=self.requeue))
        if not self.mischief.wiped:
            found.add(oracle.claims_of_starts(self.arena))
        return found

    def report(self) -> str:
        """What the monkey has done, in one paragraph."""
        ends = Counter(self.arena.state(run)["name"] for run in self.expected)
        done, met = self.mischief.done, self.mischief.met
        return (
            f"seed {self.seed}: {self._so_far()}; ends {dict(ends)}; parts started again {self.arena.restarts} times\n"
            + "\n".join(f"  {name}: {number}, met a run {met[name]}" for name, number in done.most_common())
        )

    def _so_far(self) -> str:
        runs = f"{len(self.expected)} runs, {len(self.open_runs)} of them open"
        return f"{runs}; {self.mischief.done.total()} faults, {self.mischief.met.total()} met a run"


def explain(arena: Arena) -> str:
    """What status and explain say of the runs that are left."""
    told = []
    for argv in (("status",), *(("explain", run) for run in arena.runs if not arena.ended(run))):
        done = arena.command("flowfleet", *argv)
        told += [f"-- flowfleet {' '.join(argv)} --", (done.stdout + done.stderr).strip()]
    return "\n".join(told)


def play(seed: int, seconds: float, folder: Path, zygote: Zygote, *, requeue: bool = False) -> tuple[Monkey, list[str]]:
    """One game; the monkey, and what the oracle found. A fleet that gets stuck is printed."""
    with Valkey.private(tcp=True, aof=True) as valkey:
        arena = Arena(folder, ("127.0.0.1", valkey.port), zygote, "lawless")
        monkey = Monkey(seed, seconds, arena, valkey, requeue)
        try:
            found = list(monkey.run())
            if found:
                print(oracle.describe(arena))
            return monkey, found
        except AssertionError:
            monkey.mischief.heal()
            print(f"seed {seed}\n{explain(arena)}\n{oracle.describe(arena)}")
            raise
        finally:
            arena.close()


def main() -> None:
    """`python -m tests.chaos.monkey SECONDS [SEED] [--requeue]`; exits 1 where the oracle has found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=random.randrange(10**6))
    parser.add_argument("--requeue", action="store_true", help="lost runs are started again")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    zygote = Zygote(NUMBERS)
    try:
        with tempfile.TemporaryDirectory(prefix="ffmonkey") as folder:
            monkey, found = play(asked.seed, asked.seconds, Path(folder), zygote, requeue=asked.requeue)
            print(monkey.report())
            kinds = Counter(line.partition(":")[0] for line in found)
            print(f"lost {kinds['lost']}, doubled {kinds['doubled']}, false reports {kinds['false']}")
            print("\n".join(found))
            sys.exit(1 if found else 0)
    finally:
        zygote.close()


if __name__ == "__main__":
    main()
