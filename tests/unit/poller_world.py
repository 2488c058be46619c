"""A world for the poller's unit tests: a clock that only moves when told, a ledger and an API in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from flowfleet.api import traits
from flowfleet.api.client import Answer, DueRuns, RunState, ServerInfo, StateType, UnfinishedRun, UnfitRun, Verdict
from flowfleet.errors import ApiError, ApiUnavailable, KeyRefused, LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Offer, Route, claim_id
from flowfleet.ledger.claims import Claim, Lease, Outcome, Refusal, State
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.roster import RouteDue, WorkerRow
from flowfleet.retry import RetrySchedule
from poller.capacity import OfferFilter
from poller.claiming import Claimer
from poller.leader import Leadership
from poller.listing import Clock, Lister
from poller.loop import Loop
from poller.metrics import PollerMetrics
from poller.pace import Pace
from poller.presence import Presence
from poller.rebuild import Gatekeeper, Sweep
from poller.reconcile import Reconciler
from poller.reinstate import Reinstater
from poller.unfit import UnfitRuns

POOL = "11111111-1111-4111-8111-111111111111"
ROUTE = Route("prefect3", POOL, "default")
OFFER = Offer(backend="prefect3", pools=("flowfleet",), pool_ids=(POOL,))
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Time:
    """Both clocks, moved together."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(monotonic=lambda: self.now, wall=lambda: START.timestamp() + self.now - 1000.0)

    def moment(self, seconds: float = 0.0) -> datetime:
        return START + timedelta(seconds=self.now - 1000.0 + seconds)


class FakeGate:
    def __init__(self) -> None:
        self.written: Leader | None = None
        self.process = "redis-1"
        self.accepted: str | None = "redis-1"
        self.claims: FakeClaims | None = None
        self.away = False

    def _answer(self) -> None:
        if self.away:
            raise LedgerUnavailable("Redis is away")

    def is_open(self) -> bool:
        self._answer()
        return self.process == self.accepted

    def empty(self) -> bool:
        return self.claims is None or not self.claims.by_run

    def open(self, term: int, server: str) -> bool:
        if self.process != server:
            return False
        self.accepted = server
        return True

    def server(self) -> str:
        self._answer()
        return self.process

    def leader(self) -> Leader | None:
        self._answer()
        return self.written

    def elect(self, name: str, host: str, nonce: str, seen: Leader | None) -> int | None:
        self._answer()
        if self.written != seen:
            return None
        term = (seen.term if seen else 0) + 1
        self.written = Leader(name=name, host=host, nonce=nonce, term=term, beat=0)
        return term

    def lead(self, term: int, nonce: str, lease: Lease) -> bool:
        self._answer()
        if self.written is None or self.written.term != term or self.written.nonce != nonce:
            return False
        self.written = replace(self.written, beat=self.written.beat + 1)
        return True

    def resign(self, term: int) -> None:
        if self.written and self.written.term == term:
            self.written = None


class FakeClaims:
    """The leader's moves by the transition table; slots are counted as the design says."""

    def __init__(self, roster: FakeRoster, gate: FakeGate) -> None:
        self.roster, self.gate = roster, gate
        self.by_run: dict[str, Claim] = {}
        self.dropped: list[tuple[str, str]] = []
        self.away = False
        gate.claims = roster.claims = self

    def _term(self, term: int | None) -> Outcome | None:
        if self.away:
            raise LedgerUnavailable("Redis is away")
        if term is not None and (self.gate.written is None or self.gate.written.term != term):
            return Outcome(moved=False, refusal=Refusal.TERM)
        return None

    def claim(
        self, term: int, runs: Sequence[FlowRun], call: str, *, policy: str, attempts: Mapping[str, int]
    ) -> list[Outcome]:
        assert len(runs) <= 10
        return [self._term(term) or self._claim_one(run, call, policy) for run in runs]

    def _claim_one(self, run: FlowRun, call: str, policy: str) -> Outcome:
        if not self.gate.is_open():
            return Outcome(moved=False, refusal=Refusal.GATE)
        if run.run_id in self.by_run:
            return Outcome(moved=False, refusal=Refusal.KNOWN, claim=self.by_run[run.run_id])
        slots = sum(row.slots for row in self.roster.rows() if row.live and row.wanted == "active")
        used = sum(1 for claim in self.by_run.values() if claim.state is not State.ENDED)
        if used >= slots:
            return Outcome(moved=False, refusal=Refusal.NO_SLOT)
        claim = Claim(
            run_id=run.run_id,
            claim=claim_id(call, run.run_id),
            call=call,
            route=run.route,
            state=State.CLAIMING,
            name=run.name,
            due=run.due,
            policy=policy,
        )
        self.by_run[run.run_id] = claim
        return Outcome(moved=True, claim=claim)

    def _move(
        self, run_id: str, claim: str, term: int | None, sources: set[State], to: State | None, **more
    ) -> Outcome:
        refused = self._term(term)
        if refused:
            return refused
        found = self.by_run.get(run_id)
        if found is None:
            return Outcome(moved=False, refusal=Refusal.UNKNOWN)
        if found.claim != claim:
            return Outcome(moved=False, refusal=Refusal.OTHER_CLAIM, claim=found)
        if found.state not in sources:
            return Outcome(moved=False, refusal=Refusal.STATE, claim=found)
        if to is None:
            del self.by_run[run_id]
            self.dropped.append((run_id, claim))
        else:
            self.by_run[run_id] = replace(found, state=to, moves=found.moves + 1, **more)
        return Outcome(moved=True, claim=found)

    def accept(self, term: int, run_id: str, claim: str) -> Outcome:
        return self._move(run_id, claim, term, {State.CLAIMING}, State.QUEUED)

    def refuse(self, term: int, run_id: str, claim: str, reason: str) -> Outcome:
        return self._move(run_id, claim, term, {State.CLAIMING}, None)

    def give_back(self, run_id, claim, reason, *, term=None, worker=None, never_began=False) -> Outcome:
        return self._move(run_id, claim, term, {State.QUEUED, State.TAKEN}, State.RETURNING, reason=reason)

    def drop(self, run_id, claim, *, term=None, worker=None) -> Outcome:
        return self._move(run_id, claim, term, {State.RETURNING}, None)

    def get(self, run_id: str) -> Claim | None:
        return self.by_run.get(run_id)

    def live(self) -> list[Claim]:
        self._term(None)
        return list(self.by_run.values())

    # what a worker would do
    def be(self, run_id: str, state: State, worker: str | None = None) -> None:
        found = self.by_run[run_id]
        self.by_run[run_id] = replace(found, state=state, worker=worker or found.worker, moves=found.moves + 1)

    def done(self, run_id: str) -> None:
        del self.by_run[run_id]


