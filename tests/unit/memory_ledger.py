"""MemoryLedger: a ledger without Redis, whose claims move by the product's own table, and a clock moved by hand."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import FlowRun, Offer, Route, claim_id
from flowfleet.ledger.claims import AGAIN, CancelHow, Claim, Lease, Outcome, Refusal, State, Tomb
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.ledger_id import new_id, remembered
from flowfleet.ledger.roster import RouteDue, WorkerRow
from flowfleet.ledger.transitions import TRANSITIONS

POOL = "11111111-1111-4111-8111-111111111111"
ROUTE = Route("prefect3", POOL, "default")
OFFER = Offer(backend="prefect3", pools=("flowfleet",), pool_ids=(POOL,))
START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MOVES = {row.name: row for row in TRANSITIONS}


def a_claim(run_id: str = "run", state: State = State.RUNNING, **facts: Any) -> Claim:
    given = {"claim": "claim", "call": "call", "route": ROUTE, "name": f"the {run_id}", "due": START} | facts
    return Claim(run_id=run_id, state=state, **given)


class HandClock:
    """Moved by hand; who sleeps moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class MemoryLedger:
    """Gate, claims and roster of one Redis: it answers nothing while `away`, and takes no write while it `refuses`."""

    def __init__(self) -> None:
        self.away = self.refuses = False
        self.gate, self.claims, self.roster = MemoryGate(self), MemoryClaims(self), MemoryRoster(self)

    def answer(self) -> None:
        if self.away:
            raise LedgerUnavailable("Redis is away")

    def write(self) -> None:
        self.answer()
        if self.refuses:
            raise LedgerUnavailable("Redis takes no writes")


class MemoryGate:
    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self.written: Leader | None = None
        self.last_term = 0
        self.process = "redis-1"
        self.accepted: str | None = "redis-1"
        self.counters: dict[str, int] = {}
        #: that of `flowfleet leave`
        self.word = False
        #: whether an election has given the ledger its id, and all that it knows
        self.named = False
        self.known: tuple[str, ...] = ()

    def is_open(self) -> bool:
        self._ledger.answer()
        return self.process == self.accepted

    def empty(self) -> bool:
        return not self._ledger.claims.by_run

    def open(self, term: int, server: str) -> bool:
        if self.process != server:
            return False
        self.accepted = server
        return True

    def server(self) -> str:
        self._ledger.answer()
        return self.process

    def leader(self) -> Leader | None:
        self._ledger.answer()
        return self.written

    def elect(
        self, name: str, host: str, nonce: str, seen: Leader | None, lease: Lease, *, ledgers: Sequence[str] = ()
    ) -> int | None:
        self._ledger.write()
        if self.written != seen:
            return None
        term = (seen.term if seen else self.last_term) + 1
        self.last_term = term
        self.counters.pop(nonce, None)
        self.written = Leader(name=name, host=host, nonce=nonce, term=term, beat=0)
        if not self.named:
            self.known = remembered([*ledgers[:1]] or [new_id(random.Random())], self.known)
            self.named = True
        self.known = remembered(self.known, ledgers)
        return term

    def ledgers(self) -> tuple[str, ...]:
        self._ledger.answer()
        return self.known

    def lose(self) -> None:
        """Redis is emptied, and another process from now on."""
        self.written, self.accepted, self.named, self.known = None, None, False, ()
        self.process = f"{self.process}'"

    def lead(self, term: int, nonce: str, lease: Lease) -> bool:
        self._ledger.write()
        if self.written is None or (self.written.term, self.written.nonce) != (term, nonce):
            return False
        self.written = replace(self.written, beat=self.written.beat + 1)
        return True

    def resign(self, term: int, to: Collection[str] = ()) -> bool:
        if to and not self.counters.keys() & set(to):
            return False
        if self.written and self.written.term == term:
            self.written = None
        return True

    def stand_by(self, nonce: str, ledgers: Sequence[str] = ()) -> None:
        self._ledger.write()
        self.known = remembered(self.known, ledgers)
        self.counters[nonce] = self.counters.get(nonce, 0) + 1

    def stand_down(self, nonce: str) -> bool:
        self._ledger.write()
        self.counters.pop(nonce, None)
        return self.written is not None

    def standbys(self) -> dict[str, int]:
        self._ledger.answer()
        return dict(self.counters)

    def forget_standbys(self, nonces: Collection[str]) -> None:
        for nonce in nonces:
            del self.counters[nonce]

    def leave_ordered(self) -> bool:
        self._ledger.answer()
        return self.word


