"""A world for the poller's unit tests: a clock that only moves when told, a ledger and either API in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from flowfleet.api import traits
from flowfleet.api.backlog import DueRuns, UnfitRun
from flowfleet.api.client import Answer, LogLine, RunState, StateType, UnfinishedRun, Verdict
from flowfleet.api.found import FoundRuns
from flowfleet.api.life import LaunchedClaim
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import ApiError, ApiUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Offer, Route, again_id
from flowfleet.ledger.claims import Lease
from flowfleet.ledger.ledger_id import new_call
from flowfleet.retry import RetrySchedule
from poller.cancellation import Cancellation
from poller.capacity import OfferFilter
from poller.claiming import Claimer
from poller.departure import Departure
from poller.leader import Leadership
from poller.lister import Lister
from poller.listing import Clock
from poller.loop import Loop
from poller.lost import LostRuns
from poller.lost_reports import LostReports
from poller.metrics import PollerMetrics
from poller.pace import Pace
from poller.presence import Presence
from poller.progress import Progress
from poller.rebuild import Gatekeeper, Sweep
from poller.reconcile import Reconciler
from poller.reinstate import Reinstater
from poller.restore import Restorer
from poller.unfit import UnfitRuns
from tests.unit.memory_ledger import POOL, ROUTE, START, MemoryLedger

TENANT = "77777777-7777-4777-8777-777777777777"
CALL = "22222222-2222-4222-8222-222222222222"
#: as of Prefect Server: for so long it refuses a second Submitted of a run, whoever asks
MEMORY_SECONDS = 30.0


def offer(*labels: str, deploy: str = "process") -> Offer:
    return Offer(backend="prefect1", labels=tuple(sorted(labels)), tenant=TENANT, deploy=deploy)


def route(*labels: str) -> Route:
    return Route.of_labels(TENANT, labels)


class Time:
    """Both clocks, moved together."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(monotonic=lambda: self.now, wall=lambda: START.timestamp() + self.now - 1000.0)

    def moment(self, seconds: float = 0.0) -> datetime:
        return START + timedelta(seconds=self.now - 1000.0 + seconds)


