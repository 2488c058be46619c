"""Cells of the crash matrix: a failpoint, what it does to its process, an API; and the story that leads a run to it."""

from __future__ import annotations

import random
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests import processes
from tests.chaos import oracle
from tests.chaos.arena import GRACE_SECONDS, TTL_SECONDS, Arena, ArenaPart
from tests.chaos.oracle import Verdicts
from tests.waiting import until

ACTIONS = ("kill", "freeze", "raise")
APIS = ("lawless", "prefect1", "prefect3")
#: where an engine has a control session
OF_PREFECT3 = ("lawless", "prefect3")


@dataclass(frozen=True)
class Case:
    """A failpoint: which process it meets, and the story that leads there."""

    name: str
    process: str  # "poller" | "worker" | "shim"
    #: what it returns, if anything, goes on with it when the fault was met
    story: Callable[[Cell], Callable[[], None] | None]
    apis: tuple[str, ...] = APIS
    actions: tuple[str, ...] = ACTIONS
    #: tells cases of one failpoint apart
    kind: str = ""
    #: no more seeds than so many
    seeds: int = 1000
    #: a second fault by which the fleet comes to the same end another way, without this step
    other_way: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}.{self.kind}" if self.kind else self.name

    def environment(self, action: str, process: str) -> dict[str, str]:
        """The failpoint, for the parts that it is for."""
        host = "worker" if self.process == "shim" else self.process
        return {"FLOWFLEET_FAILPOINT": f"{self.name}:{action}"} if process == host else {}