class FakeRoster:
    def __init__(self) -> None:
        self.table: dict[str, WorkerRow] = {}
        self.known: set[Route] = set()
        self.noted: list[RouteDue] = []
        self.notes = 0
        self.forgetful: set[str] = set()  # workers that renew, but know their claims no more
        self.claims: FakeClaims | None = None
        self.away = False

    def add(self, worker: str = "worker@a", slots: int = 4, **more: Any) -> None:
        given = {"offer": OFFER, "routes": (ROUTE,), "nonce": "n", "version": "0.1.0"} | more
        self.table[worker] = WorkerRow(worker=worker, slots=slots, **given)

    def rows(self) -> list[WorkerRow]:
        if self.away:
            raise LedgerUnavailable("Redis is away")
        return list(self.table.values())

    def lapse(self, term: int, worker: str, beat: int) -> None:
        if self.table[worker].beat == beat:
            self.table[worker] = replace(self.table[worker], live=False)

    def beat(self, worker: str = "worker@a") -> None:
        for claim in list(self.claims.by_run.values()) if self.claims else ():
            if claim.worker == worker and worker not in self.forgetful:
                self.claims.by_run[claim.run_id] = replace(claim, moves=claim.moves + 1)
        self.table[worker] = replace(self.table[worker], beat=self.table[worker].beat + 1)

    def know(self, routes: Sequence[Route]) -> None:
        self.known.update(routes)

    def unlearn(self, routes: Sequence[Route]) -> None:
        claimed = {claim.route for claim in self.claims.by_run.values()} if self.claims else set()
        self.known.difference_update(set(routes) - claimed)

    def routes(self) -> list[Route]:
        return sorted(self.known)

    def note_due(self, term: int, due: Sequence[RouteDue]) -> None:
        self.notes += 1
        self.noted = list(due)


class FakeApi:
    """Runs and their states; each method is one request, and its answers can be bent."""

    backend = "prefect3"
    traits = traits.of(backend)
    address = "http://api"
    key_refused = False

    def __init__(self, time: Time) -> None:
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

    def kind(self, run_id: str) -> StateType:
        return self.runs[run_id].kind

    def count(self, name: str) -> int:
        return self.asked.count(name)

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        self.trouble(name)

    def _write(self, name: str) -> Answer | None:
        """As the real client: what writes states answers that it is unsure, and raises only for a refused key."""
        try:
            self._ask(name)
        except KeyRefused:
            raise
        except ApiError as error:
            return Answer.unsure(error)
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

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        self._ask("due")
        return self._listed(within_seconds)

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        self._ask("count_due")
        return [replace(found, runs=()) for found in self._listed(0.0)]

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        return []

    def _listed(self, within_seconds: float) -> list[DueRuns]:
        now, until = self._time.moment(), self._time.moment(within_seconds)
        found = [
            FlowRun(run_id=state.run_id, name=state.run_name, route=ROUTE, due=self.due_at[state.run_id])
            for state in self.runs.values()
            if state.kind is StateType.SCHEDULED and self.due_at[state.run_id] <= until
        ]
        found.sort(key=lambda run: run.due)
        ready = [run.due for run in found if run.due <= now]
        return [DueRuns(route=ROUTE, runs=tuple(found), due=len(ready), oldest=min(ready, default=None))]

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Any) -> dict[str, Answer]:
        unsure = self._write("claim")
        if unsure:
            return {run.run_id: unsure for run in runs}
        verdict, done = self.bent.pop(0) if self.bent else (None, True)
        answers = {}
        for run in runs:
            state = self.runs[run.run_id]
            claimable = state.kind is StateType.SCHEDULED
            if claimable and done:
                self.runs[run.run_id] = replace(state, kind=StateType.PENDING, name="Submitted", call=call)
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
        self.runs[run_id] = replace(state, kind=StateType.SCHEDULED, name="Scheduled", call=None, scheduled=due)
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def unfinished(self, mark: Any) -> list[UnfinishedRun]:
        self._ask("unfinished")
        return [
            UnfinishedRun(state=state, route=ROUTE, due=self.due_at[state.run_id], worker=state.infrastructure)
            for state in self.runs.values()
            if state.kind in (StateType.PENDING, StateType.RUNNING)
        ]

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        self._ask("online")
        self.shown.append(pool)

    def offline(self, pool: str, name: str) -> None:
        self._ask("offline")
        self.hidden.append(pool)