class FakeApi:
    """Runs and their states at Prefect 3, all parts of a client in one; each method is one request, and can be bent."""

    backend = "prefect3"
    traits = traits.of(backend)
    address = "http://api"
    cancels: tuple[StateType, ...] = (StateType.CANCELLING,)

    def __init__(self, time: Time) -> None:
        self.claims = self.ends = self.backlog = self.presence = self.orders = self.life = self
        self.lines: list[LogLine] = []
        #: run id → the claim under which it was launched, by its history
        self.origins: dict[str, LaunchedClaim] = {}
        #: run id → the sign of life that the API tells
        self.beats: dict[str, str] = {}
        self.reports: list[tuple[str, StateType, str]] = []
        #: run → what was said when it was started again
        self.again: dict[str, str] = {}
        self._time = time
        self.runs: dict[str, RunState] = {}
        self.due_at: dict[str, datetime] = {}
        self.asked: list[str] = []
        self.trouble: Callable[[str], None] = lambda name: None
        #: what the next claim calls say instead of the truth: a verdict, done or not done
        self.bent: list[tuple[Verdict, bool]] = []
        self.shown: list[str] = []
        self.hidden: list[str] = []

    def add(self, seconds: float = 0.0, name: str = "run", run_id: str | None = None) -> str:
        run_id = run_id or str(uuid.uuid4())
        self.due_at[run_id] = self._time.moment(seconds)
        self.runs[run_id] = RunState(
            run_id=run_id, run_name=name, kind=StateType.SCHEDULED, name="Scheduled", scheduled=self.due_at[run_id]
        )
        return run_id

    def add_many(self, number: int) -> None:
        for _ in range(number):
            self.add()

    def be(self, run_id: str, kind: StateType, name: str, **facts: Any) -> None:
        self.runs[run_id] = replace(self.runs[run_id], kind=kind, name=name, **facts)

    def submitted(self, kind: StateType = StateType.PENDING, name: str = "Submitted", **facts: Any) -> str:
        """A run that stands as ours and that no ledger knows."""
        run_id = self.add()
        self.be(run_id, kind, name, **{"call": CALL, "at": self._time.moment(-100000)} | facts)
        return run_id

    def kind(self, run_id: str) -> StateType:
        return self.runs[run_id].kind

    def count(self, name: str) -> int:
        return self.asked.count(name)

    def fail(self, *names: str, error: Exception | None = None, seconds: float = 0.0) -> None:
        """From now on these questions (none named: all) raise the error, after so long; without one, no answer."""

        def trouble(name: str) -> None:
            if not names or name in names:
                self._time.now += seconds
                raise error or ApiUnavailable(f"no answer to {name}")

        self.trouble = trouble

    def heal(self) -> None:
        self.trouble = lambda name: None

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        self.trouble(name)

    def _write(self, name: str) -> Answer | None:
        """As the real client: what writes states answers that it is unsure, and raises only for a refused key."""
        try:
            self._ask(name)
        except ApiError as error:
            return Answer.to_error(error)
        return None

    def probe(self) -> ServerInfo:
        self._ask("probe")
        return ServerInfo(backend="prefect3", version="3.8.8", skew_seconds=0.0)

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        self._ask("resolve")
        return replace(offer, pool_ids=(POOL,) * len(offer.pools))

    def routes(self, offer: Offer) -> list[Route]:
        self._ask("routes")
        return [ROUTE]

    def changed(self, offer: Offer) -> bool:
        return False

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        self._ask("due")
        return self._listed(offers, within_seconds)

    def count_due(self, offers: Sequence[Offer], *, within_seconds: float = 0.0) -> list[DueRuns]:
        self._ask("count_due")
        return [replace(found, runs=(), unfit=()) for found in self._listed(offers, within_seconds) if found.runs]

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        return []

    def _waits(self, state: RunState) -> bool:
        return state.kind is StateType.SCHEDULED

    def _routes_of(self, waiting: Sequence[RunState], offers: Sequence[Offer]) -> dict[Route, list[RunState]]:
        return {ROUTE: list(waiting)}

    def _listed(self, offers: Sequence[Offer], within_seconds: float) -> list[DueRuns]:
        until = self._time.moment(within_seconds)
        waiting = [state for run_id, state in self.runs.items() if self._waits(state) and self.due_at[run_id] <= until]
        return [self._of_route(where, here) for where, here in self._routes_of(waiting, offers).items()]

    def _of_route(self, where: Route, here: Sequence[RunState]) -> DueRuns:
        found = [
            FlowRun(run_id=each.run_id, name=each.run_name, route=where, due=self.due_at[each.run_id]) for each in here
        ]
        found.sort(key=lambda run: run.due)
        ready = [run.due for run in found if run.due <= self._time.moment()]
        return DueRuns(route=where, runs=tuple(found), due=len(ready), oldest=min(ready, default=None))

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Any) -> dict[str, Answer]:
        unsure = self._write("claim")
        if unsure:
            return {run.run_id: unsure for run in runs}
        verdict, done = self.bent.pop(0) if self.bent else (None, True)
        answers = {}
        for run in runs:
            claimable = self.kind(run.run_id) is StateType.SCHEDULED
            if claimable and done:
                self.be(run.run_id, StateType.PENDING, "Submitted", call=call)
            truth = Verdict.ACCEPTED if claimable else Verdict.REFUSED
            answers[run.run_id] = Answer(verdict=verdict or truth, state=self.runs[run.run_id])
        return answers

    def settle(self, run_id: str, call: str) -> Answer:
        unsure = self._write("settle")
        if unsure:
            return unsure
        state = self.runs[run_id]
        ours = state.kind is StateType.PENDING and state.call == call
        return Answer(verdict=Verdict.ACCEPTED if ours else Verdict.REFUSED, state=state)

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Any, reason: str, *, never_began: bool = False
    ) -> Answer:
        unsure = self._write("hand_back")
        if unsure:
            return unsure
        state = self.runs[run_id]
        if state.kind is not StateType.PENDING or state.call != call:
            return Answer(verdict=Verdict.REFUSED, state=state)
        self.due_at[run_id] = due
        self.be(run_id, StateType.SCHEDULED, "Scheduled", call=None, scheduled=due)
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def report(self, run_id: str, kind: StateType, message: str, mark: Any, **guards: Any) -> Answer:
        unsure = self._write("report")
        if unsure:
            return unsure
        state = self.runs.get(run_id)
        if state is None:
            return Answer(verdict=Verdict.REFUSED, gone=True)
        if state.kind.terminal:
            return Answer(verdict=Verdict.REFUSED, state=state)
        guards.get("still", lambda: None)()
        self.reports.append((run_id, kind, message))
        self.be(run_id, kind, kind.value.title(), message=message)
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        self._ask("states")
        return {run_id: self.runs[run_id] for run_id in run_ids if run_id in self.runs}

    def under_cancel(self, runs: Mapping[str, Route]) -> dict[str, RunState]:
        self._ask("under_cancel")
        found = {run_id: self.runs[run_id] for run_id in runs if run_id in self.runs}
        return {run_id: state for run_id, state in found.items() if state.kind in self.cancels}

    def cancel(self, run_id: str, message: str) -> Answer:
        """As Prefect 3: what waits without the mark of a process, and what is suspended, is Cancelled at once."""
        unsure = self._write("cancel")
        state = self.runs.get(run_id)
        if unsure or state is None:
            return unsure or Answer(verdict=Verdict.REFUSED, gone=True)
        if state.kind.terminal and state.kind is not StateType.CANCELLED:
            return Answer(verdict=Verdict.REFUSED, state=state)
        if not state.kind.terminal:
            waits = state.kind is StateType.SCHEDULED and not state.infrastructure
            kind = StateType.CANCELLED if waits or state.name == "Suspended" else StateType.CANCELLING
            self.be(run_id, kind, kind.value.title(), message=message)
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def restart(self, run_id: str, message: str, mark: Any, only: Collection[StateType] = ()) -> Answer:
        unsure = self._write("restart")
        state = self.runs.get(run_id)
        if unsure or state is None:
            return unsure or Answer(verdict=Verdict.REFUSED, gone=True)
        under_way = not state.kind.terminal and state.kind is not StateType.SCHEDULED
        if under_way or (only and state.kind not in only):
            return Answer(verdict=Verdict.REFUSED, state=state)
        self.be(run_id, StateType.SCHEDULED, "Scheduled", infrastructure=None, call=None)
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def find(self, text: str) -> FoundRuns:
        self._ask("find")
        named = {run_id: state.run_name for run_id, state in self.runs.items() if text == state.run_name}
        part = {run_id: state.run_name for run_id, state in self.runs.items() if text in run_id}
        return FoundRuns(named or part)

    def unfinished(self, mark: Any) -> list[UnfinishedRun]:
        self._ask("unfinished")
        return [
            UnfinishedRun(state=state, route=ROUTE, due=self.due_at[state.run_id], worker=state.infrastructure)
            for state in self.runs.values()
            if state.kind in (StateType.PENDING, StateType.RUNNING)
        ]

    def signs(self, silent: Sequence[Any], fleet: str) -> dict[str, str]:
        self._ask("signs")
        return {one.run_id: self.beats[one.run_id] for one in silent if one.run_id in self.beats}

    def origin(self, run_id: str, fleet: str) -> LaunchedClaim | None:
        self._ask("origin")
        return self.origins.get(run_id)

    def run_again(self, run_id: str, claim: str, message: str, mark: Any) -> Answer:
        unsure = self._write("run_again")
        if unsure:
            return unsure
        self.due_at[run_id] = self._time.moment()
        self.again[run_id] = message
        call = again_id(claim, run_id)
        self.be(run_id, StateType.SCHEDULED, "Scheduled", call=call, scheduled=self._time.moment())
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def log(self, lines: Sequence[LogLine]) -> None:
        self._ask("log")
        self.lines += lines

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        self._ask("online")
        self.shown.append(pool)

    def offline(self, pool: str, name: str) -> None:
        self._ask("offline")
        self.hidden.append(pool)