@dataclass
class Cell:
    """One case on one API: `run()` leads it to its end, and says what was wrong."""

    case: Case
    action: str
    arena: Arena
    seed: int = 0
    #: run → what it is expected to come to
    expected: dict[str, str] = field(default_factory=dict)
    #: run → those of its claims whose host was frozen, and when that one thawed (boot clock)
    frozen: dict[str, dict[str, float]] = field(default_factory=dict)
    #: a host that was lost: no part of it is started again before this is done
    unsure: bool = False
    #: the part that a second fault meets
    other: str = ""

    def __post_init__(self) -> None:
        name = f"{self.case.title} {self.action} {self.arena.kind} {self.seed}"
        self.random = random.Random(zlib.crc32(name.encode()))
        #: what else goes wrong, at some time after the story; the first seed has nothing else
        seconds = [name for name in SECOND_FAULTS if name != self.case.other_way]
        self.second = self.random.choice(("nothing", *seconds)) if self.seed else "nothing"
        self._later: list[tuple[float, Callable[[], object]]] = []
        #: how often the second fault is still to be met
        self.unmet: Callable[[], int] = lambda: 0
        self.unsure = self.case.process == "shim"
        self.other = "worker" if self.case.process == "poller" else "agent"

    # what stories do

    def poller(self, *options: str, wait: bool = False) -> ArenaPart:
        if not self.case.name.startswith("lost."):
            # no host is lost: one that freezes, and that this machine thaws late, is not to be told as lost
            options = ("--adopt-grace", "60", *options)
        part = self.arena.poller("agent", *options, env=self.case.environment(self.action, "poller"))
        return self._ready(part) if wait else part

    def worker(self, name: str = "worker", *, wait: bool = False, env: Any = None, **how: int) -> ArenaPart:
        part = self.arena.worker(name, env={**self.case.environment(self.action, "worker"), **(env or {})}, **how)
        return self._ready(part) if wait else part

    def _ready(self, part: ArenaPart) -> ArenaPart:
        # all faults may meet its first requests, each with a longer pause; what is held is let go by this wait
        self.wait(part.ready, 120, f"{part.name} to be ready")
        return part

    def create(self, expected: str, hold: str = "0.1", **how: bool) -> str:
        run_id = self.arena.create(hold, 3 if expected == "code 3" else 0, **how)
        self.expected[run_id] = expected
        return run_id

    def begun(self, run_id: str, seconds: float = 20) -> None:
        """Wait until the run has told the API that it is running, and the API shows it: it may take a write late."""

        def running() -> bool:
            told = any(mark[0] == "running" for mark in self.arena.marks(run_id))
            return told and self.arena.state(run_id)["type"].upper() == "RUNNING"

        self.wait(running, seconds, f"run {run_id} to begin")

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        def look() -> object:
            if self._met:
                self.arena.tend()
            self._tend_others()
            return condition()

        until(look, seconds, what, pause=0.05)

    _met: bool = False

    def _tend_others(self) -> None:
        if self.arena.of_prefect1:
            self.arena.local.faults.release()
        now = time.monotonic()
        due = [act for at, act in self._later if at <= now]
        self._later = [(at, act) for at, act in self._later if at > now]
        for act in due:
            act()

    def after(self, least: float, most: float, act: Callable[[], object]) -> None:
        """Do it in so many seconds, while this cell waits for something."""
        self._later.append((time.monotonic() + self.random.uniform(least, most), act))

    def _go_wrong_again(self) -> None:
        """The second fault, as soon as it can meet something."""

        def act() -> None:
            if not SECOND_FAULTS[self.second](self):
                self.after(0.1, 0.3, act)

        if self.second in SECOND_FAULTS:
            self.after(0.0, 3.0, act)

    # its way

    def run(self) -> Verdicts:
        """The story to its fault, the recovery, a run after it, rest, and the oracle's word."""
        if self.arena.of_prefect1:
            all_faults(self.arena, self.random)
        pause(self.random.uniform(0.0, 0.5) if self.seed else 0.0)
        go_on = self.case.story(self)
        self._go_wrong_again()
        self.meet()
        if go_on is not None:
            go_on()
        self.create("ok")
        self.come_to_rest()
        found = Verdicts()
        for run_id, expected in self.expected.items():
            frozen = self.frozen.get(run_id, {})
            found.add(oracle.judge(self.arena, run_id, expected, unsure=self.unsure, frozen=frozen))
        found.add(oracle.claims_of_starts(self.arena))
        thaws = sum(map(len, self.frozen.values()))
        assert not thaws or found.thawed, "a host was frozen, and no run of it was started elsewhere before the thaw"
        return found

    def meet(self) -> None:
        """Wait for the fault; a frozen process thaws after more than a TTL."""
        name = self.case.name
        self.wait(lambda: self.arena.fired(name), 45, f"{name} to fire")
        pid = self.arena.fired(name)
        if self.action == "kill":
            until(lambda: not processes.alive(pid), 10, f"process {pid} to die at {name}")
        elif self.action == "freeze":
            until(lambda: processes.stopped(pid), 10, f"process {pid} to freeze at {name}")
            pause(TTL_SECONDS + self.random.uniform(0.4, 1.2))
            processes.kill(pid, signal.SIGCONT)
        self._met = True

    def come_to_rest(self) -> None:
        """All runs at an end, and nothing left."""
        left: list[str] = []

        def rest() -> bool:
            nonlocal left
            self.arena.tend()
            self._tend_others()
            if self._later or self.unmet():
                # the line to Redis may be cut, over which the ledger is read here, too
                return False
            open_runs = [run_id for run_id in self.expected if not self.arena.ended(run_id)]
            left = [f"run {run_id} is {self.arena.state(run_id)['name']}" for run_id in open_runs]
            left = left or oracle.leftovers(self.arena)
            return not left

        try:
            until(rest, 30, "the fleet to come to rest", pause=0.15)
        except AssertionError as error:
            raise AssertionError(f"the fleet does not come to rest: {left}") from error


def pause(seconds: float) -> None:
    """A part of the stimulus, not a wait for anything."""
    time.sleep(seconds)