def away(name: str) -> None:
    """Trouble: no answer, whatever is asked."""
    raise ApiUnavailable(f"no answer to {name}")


class World:
    """One poller with everything around it in memory; `rounds` lets time pass as its loop would sleep."""

    def __init__(
        self,
        *,
        failpoints: Failpoints | None = None,
        pace: Pace | None = None,
        api: Callable[[Time], FakeApi] | None = None,
        cloud_logs: bool = True,
        max_polls: int | None = None,
        **offer_filter: Any,
    ) -> None:
        self.time = Time()
        self.api = (api or FakeApi)(self.time)
        self.cloud_logs = cloud_logs
        self.max_polls = max_polls
        self.gate = FakeGate()
        self.roster = FakeRoster()
        self.claims = FakeClaims(self.roster, self.gate)
        self.published: list[Any] = []
        self.publish_trouble: Exception | None = None
        self.metrics = PollerMetrics()
        self.rings: set[str] = set()
        self.failpoints = failpoints or Failpoints()
        self.offer_filter = OfferFilter(**offer_filter)
        self.pace = pace or Pace.of(self.api.traits, idle_seconds=10.0)
        self.build()

    def build(self) -> None:
        """The poller's parts; called again it is another process with the same world."""
        monotonic = self.time.clock.monotonic
        parts: Any = SimpleNamespace(mark=SimpleNamespace(fleet="f", worker=None))
        self.mark = parts.mark
        self.leadership = Leadership(
            self.gate,
            name="agent",
            host="a",
            nonce=uuid.uuid4().hex,
            lease=Lease(),
            leader_seconds=15.0,
            clock=monotonic,
        )
        self.claimer = Claimer(
            self.api,
            self.claims,
            self.publish,
            mark=parts.mark,
            policy="report",
            failpoints=self.failpoints,
            metrics=self.metrics,
        )
        self.reconciler = Reconciler(
            self.api,
            self.claims,
            self.roster,
            self.claimer,
            mark=parts.mark,
            failpoints=self.failpoints,
            metrics=self.metrics,
            clock=monotonic,
            queued_seconds=60.0,
            ttl_seconds=20.0,
        )
        self.sweep = Sweep(
            self.api,
            self.claims,
            mark=parts.mark,
            failpoints=self.failpoints,
            metrics=self.metrics,
            clock=monotonic,
        )
        self.gatekeeper = Gatekeeper(
            self.gate, self.sweep, failpoints=self.failpoints, clock=monotonic, wait_seconds=25.0
        )
        self.presence = Presence(self.api, self.roster, fleet="f", offer_filter=self.offer_filter, clock=monotonic)
        self.loop = Loop(
            api=self.api,
            claims=self.claims,
            roster=self.roster,
            leadership=self.leadership,
            claimer=self.claimer,
            reconciler=self.reconciler,
            sweep=self.sweep,
            gatekeeper=self.gatekeeper,
            presence=self.presence,
            lister=Lister(self.api, self.presence, clock=self.time.clock, metrics=self.metrics),
            reinstater=Reinstater(self.api, self.claims, mark=parts.mark, metrics=self.metrics, clock=monotonic),
            unfit=UnfitRuns(self.api, clock=self.time.clock, cloud_logs=self.cloud_logs),
            inbox=self,
            clock=self.time.clock,
            metrics=self.metrics,
            offer_filter=self.offer_filter,
            redis_outage=RetrySchedule("Redis", monotonic, lambda: 1.0),
            api_outage=RetrySchedule("the Prefect API", monotonic, lambda: 1.0),
            pace=self.pace,
            max_polls=self.max_polls,
            jitter=lambda: 0.5,
        )

    def publish(self, message: Any) -> None:
        if self.publish_trouble:
            raise self.publish_trouble
        self.published.append(message)

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
            if not self.gate.away:
                self.leadership.tend()
            wait = self.loop.round()
            self.loop._hints |= self.wait(min(wait, until - self.time.now + 1e-6))

    def ring(self, kind: str) -> None:
        """A hint arrives now."""
        self.loop._hints.add(kind)
