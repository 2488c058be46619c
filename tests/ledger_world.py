"""LedgerWorld: a fleet of its own in a ledger, with the few words that tests of the ledger need."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from flowfleet.flow_run import FlowRun, Offer, Route, claim_id
from flowfleet.ledger import Ledger, connect
from flowfleet.ledger.claims import Claim, Lease, Outcome, State
from flowfleet.ledger.roster import WorkerRow

DUE = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
POOL = "11111111-1111-4111-8111-111111111111"
CALL = "22222222-2222-4222-8222-222222222222"


def route(name: str = "default") -> Route:
    return Route("prefect3", POOL, name)


def flow_run(where: Route | None = None) -> FlowRun:
    return FlowRun(run_id=str(uuid.uuid4()), name="a run", route=where or route(), due=DUE)


def row(
    worker: str = "w@h", *, nonce: str = "n1", slots: int = 4, routes: tuple[Route, ...] | None = None
) -> WorkerRow:
    served = routes if routes is not None else (route(),)
    offer = Offer(backend="prefect3", pools=("p",), pool_ids=(POOL,), work_queues=("ä", "b"))
    return WorkerRow(worker=worker, nonce=nonce, offer=offer, routes=served, slots=slots, version="0.1.0")


#: how each move of the table is asked for, of the claims, with term, worker and nonce
ASKED: dict[str, Callable[..., Outcome]] = {
    "accept": lambda c, ids, term, worker, nonce: c.accept(term, *ids),
    "refuse": lambda c, ids, term, worker, nonce: c.refuse(term, *ids, "no"),
    "take": lambda c, ids, term, worker, nonce: c.take(*ids, worker, nonce),
    "start": lambda c, ids, term, worker, nonce: c.start(*ids, worker, nonce, flow="orders", deployment="nightly"),
    "run": lambda c, ids, term, worker, nonce: c.run(*ids, worker, {"kind": "process", "id": 7}),
    "end": lambda c, ids, term, worker, nonce: c.end(*ids, worker, {"code": 0, "last_lines": []}),
    "release": lambda c, ids, term, worker, nonce: c.release(*ids, worker, "reported"),
    "give back (leader)": lambda c, ids, term, worker, nonce: c.give_back(*ids, "late", term=term),
    "give back (worker)": lambda c, ids, term, worker, nonce: c.give_back(*ids, "cannot", worker=worker),
    "give back (with proof)": lambda c, ids, term, worker, nonce: c.give_back(
        *ids, "cannot", worker=worker, never_began=True
    ),
    "miss": lambda c, ids, term, worker, nonce: c.miss(term, *ids),
    "judge": lambda c, ids, term, worker, nonce: c.judge(term, *ids, reason="Lost."),
    "bury": lambda c, ids, term, worker, nonce: c.bury(term, *ids, "crashed"),
    "inherit": lambda c, ids, term, worker, nonce: c.inherit(term, *ids, outcome="crashed"),
    "drop (leader)": lambda c, ids, term, worker, nonce: c.drop(*ids, term=term),
    "drop (worker)": lambda c, ids, term, worker, nonce: c.drop(*ids, worker=worker),
}
_WAY = ("accept", "take", "start", "run", "end")
#: the ordinary way of a claim to each state, and out of the ledger (None); it is given back from taken
WAYS: dict[State | None, tuple[str, ...]] = {
    None: ("refuse",),
    State.CLAIMING: (),
    State.QUEUED: _WAY[:1],
    State.TAKEN: _WAY[:2],
    State.STARTING: _WAY[:3],
    State.RUNNING: _WAY[:4],
    State.ENDED: _WAY,
    State.RETURNING: _WAY[:2],
    State.MISSING: (*_WAY[:4], "miss"),
    State.JUDGED: (*_WAY[:4], "miss", "judge"),
}


@dataclass
class LedgerWorld:
    """One leader, and workers as they are signed on."""

    url: str
    fleet: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    term: int = 0
    #: how often a run is started again under the policy `requeue`
    most: int = 0

    def __post_init__(self) -> None:
        # an answer that comes late is no matter of these tests: what is gone says so at once
        self.ledger: Ledger = connect(self.url, self.fleet, socket_timeout=60.0)
        self.claims, self.roster, self.gate = self.ledger.claims, self.ledger.roster, self.ledger.gate

    def lead(self) -> int:
        """A new leader, whoever led."""
        term = self.gate.elect("agent", "h", uuid.uuid4().hex, self.gate.leader(), Lease())
        assert term is not None
        leader = self.gate.leader()
        assert leader is not None
        assert self.gate.lead(term, leader.nonce, Lease())
        self.term = term
        return term

    def open(self) -> None:
        assert self.gate.open(self.term, self.gate.server())

    def up(self, *rows: WorkerRow) -> LedgerWorld:
        """A leader, an open gate, and these workers (default: w@h with 4 slots)."""
        self.lead()
        self.open()
        for one in rows or (row(),):
            assert self.roster.sign_on(one) is None
        return self

    def claim(self, *runs: FlowRun, call: str | None = None, term: int | None = None) -> list[Outcome]:
        asked = runs or (flow_run(),)
        return self.claims.claim(
            term or self.term, asked, call or str(uuid.uuid4()), policy="report", max_attempts=self.most
        )

    def bring(self, state: State | None, *, worker: str = "w@h", nonce: str = "n1", cancelled: bool = False) -> Claim:
        """A claim in this state (None: claimed and gone), by the ordinary way."""
        (outcome,) = self.claim()
        claim = outcome.claim
        assert claim is not None, outcome
        ids = (claim.run_id, claim.claim)
        for move in WAYS[state]:
            assert self.ask(move, *ids, worker=worker, nonce=nonce).moved, move
        if state is None:
            return claim
        if state is State.RETURNING:
            assert self.claims.give_back(*ids, "tired", worker=worker).moved
        if cancelled:
            assert self.claims.cancel(claim.run_id).moved
        found = self.claims.get(claim.run_id)
        assert found is not None
        assert found.state is state
        return found

    def ask(
        self, move: str, run: str, claim: str, *, term: int | None = None, worker: str = "w@h", nonce: str = "n1"
    ) -> Outcome:
        """A move of the table, by the leader of now or by a worker."""
        return ASKED[move](self.claims, (run, claim), self.term if term is None else term, worker, nonce)

    def restore(self, run: str, claim: str, *, worker: str = "w@h", term: int | None = None) -> Outcome:
        """What a leader makes of a run that the API alone still knows."""
        about = replace(flow_run(), run_id=run)
        return self.claims.restore(self.term if term is None else term, about, claim, CALL, worker)

    def set(self, claim: Claim, **fields: str) -> None:
        """Write into the claim past the scripts, as a later version would, or as a loss would leave it."""
        self.ledger.store.client.hset(self.ledger.store.key(f"claim:{claim.run_id}"), mapping=fields)

    def lose(self, *claims: Claim) -> None:
        """Redis forgets these claims altogether."""
        for claim in claims:
            self.ledger.store.client.delete(self.ledger.store.key(f"claim:{claim.run_id}"))
            self.ledger.store.client.srem(self.ledger.store.key("claims"), claim.run_id)

    def give_up(self, claim: Claim) -> None:
        """As `worker forget` leaves the claim."""
        self.ledger.store.client.zadd(self.ledger.store.key("forgotten"), {claim.claim: 1.0})

    def shut(self) -> None:
        """As if Redis were another process than the accepted one."""
        self.ledger.store.client.hset(self.ledger.store.key("gate"), "server", "another")


def held(about: Claim, state: State | None = None, **changes: Any) -> Claim:
    """The claim as its worker holds it."""
    return replace(about, state=state or about.state, **changes)


def other_claim(claim: Claim) -> str:
    """A claim id of the same run that is not this one."""
    return claim_id(str(uuid.uuid4()), claim.run_id)