class MemoryClaims:
    """The leader's moves; slots are counted as the design says."""

    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self.by_run: dict[str, Claim] = {}
        self.dropped: list[tuple[str, str]] = []
        self.tomb_of: dict[str, Tomb] = {}
        self.attempts: dict[str, int] = {}
        #: the clock of the Redis host
        self.wall: Callable[[], float] = lambda: 0.0

    def claim(
        self, term: int, runs: Sequence[FlowRun], call: str, *, policy: str, max_attempts: int = 0
    ) -> list[Outcome]:
        assert len(runs) <= 10
        self._ledger.write()
        return [self._claim_one(term, run, call, policy, max_attempts) for run in runs]

    def _claim_one(self, term: int, run: FlowRun, call: str, policy: str, most: int) -> Outcome:
        rows = self._ledger.roster.rows()
        slots = sum(row.slots for row in rows if row.live and row.wanted == "active")
        used = sum(1 for claim in self.by_run.values() if claim.state is not State.ENDED) + len(self.tomb_of)
        for refusal, holds in (
            (Refusal.TERM, self._replaced(term)),
            (Refusal.GATE, not self._ledger.gate.is_open()),
            (Refusal.KNOWN, run.run_id in self.by_run),
            (Refusal.BURIED, run.run_id in self.tomb_of),
            (Refusal.NO_SLOT, used >= slots),
        ):
            if holds:
                return Outcome(moved=False, refusal=refusal, claim=self.by_run.get(run.run_id))
        attempt = self.attempts.get(run.run_id, 0) + 1
        self.by_run[run.run_id] = Claim(
            run_id=run.run_id, claim=claim_id(call, run.run_id), call=call, route=run.route, state=State.CLAIMING,
            name=run.name, due=run.due, policy=policy if attempt <= most else "report", attempt=attempt,
        )  # fmt: skip
        return Outcome(moved=True, claim=self.by_run[run.run_id])

    def _replaced(self, term: int | None) -> bool:
        written = self._ledger.gate.leader()
        return term is not None and (written is None or written.term != term)

    def _move(self, name: str, run_id: str, claim: str, term: int | None, **changes: Any) -> Outcome:
        found, move = self.by_run.get(run_id), MOVES[name]
        if self._replaced(term):
            return Outcome(moved=False, refusal=Refusal.TERM)
        if found is None:
            return Outcome(moved=False, refusal=Refusal.UNKNOWN)
        if found.claim != claim:
            return Outcome(moved=False, refusal=Refusal.OTHER_CLAIM, claim=found)
        if found.state not in move.sources:
            return Outcome(moved=False, refusal=Refusal.STATE, claim=found)
        if move.target is None:
            del self.by_run[run_id]
            self.dropped.append((run_id, claim))
        else:
            self.by_run[run_id] = replace(found, state=move.target, moves=found.moves + 1, **changes)
        return Outcome(moved=True, claim=found)

    def accept(self, term: int, run_id: str, claim: str) -> Outcome:
        return self._move("accept", run_id, claim, term)

    def refuse(self, term: int, run_id: str, claim: str, reason: str) -> Outcome:
        return self._move("refuse", run_id, claim, term)

    def give_back(self, run_id, claim, reason, *, term=None, worker=None, never_began=False) -> Outcome:
        return self._move("give back (leader)", run_id, claim, term, reason=reason)

    def drop(self, run_id, claim, *, term=None, worker=None) -> Outcome:
        return self._move("drop (leader)", run_id, claim, term)

    def cancel(self, run_id, claim=None, how=CancelHow.ASKED, why="", *, found=False) -> Outcome:
        self._ledger.write()
        found = self.by_run.get(run_id)
        if found is None or claim not in (None, found.claim):
            return Outcome(moved=False, refusal=Refusal.OTHER_CLAIM if found else Refusal.UNKNOWN, claim=found)
        if how > found.cancel:
            self.by_run[run_id] = replace(found, cancel=how, cancel_why=why)
        return Outcome(moved=True, claim=self.by_run[run_id])

    def miss(self, term: int, run_id: str, claim: str, moves: int | None = None) -> Outcome:
        if moves is not None and run_id in self.by_run and self.by_run[run_id].moves != moves:
            return Outcome(moved=False, refusal=Refusal.STATE, claim=self.by_run[run_id])
        was = self.by_run[run_id].state if run_id in self.by_run else None
        return self._move("miss", run_id, claim, term, was=was, missed_at=self.wall())

    def restore(self, term: int, run: FlowRun, claim: str, call: str, worker: str) -> Outcome:
        self._ledger.write()
        for refusal, holds in (
            (Refusal.TERM, self._replaced(term)),
            (Refusal.KNOWN, run.run_id in self.by_run or (run.run_id, claim) in self.dropped),
            (Refusal.BURIED, run.run_id in self.tomb_of),
            (Refusal.GATE, not self._ledger.gate.is_open()),
        ):
            if holds:
                return Outcome(moved=False, refusal=refusal, claim=self.by_run.get(run.run_id))
        self.by_run[run.run_id] = Claim(
            run_id=run.run_id, claim=claim, call=call, route=run.route, state=State.MISSING, was=State.STARTING,
            name=run.name, due=run.due, worker=worker,
        )  # fmt: skip
        return Outcome(moved=True, claim=self.by_run[run.run_id])

    def judge(self, term, run_id, claim, moves=None, *, proof="", reason) -> Outcome:
        found = self.by_run.get(run_id)
        if found and moves is not None and found.moves != moves:
            return Outcome(moved=False, refusal=Refusal.STATE, claim=found)
        done = self._move("judge", run_id, claim, term, reason=reason, proof=(found and found.proof) or proof or None)
        return replace(done, claim=self.by_run[run_id]) if done.moved else done

    def bury(self, term: int, run_id: str, claim: str, outcome: str) -> Outcome:
        done = self._move("bury", run_id, claim, term)
        if done.moved and outcome == AGAIN:
            self.attempts[run_id] = done.claim.attempt
        if done.moved and not done.claim.proof:
            facts = {name: getattr(done.claim, name) for name in ("route", "name", "attempt", "policy", "boot_id")}
            self.tomb_of[run_id] = Tomb(
                run_id=run_id, claim=claim, worker=done.claim.worker, machine=done.claim.machine, missed_at=0.0,
                buried_at=0.0, **facts,
            )  # fmt: skip
        return done

    def clear(self, term: int, run_id: str, claim: str) -> Outcome:
        gone = self.tomb_of.pop(run_id, None)
        return Outcome(moved=gone is not None, refusal=None if gone else Refusal.UNKNOWN)

    def inherit(self, term, run_id, claim, moves=None, *, outcome) -> Outcome:
        done = self._move("inherit", run_id, claim, term)
        if done.moved and outcome == AGAIN:
            self.attempts[run_id] = done.claim.attempt
        return done

    def tombs(self) -> list[Tomb]:
        self._ledger.answer()
        return list(self.tomb_of.values())

    def tomb(self, run_id: str) -> Tomb | None:
        self._ledger.answer()
        return self.tomb_of.get(run_id)

    def get(self, run_id: str) -> Claim | None:
        return self.by_run.get(run_id)

    def live(self) -> list[Claim]:
        self._ledger.answer()
        return list(self.by_run.values())

    # what a worker would do
    def be(self, run_id: str, state: State, worker: str | None = None) -> None:
        found = self.by_run[run_id]
        self.by_run[run_id] = replace(found, state=state, worker=worker or found.worker, moves=found.moves + 1)

    def done(self, run_id: str) -> None:
        del self.by_run[run_id]