def all_faults(arena: Arena, chance: random.Random) -> None:
    """Whatever can go wrong at requests, in an order by the seed."""
    faults = arena.local.faults
    faults.submitted_seconds = 3.0
    kinds: list[Callable[[], None]] = [
        lambda: faults.broken(times=2),
        lambda: faults.broken_after(times=2),
        lambda: faults.throttled(retry_after=1),
        lambda: faults.broken(status=503, times=2),
        lambda: faults.dropped(times=2),
        lambda: faults.lost(times=2),
        lambda: faults.refused("set_flow_run_states"),
        lambda: faults.refused_after("set_flow_run_states"),
        lambda: faults.answered({"data": {}}, "set_flow_run_states"),
        lambda: faults.late("set_flow_run_states"),
    ]
    chance.shuffle(kinds)
    for kind in kinds:
        kind()


# -- second faults


def _kill_another(cell: Cell) -> bool:
    part, again = cell.arena.kept[cell.other]
    if part.process.poll() is not None:
        return False
    part.kill()

    def start_again() -> None:
        # a cell that has met its fault meanwhile starts all parts again
        if cell.arena.kept[cell.other][0] is part:
            again()

    cell.after(0.3, 2.0, start_again)
    return True


def _freeze_another(cell: Cell) -> bool:
    part, _ = cell.arena.kept[cell.other]
    if part.process.poll() is not None:
        return False
    part.signal(signal.SIGSTOP)
    cell.after(0.3, TTL_SECONDS + 1.0, lambda: part.signal(signal.SIGCONT))
    return True


def _cut_redis(cell: Cell) -> bool:
    cell.arena.bridge.cut()
    cell.after(0.2, 2.0, cell.arena.bridge.mend)
    return True


def _api_fails(cell: Cell) -> bool:
    bridge = cell.arena.api_bridge
    bridge.answer(UNAVAILABLE, cell.random.randint(1, 8))
    cell.unmet = lambda: bridge.answers_left
    return True


#: what a proxy says for a server that is away
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LINE_CUT = "the line to Redis is cut"
#: what each of them does; False = there was nobody whom it could meet, now
SECOND_FAULTS: dict[str, Callable[[Cell], bool]] = {
    "another part is killed": _kill_another,
    "another part freezes": _freeze_another,
    _LINE_CUT: _cut_redis,
    "the API answers 503": _api_fails,
}


# -- stories


def runs(cell: Cell) -> None:
    """A run that completes, and one whose end has to be reported."""
    cell.poller()
    cell.worker()
    cell.create("ok")
    cell.create("code 3")


def engine_runs(cell: Cell) -> None:
    """The same, started as engines with a control session."""
    cell.poller()
    cell.worker()
    cell.create("ok", engine=True)
    cell.create("code 3", engine=True)


def hand_back(cell: Cell) -> None:
    """A claim whose message was never sent waits in vain: the leader gives it back."""
    cell.arena.poller(env={"FLOWFLEET_FAILPOINT": f"claim.after_accept:raise, {cell.case.name}:{cell.action}"})
    cell.worker()
    cell.create("ok")


def leaving_worker(cell: Cell) -> None:
    """A worker is stopped while a claim waits for it whose message was never sent."""
    arena = cell.arena
    arena.poller(env={"FLOWFLEET_FAILPOINT": "claim.after_accept:raise"})
    worker = cell.worker(wait=True)
    run_id = cell.create("ok")
    queued = lambda: any(one["run_id"] == run_id and one["state"] == "queued" for one in arena.seen()["runs"])  # noqa: E731
    cell.wait(lambda: arena.fired("claim.after_accept") and queued(), 45, "the claim to wait")
    worker.signal(signal.SIGTERM)


def leaving_poller(cell: Cell) -> None:
    """The last poller is stopped between two runs."""
    poller = cell.poller(wait=True)
    cell.worker(wait=True)
    cell.begun(cell.create("ok"))
    cell.create("code 3")
    poller.signal(signal.SIGTERM)


def cancelled(cell: Cell) -> None:
    """A run that stays is cancelled at the API."""
    cell.poller()
    cell.worker()
    cell.create("ok")
    run_id = cell.create("cancelled", "hold")
    cell.begun(run_id)
    cell.arena.cancel(run_id)