class FakePrefect1(FakeApi):
    """The same at Prefect 1: labels, a Submitted memory of 30 s, late commits, late retries; comments say the rest."""

    backend = "prefect1"
    traits = traits.of(backend)
    cancels = (StateType.CANCELLING, StateType.CANCELLED)

    def __init__(self, time: Time) -> None:
        super().__init__(time)
        self.labels: dict[str, tuple[str, ...]] = {}
        #: seconds after which the next claim call is carried out, though it gets no answer
        self.late: list[float] = []
        self._coming: list[tuple[float, str, str]] = []
        self._memory: dict[str, float] = {}
        self.unfit: dict[str, str] = {}
        self.late_retries: set[str] = set()
        self.nobodys: list[UnfitRun] = []
        self.asked_for: list[tuple[Offer, ...]] = []
        self.reinstated: list[tuple[str, str]] = []
        self.restarted: set[str] = set()

    def add(self, seconds: float = 0.0, name: str = "run", run_id: str | None = None, labels: Sequence[str] = ("x",)):
        run_id = super().add(seconds, name, run_id)
        self.labels[run_id] = tuple(labels)
        return run_id

    def routes(self, offer: Offer) -> list[Route]:
        return []

    def _arrive(self) -> None:
        """What was sent long ago is carried out now."""
        for at, run_id, call in list(self._coming):
            if self._time.now >= at:
                self._coming.remove((at, run_id, call))
                if self.kind(run_id) is StateType.SCHEDULED:
                    self._submit(run_id, call)

    def _submit(self, run_id: str, call: str) -> None:
        self._memory[run_id] = self._time.now
        self.be(run_id, StateType.PENDING, "Submitted", call=call, at=self._time.moment())

    def _waits(self, state: RunState) -> bool:
        return super()._waits(state) or state.run_id in self.late_retries

    def _routes_of(self, waiting: Sequence[RunState], offers: Sequence[Offer]) -> dict[Route, list[RunState]]:
        by_route: dict[Route, list[RunState]] = {}
        for state in waiting:
            by_route.setdefault(route(*self.labels[state.run_id]), []).append(state)
        return {where: by_route[where] for where in sorted(by_route) if any(each.serves(where) for each in offers)}

    def _listed(self, offers: Sequence[Offer], within_seconds: float) -> list[DueRuns]:
        self._arrive()
        return super()._listed(offers, within_seconds)

    def _of_route(self, where: Route, here: Sequence[RunState]) -> DueRuns:
        found = super()._of_route(where, here)
        runs = [
            replace(run, state="Running") if run.run_id in self.late_retries else run
            for run in found.runs
            if run.run_id not in self.unfit
        ]
        unfit = [
            UnfitRun(run_id=state.run_id, name=state.run_name, reason=self.unfit[state.run_id])
            for state in here
            if state.run_id in self.unfit
        ]
        return replace(found, runs=tuple(runs), unfit=tuple(unfit))

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Any) -> dict[str, Answer]:
        self._arrive()
        unsure = self._write("claim")
        if unsure:
            return {run.run_id: unsure for run in runs}
        if self.late:
            at = self._time.now + self.late.pop(0)
            for run in runs:
                self._memory[run.run_id] = self._time.now
                self._coming.append((at, run.run_id, call))
            return {run.run_id: Answer(verdict=Verdict.UNSURE, reason="no answer in time") for run in runs}
        return {run.run_id: self._claim_one(run.run_id, call) for run in runs}

    def _claim_one(self, run_id: str, call: str) -> Answer:
        state = self.runs[run_id]
        if state.kind is StateType.PENDING and state.call == call:
            return Answer(verdict=Verdict.ACCEPTED, state=state)
        if state.kind is not StateType.SCHEDULED:
            return Answer(verdict=Verdict.REFUSED, reason=f"the run is {state.name}", state=state)
        if self._time.now - self._memory.get(run_id, float("-inf")) < MEMORY_SECONDS:
            # not ours, and not anybody's either: what stands there is still Scheduled
            return Answer(verdict=Verdict.REFUSED, reason="this run has already been submitted.", state=state)
        self._submit(run_id, call)
        return Answer(verdict=Verdict.ACCEPTED)

    def settle(self, run_id: str, call: str) -> Answer:
        self._arrive()
        return super().settle(run_id, call)

    def unfinished(self, mark: Any) -> list[UnfinishedRun]:
        self._arrive()
        return super().unfinished(mark)

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        self._ask("unserved")
        self.asked_for.append(tuple(offers))
        return list(self.nobodys)

    def reinstate(self, run_id: str, claim: str, mark: Any) -> Answer:
        unsure = self._write("reinstate")
        if unsure:
            return unsure
        if self.kind(run_id) is not StateType.SCHEDULED or run_id in self.restarted:
            # that it ended before it was put back stands in its history
            return Answer(verdict=Verdict.REFUSED, reason="somebody has restarted it", state=self.runs[run_id])
        self.reinstated.append((run_id, claim))
        self.be(run_id, StateType.RUNNING, "Running")
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def lazarus(self, run_id: str) -> None:
        """Put it back, whether it runs or not."""
        self.due_at[run_id] = self._time.moment()
        self.be(run_id, StateType.SCHEDULED, "Scheduled", call=None, scheduled=self._time.moment())