class MemoryRoster:
    def __init__(self, ledger: MemoryLedger) -> None:
        self._ledger = ledger
        self.table: dict[str, WorkerRow] = {}
        self.known: set[Route] = set()
        self.noted: list[RouteDue] = []
        self.forgetful: set[str] = set()  # workers that renew, but know their claims no more

    def add(self, worker: str = "worker@a", slots: int = 4, **more: Any) -> None:
        given = {"offer": OFFER, "routes": (ROUTE,), "nonce": "n", "version": "0.1.0"} | more
        self.table[worker] = WorkerRow(worker=worker, slots=slots, **given)

    def change(self, worker: str = "worker@a", **facts: Any) -> None:
        self.table[worker] = replace(self.table[worker], **facts)

    def sign_on(self, row: WorkerRow, over: WorkerRow | None = None, ledgers: Sequence[str] = ()) -> WorkerRow | None:
        standing = self.table.get(row.worker)
        if standing is not None and standing != over and standing.live:
            return standing
        self.table[row.worker] = row
        self._ledger.gate.known = remembered(self._ledger.gate.known, ledgers)
        return None

    def rows(self) -> list[WorkerRow]:
        self._ledger.answer()
        return list(self.table.values())

    def lapse(self, term: int, worker: str, beat: int) -> None:
        self._ledger.write()
        if self.table[worker].beat == beat:
            self.change(worker, live=False)

    def beat(self, worker: str = "worker@a") -> None:
        claims = self._ledger.claims.by_run
        for claim in list(claims.values()):
            if claim.worker == worker and worker not in self.forgetful:
                claims[claim.run_id] = replace(claim, moves=claim.moves + 1)
        self.change(worker, beat=self.table[worker].beat + 1)

    def know(self, routes: Sequence[Route]) -> None:
        self.known.update(routes)

    def unlearn(self, routes: Sequence[Route]) -> None:
        claimed = {claim.route for claim in self._ledger.claims.by_run.values()}
        self.known.difference_update(set(routes) - claimed)

    def routes(self) -> list[Route]:
        return sorted(self.known)

    def note_due(self, term: int, due: Sequence[RouteDue]) -> None:
        self._ledger.write()
        self.noted = list(due)
