"""Reconcile: how the leader settles, hands back or finishes claims that do not move, and marks silent workers.

How long a claim has not moved is what this leader saw by its own monotonic clock, begun anew after any outage that it
saw.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from flowfleet.api.client import EndApi, Mark, StateType, Verdict
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiRejected
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, State
from flowfleet.ledger.roster import Roster, WorkerRow
from poller.claiming import Claimer, term_checked
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)

#: a claim of Prefect 1 that is not settled at once takes until its server forgets the first call (30 s), each try some
#: requests; one that no server has carried out by then never will be
SETTLE_AGAIN_SECONDS = 5.0
SETTLE_SECONDS = 150.0
TAKEN_SILENT_SECONDS = 60.0
TAKEN_SECONDS = 240.0
#: how long another leader may still be at work under its old term: longer than any one of its scripts and short calls
FOREIGN_SECONDS = 10.0
#: a queued claim that no worker takes any more goes back after so long: a worker that restarts is back sooner
UNSERVED_SECONDS = 5.0
#: a live worker that hands back a claim itself is left alone for longer than its API calls last
OWNER_SECONDS = 70.0


class StallWatch:
    """A watch on values that ought to move: for how long each has not moved."""

    def __init__(self, clock: Callable[[], float], gap_seconds: float = float("inf")) -> None:
        self._clock = clock
        #: what was not looked at for so long begins anew
        self._gap_seconds = gap_seconds
        #: by key: its value, since when it has that, and when it was looked at last
        self._seen: dict[Hashable, tuple[Hashable, float, float]] = {}

    def unmoved_seconds(self, key: Hashable, value: Hashable) -> float:
        """Seconds for which this value has not moved, as far as this watch has looked."""
        now = self._clock()
        seen = self._seen.get(key)
        if seen is None or seen[0] != value or now - seen[2] > self._gap_seconds:
            self._seen[key] = (value, now, now)
            return 0.0
        self._seen[key] = (value, seen[1], now)
        return now - seen[1]

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget all keys but these."""
        for key in self._seen.keys() - set(keys):
            del self._seen[key]

    def count(self, value: Hashable) -> int:
        """How many keys had this value when they were looked at last."""
        return sum(seen == value for seen, _, _ in self._seen.values())

    def begin_anew(self) -> None:
        """Forget all values: what was seen before an outage tells nothing."""
        self._seen.clear()