class World:
    """One poller with everything around it in memory; `rounds` lets time pass as its loop would sleep."""

    def __init__(
        self,
        *,
        cloud_logs: bool = True,
        max_polls: int | None = None,
        awaits_workers: bool = False,
        **offer_filter: Any,
    ) -> None:
        self.time = Time()
        self.api = self.make_api(self.time)
        self.cloud_logs, self.max_polls, self.awaits_workers = cloud_logs, max_polls, awaits_workers
        self.ledger = MemoryLedger()
        self.gate, self.roster, self.claims = self.ledger.gate, self.ledger.roster, self.ledger.claims
        self.claims.wall = self.time.clock.wall
        self.published: list[Any] = []
        self.publish_trouble: Exception | None = None
        self.metrics = PollerMetrics()
        self.rings: set[str] = set()
        self.failpoints = Failpoints()
        self.substitute = False
        self.policy = "report"
        self.offer_filter = OfferFilter(**offer_filter)
        # listed as seldom as at Prefect 3: a claim is to be made from a listing that is not of this very moment
        pace = Pace.of(self.api.traits, idle_seconds=Pace.idle_seconds)
        self.pace = replace(pace, busy_seconds=Pace.busy_seconds)
        self.build()

    @classmethod
    def of(cls, **facts: Any) -> World:
        """A world with this worker."""
        world = cls()
        world.roster.add(**facts)
        return world

    def make_api(self, time: Time) -> Any:
        """What the poller asks."""
        return FakeApi(time)

    def build(self) -> None:
        """The poller's parts; called again it is another process with the same world."""
        api, claims, roster, clock = self.api, self.claims, self.roster, self.time.clock
        failpoints, metrics, monotonic = self.failpoints, self.metrics, self.time.clock.monotonic
        mark = self.mark = SimpleNamespace(fleet="f", worker=None)
        nonce = uuid.uuid4().hex
        self.leadership = Leadership(
            self.gate, name="agent", host="a", nonce=nonce, lease=Lease(), leader_seconds=15.0, clock=monotonic
        )
        self.progress = Progress(monotonic)
        self.claimer = Claimer(
            api.claims, claims, self.publish, mark=mark, policy=self.policy, traits=api.traits, max_attempts=3,
            failpoints=failpoints, metrics=metrics, progressed=self.progress.note,
            new_call=lambda: new_call(self.leadership.ledger),
        )  # fmt: skip
        self.reconciler = Reconciler(
            api.ends, claims, roster, self.claimer, mark=mark, traits=api.traits, failpoints=failpoints,
            metrics=metrics, clock=monotonic, progressed=self.progress.note, queued_seconds=60.0, ttl_seconds=20.0,
        )  # fmt: skip
        self.lost = LostRuns(
            claims,
            api.life,
            LostReports(
                api.ends, claims, self.gate, mark=mark, traits=api.traits, failpoints=failpoints, metrics=metrics,
                clock=monotonic, ttl_seconds=20.0, progressed=self.progress.note,
            ),
            fleet="f", failpoints=failpoints, clock=monotonic, wall=clock.wall, lease=Lease(),
            runs_beat=api.traits.runs_beat,
        )  # fmt: skip
        self.sweep = Sweep(api, claims, mark=mark, failpoints=failpoints, metrics=metrics, clock=monotonic)
        self.presence = Presence(api, roster, fleet="f", offer_filter=self.offer_filter, clock=monotonic)
        self.cancellation = Cancellation(
            api.orders, api.ends, claims, traits=api.traits, failpoints=failpoints, clock=monotonic
        )
        self.loop = Loop(
            backend=api.backend,
            claims=claims,
            roster=roster,
            leadership=self.leadership,
            claimer=self.claimer,
            reconciler=self.reconciler,
            lost=self.lost,
            sweep=self.sweep,
            gatekeeper=Gatekeeper(self.gate, self.sweep, failpoints=failpoints, clock=monotonic, wait_seconds=25.0),
            restorer=Restorer(
                api.life, api.ends, claims, self.gate, fleet="f", metrics=metrics, progressed=self.progress.note
            ),
            presence=self.presence,
            lister=Lister(api.backlog, self.presence, clock=clock, metrics=metrics),
            reinstater=Reinstater(
                api, claims, mark=mark, metrics=metrics, clock=monotonic, progressed=self.progress.note
            ),
            unfit=UnfitRuns(api, clock=clock, cloud_logs=self.cloud_logs),
            departure=Departure(
                gate=self.gate,
                claims=claims,
                roster=roster,
                leadership=self.leadership,
                reconciler=self.reconciler,
                sweep=self.sweep,
                progress=self.progress,
                failpoints=failpoints,
                clock=monotonic,
                substitute=self.substitute,
            ),
            inbox=self,
            clock=clock,
            metrics=metrics,
            offer_filter=self.offer_filter,
            redis_outage=RetrySchedule("Redis", monotonic, lambda: 1.0),
            api_outage=RetrySchedule("the Prefect API", monotonic, lambda: 1.0),
            progress=self.progress,
            pace=self.pace,
            max_polls=self.max_polls,
            awaits_workers=self.awaits_workers,
            jitter=lambda: 0.5,
        )

    def publish(self, message: Any) -> None:
        if self.publish_trouble:
            raise self.publish_trouble
        self.published.append(message)

    @property
    def claimed(self) -> list[str]:
        """The runs whose messages were sent, in order."""
        return [message.run_id for message in self.published]

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)

    # the inbox of the loop: time passes
    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        self.time.now += seconds
        rung, self.rings = frozenset(self.rings), set()
        return rung

    def rounds(self, seconds: float, *, beat: bool = True) -> None:
        """Let the loop run for so long; workers renew all the while if `beat`."""
        until = self.time.now + seconds
        while self.time.now < until:
            if beat:
                for worker in self.roster.table:
                    self.roster.beat(worker)
            if not (self.ledger.away or self.ledger.refuses):
                self.leadership.tend()
            wait = self.loop.round()
            self.loop._hints |= self.wait(min(wait, until - self.time.now + 1e-6))

    def ring(self, kind: str) -> None:
        """A hint arrives now."""
        self.loop._hints.add(kind)

    def ring_round(self, kind: str) -> None:
        """A hint arrives, and the loop makes the round that it asks for."""
        self.ring(kind)
        self.loop.round()


class Labelled(World):
    """A poller at a Prefect 1 API, and workers that begin to serve a route as soon as they hear of it."""

    def make_api(self, time: Time) -> Any:
        return FakePrefect1(time)

    def worker(self, *labels: str, worker: str = "worker@a", slots: int = 4, deploy: str = "process") -> None:
        self.roster.add(worker, slots, offer=offer(*labels, deploy=deploy), routes=(), deploy=deploy)

    def subscribe(self) -> bool:
        """What each worker does on the hint `routes`; True when a row has changed, which hints `freed`."""
        changed = False
        for worker, row in self.roster.table.items():
            served = tuple(sorted(route for route in self.roster.known if row.offer.serves(route)))
            if row.live and served != row.routes:
                self.roster.change(worker, routes=served)
                changed = True
        return changed

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Wait for a hint: hints of workers that subscribe come a moment after the round."""
        if self.subscribe():
            self.rings.add("freed")
            return super().wait(min(seconds, 0.05))
        return super().wait(seconds, gather_seconds)