def cancelled_deaf(cell: Cell) -> None:
    """A run is cancelled that does not cancel itself."""
    cell.poller()
    cell.worker()
    run_id = cell.create("cancelled", "hold", deaf=True)
    cell.begun(run_id)
    cell.arena.cancel(run_id)


def cancelled_engine(cell: Cell) -> None:
    """An engine with a control session is cancelled."""
    cell.poller()
    cell.worker()
    run_id = cell.create("cancelled", "hold", engine=True)
    cell.begun(run_id)
    pause(0.5)
    cell.arena.cancel(run_id)


def lost_host(cell: Cell) -> None:
    """A host dies with all that is on it, and comes back when its run was judged."""
    cell.poller(wait=True)
    worker = cell.worker(wait=True)
    run_id = cell.create("lost", "hold")
    running(cell, run_id)
    again = cell.arena.kept.pop("worker")
    host_dies(cell, worker, run_id)
    fired(cell)
    cell.arena.kept["worker"] = again


def running(cell: Cell, run_id: str) -> None:
    """Wait until the run has begun, and the ledger has it as running, too."""
    cell.begun(run_id)
    states = lambda: [one["state"] for one in cell.arena.seen()["runs"] if one["run_id"] == run_id]  # noqa: E731
    cell.wait(lambda: states() == ["running"], 30, "it to be running in the ledger")


def host_dies(cell: Cell, worker: ArenaPart, run_id: str) -> None:
    """The worker, the shims and the run die at once."""
    worker.kill()
    for pid in cell.arena.shims():
        processes.kill(pid)
    processes.sweep("FLOWFLEET_RUN_ID", run_id)


def fired(cell: Cell) -> None:
    """Wait for the failpoint of a story whose run is judged first."""
    name = cell.case.name
    # the grace begins anew where the API does not answer, as a real server on a busy machine does not for seconds
    cell.wait(lambda: cell.arena.fired(name), TTL_SECONDS + GRACE_SECONDS + 55, f"{name} to fire")


CASES = (
    *(Case(f"claim.{step}", "poller", runs) for step in ("after_ledger", "after_api", "after_accept", "after_publish")),
    *(Case(f"take.{step}", "worker", runs) for step in ("on_arrival", "after_folder", "after_move")),
    *(Case(f"start.{step}", "worker", runs) for step in ("after_move", "before_fork", "after_fork", "after_running")),
    *(
        Case(f"end.{step}", "worker", runs)
        for step in ("before_record", "after_record", "before_report", "after_report")
    ),
    *(Case(f"return.{step}", "poller", hand_back) for step in ("after_ledger", "after_api")),
    Case("gate.before_open", "poller", runs),
    Case("leave.after_ledger", "worker", leaving_worker),
    Case("leave.before_resign", "poller", leaving_poller),
    *(Case(f"shim.{step}", "shim", runs) for step in ("after_start_file", "after_exec", "before_exit_record")),
    Case("report.between", "worker", runs),
    # a worker without Redis asks the API for cancels by itself, so that the leader may find none
    *(Case(f"cancel.{step}", "poller", cancelled, other_way=_LINE_CUT) for step in ("found", "after_field")),
    *(Case(f"shim.{step}", "shim", engine_runs, OF_PREFECT3) for step in ("before_ack", "after_receipt")),
    Case("cancel.after_ack", "shim", cancelled_engine, OF_PREFECT3),
    *(Case(f"hooks.{step}", "worker", cancelled_engine, OF_PREFECT3) for step in ("after_start", "before_report")),
    Case("cancel.after_term", "shim", cancelled_deaf),
    Case("cancel.after_stop_file", "worker", cancelled_deaf),
    Case("cancel.before_report", "worker", cancelled_deaf),
    *(Case(f"lost.{step}", "poller", lost_host) for step in ("after_miss", "after_judge", "after_api", "after_bury")),
)