@dataclass
class Reconciler:
    """The leader's look, once a round, at all live claims and all workers."""

    api: EndApi
    claims: Claims
    roster: Roster
    claimer: Claimer
    mark: Mark
    failpoints: Failpoints
    traits: Traits
    metrics: PollerMetrics
    clock: Callable[[], float]
    queued_seconds: float
    ttl_seconds: float
    #: called after each answer of the API
    progressed: Callable[[], object] = lambda: None
    #: ids of claims that this very leader is handing back, or whose hand-back is unsettled: nobody else is at them
    _ours: set[str] = field(default_factory=set, init=False)
    #: when an unsettled claim is to be looked at again
    _settle_at: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._claim_watch, self._state_watch, self._worker_watch = (StallWatch(self.clock) for _ in range(3))
        self._served_watch = StallWatch(self.clock)

    def begin_anew(self) -> None:
        """Begin all watches anew, after an outage or with a new term."""
        self._claim_watch.begin_anew()
        self._state_watch.begin_anew()
        self._worker_watch.begin_anew()
        self._served_watch.begin_anew()

    def new_term(self) -> None:
        """Forget the claims of an earlier term: they may be in somebody else's hands by now."""
        self.begin_anew()
        self._ours.clear()

    def lapse(self, term: int, rows: Sequence[WorkerRow]) -> None:
        """Mark workers as no longer live whose beat has stood still for a TTL."""
        self._worker_watch.keep([row.worker for row in rows])
        for row in rows:
            still = self._worker_watch.unmoved_seconds(row.worker, (row.nonce, row.beat))
            if row.live and still >= self.ttl_seconds:
                self.roster.lapse(term, row.worker, row.beat)
                self.metrics.lapsed.inc()
                logger.warning("worker lapsed", extra={"worker": row.worker, "silent_seconds": round(still, 1)})

    def tend(self, term: int, claims: Sequence[Claim], rows: Sequence[WorkerRow], *, leaving: bool = False) -> int:
        """Settle, hand back and finish claims that have stood too long; return how many claims were moved.

        While the fleet is `leaving`, what is queued goes back at once.

        The API is asked, so this is called only while the API answers. Raises as its parts do, `ApiRejected` excepted:
        one bad run must not keep the others waiting. An API that does not answer at all ends the look by
        `ApiUnavailable`: each further claim would only wait for as long.
        """
        self._claim_watch.keep([claim.claim for claim in claims])
        self._settle_at = {claim.claim: at for claim in claims if (at := self._settle_at.get(claim.claim)) is not None}
        self.claimer.unpublished.intersection_update([claim.claim for claim in claims])
        self._state_watch.keep([claim.claim for claim in claims])
        self._served_watch.keep([claim.claim for claim in claims])
        live = {row.worker for row in rows if row.live}
        served = {route for row in rows if row.takes_runs for route in row.routes}
        moved = 0
        for claim in claims:
            still = self._claim_watch.unmoved_seconds(claim.claim, (claim.state, claim.moves))
            in_state = self._state_watch.unmoved_seconds(claim.claim, claim.state)
            since = self._served_watch.unmoved_seconds(claim.claim, claim.route in served)
            reason = "leaving" if leaving else None
            if claim.route not in served and since >= UNSERVED_SECONDS:
                reason = "no-worker-takes-it"
            with one_by_one(claim):
                if claim.state is State.QUEUED and reason and not claim.cancel:
                    moved += self.hand_back(term, claim, reason)
                else:
                    moved += self._one(term, claim, still, in_state, owner_lives=claim.worker in live)
        return moved

    def _one(self, term: int, claim: Claim, still: float, in_state: float, *, owner_lives: bool) -> bool:
        """Look at one claim; True when it was moved.

        `still` is for how many seconds the claim was neither moved nor renewed; `in_state` is for how many seconds it
        has had its state, though perhaps it was renewed.
        """
        if claim.state is State.CLAIMING:
            return self._settle(term, claim, in_state)
        if claim.state is State.QUEUED and claim.cancel:
            return self.hand_back(term, claim, "cancelled")
        if claim.state is State.QUEUED and in_state >= self.queued_seconds:
            return self.hand_back(term, claim, "queued-too-long")
        if claim.state is State.TAKEN and (still >= TAKEN_SILENT_SECONDS or in_state >= TAKEN_SECONDS):
            return self.hand_back(term, claim, "taken-too-long")
        if claim.state is State.RETURNING:
            limit = OWNER_SECONDS if owner_lives else FOREIGN_SECONDS
            if claim.claim in self._ours or still >= limit:
                return self._finish(term, claim, claim.reason or "returning")
        return False

    def _settle(self, term: int, claim: Claim, in_state: float) -> bool:
        now = self.clock()
        if now < self._settle_at.get(claim.claim, now):
            return False
        settled = self.claimer.settle(term, claim, at_last=in_state >= SETTLE_SECONDS)
        self._settle_at.pop(claim.claim, None)
        if not settled and self.traits.refuses_for_a_while:
            self._settle_at[claim.claim] = self.clock() + SETTLE_AGAIN_SECONDS
        return settled

    def clear(self, term: int, *, last: bool) -> None:
        """Clear up before the end: settle what is unsettled, hand back what no worker can see, finish what we began.

        The `last` poller also hands back what no worker has taken yet, and finishes what no live worker is at.
        """
        for claim in self.claims.live():
            if claim.state is State.CLAIMING:
                with one_by_one(claim):
                    self.claimer.settle(term, claim)
        live = {row.worker for row in self.roster.rows() if row.live}
        for claim in self.claims.live():
            unsent = claim.claim in self.claimer.unpublished
            ours = claim.claim in self._ours or (last and claim.worker not in live)
            with one_by_one(claim):
                if claim.state is State.QUEUED and (last or unsent):
                    self.hand_back(term, claim, "not-sent" if unsent else "poller-stopped")
                elif claim.state is State.RETURNING and ours:
                    self._finish(term, claim, claim.reason or "returning")

    def hand_back(self, term: int, claim: Claim, reason: str) -> bool:
        """Move a queued or taken claim to returning, hand its run back at the API, drop the claim; True if dropped."""
        outcome = term_checked(self.claims.give_back(claim.run_id, claim.claim, reason, term=term))
        if not outcome.moved:
            return False
        self._ours.add(claim.claim)
        self.failpoints.hit("return.after_ledger")
        return self._finish(term, claim, reason)

    def _finish(self, term: int, claim: Claim, reason: str) -> bool:
        cancelled = bool(claim.cancel)
        if not cancelled:
            answer = self.api.hand_back(
                claim.run_id, claim.call, claim.due, self.mark, reason, never_began=claim.never_began
            )
            cancelled = answer.being_cancelled
        if cancelled:
            # somebody wants the run cancelled: whoever removes its waiting claim reports that; user code never began
            why = f" ({claim.cancel_why.rstrip('.')})" if claim.cancel_why else ""
            message = f"Cancelled before it was started{why}."
            answer = self.api.report(claim.run_id, StateType.CANCELLED, message, self.mark, claim=claim.claim)
        self.progressed()
        names = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name, "reason": reason}
        if answer.silence:
            raise answer.silence
        if answer.verdict is Verdict.UNSURE:
            logger.warning("hand-back unsettled", extra={**names, "answer": answer.reason})
            return False
        self.failpoints.hit("return.after_api")
        term_checked(self.claims.drop(claim.run_id, claim.claim, term=term))
        self._ours.discard(claim.claim)
        if answer.verdict is Verdict.ACCEPTED:
            self.metrics.handed_back.labels(reason).inc()
            logger.warning("run handed back, or cancelled if that was wanted", extra=names)
        else:
            logger.info("run is no longer ours, claim dropped", extra={**names, "answer": answer.reason})
        return True


@contextlib.contextmanager
def one_by_one(claim: Claim) -> Iterator[None]:
    """Log a definite no of the API about one claim: it must not keep the others waiting."""
    try:
        yield
    except ApiRejected as exc:
        logger.warning(
            "claim cannot be reconciled now",
            extra={
                "run_id": claim.run_id,
                "claim": claim.claim,
                "run_name": claim.name,
                "state": claim.state,
                "error": str(exc),
            },
        )
