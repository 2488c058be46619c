"""Lost: started claims that nobody renews: missing after a TTL, judged after the grace or by proof, told, and buried.

Every time here is what this leader saw by its own monotonic clock, begun anew after any outage that it saw.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flowfleet.api.backlog import UnfitRun
from flowfleet.api.life import LifeApi, Silent
from flowfleet.errors import ApiRejected
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun
from flowfleet.ledger.claims import UNKNOWN_WORKER, Claim, Claims, Lease, State, Tomb
from flowfleet.ledger.roster import WorkerRow
from poller.claiming import term_checked
from poller.lost_reports import LostReports, forget_command
from poller.reconcile import StallWatch, one_by_one

logger = logging.getLogger(__name__)

STARTED = frozenset({State.STARTING, State.RUNNING})
#: a worker that is cut off from Redis puts the judgement of its runs off by no more than this
CUT_OFF_SECONDS = 600.0
#: after a move the next one may be due at once
SOON_SECONDS = 0.1
#: how often the API is asked for signs of life while something is missing
SIGNS_SECONDS = 10.0
#: a run whose dead man's switch has run out is started again so much later: the KILL and the last words of its shim
SWITCH_MARGIN_SECONDS = 5.0


@dataclass
class LostRuns:
    """The leader's watch over what has started and is not heard of."""

    claims: Claims
    life: LifeApi
    reports: LostReports
    fleet: str
    failpoints: Failpoints
    clock: Callable[[], float]
    wall: Callable[[], float]
    lease: Lease
    #: whether a run shows its own life at the API; elsewhere only its worker does
    runs_beat: bool
    #: seconds after which the next look is worth its while
    wait_seconds: float = field(default=float("inf"), init=False)
    #: the tombstones, as of the last look
    tombs: tuple[Tomb, ...] = field(default=(), init=False)
    _signs_at: float = field(default=float("-inf"), init=False)
    #: when the API last told signs of life, and whether it was away since
    _told_at: float = field(default=float("-inf"), init=False)
    _away: bool = field(default=False, init=False)
    _signs: Mapping[str, str] = field(default_factory=dict, init=False)
    _asked: set[str] = field(default_factory=set, init=False)
    _warned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._moves, self._missing, self._life = (StallWatch(self.clock) for _ in range(3))

    def begin_anew(self) -> None:
        """Begin all watches anew, after an outage or with a new term."""
        for watch in (self._moves, self._missing, self._life):
            watch.begin_anew()
        self.reports.keep(())
        self._signs_at, self._signs = float("-inf"), {}

    def doubt_signs(self) -> None:
        """The API gives no answer, so perhaps no sign of life gets there either: ask for them with the next look."""
        self._signs_at, self._away = float("-inf"), True

    def tend(self, term: int, claims: Sequence[Claim], rows: Sequence[WorkerRow]) -> int:
        """Look at all claims that have started; return how many were moved. Raises `ApiUnavailable`, `TermLost`."""
        by_worker = {row.worker: row for row in rows}
        for watch in (self._moves, self._missing, self._life):
            watch.keep([claim.claim for claim in claims])
        self.reports.keep(claims)
        self._clear(term, by_worker)
        missing = [claim for claim in claims if claim.state is State.MISSING]
        self._ask_for_signs(missing, by_worker)
        patience = self._patience(len(missing), sum(claim.state in STARTED for claim in claims))
        moved, self.wait_seconds = 0, float("inf")
        for claim in claims:
            row = by_worker.get(claim.worker or "")
            with one_by_one(claim):
                if claim.state in STARTED:
                    moved += self._watch(term, claim)
                elif claim.state is State.MISSING:
                    moved += self._judge(term, claim, row, patience)
                elif claim.state is State.JUDGED:
                    moved += self.reports.tell(term, claim)
                elif claim.state is State.ENDED:
                    moved += self._inherit(term, claim, row)
        if moved:
            self.wait_seconds = SOON_SECONDS
        return moved

    def blocked(self, due: Sequence[FlowRun], live: Sequence[Claim]) -> list[UnfitRun]:
        """Those of the due runs that nobody may start, since an earlier process of theirs may live, with the reason."""
        workers = {claim.run_id: claim.worker for claim in live if claim.state in (State.MISSING, State.JUDGED)}
        workers |= {tomb.run_id: tomb.worker for tomb in self.tombs}
        return [
            UnfitRun(run_id=run.run_id, name=run.name, reason=may_live(workers[run.run_id] or ""))
            for run in due
            if run.run_id in workers
        ]

    def _clear(self, term: int, by_worker: Mapping[str, WorkerRow]) -> None:
        """Read the tombstones, and take those away whose hosts have another boot id now."""
        standing = []
        for tomb in self.claims.tombs():
            if rebooted(tomb, by_worker.get(tomb.worker)):
                term_checked(self.claims.clear(term, tomb.run_id, tomb.claim))
                logger.info("tombstone cleared, its host was restarted", extra={"run_id": tomb.run_id})
            else:
                standing.append(tomb)
        self.tombs = tuple(standing)

    def _patience(self, missing: int, started: int) -> float:
        """One TTL more while most of what has started is missing at once: then it is rather something between us."""
        many = missing >= 2 and missing > started
        if many and not self._warned:
            logger.warning(
                "more than half of the started runs are missing at once: they are waited for once more",
                extra={"missing": missing, "started": missing + started, "seconds": self.lease.ttl_seconds},
            )
        self._warned = many
        return self.lease.ttl_seconds if many else 0.0

    def _watch(self, term: int, claim: Claim) -> bool:
        still = self._moves.unmoved_seconds(claim.claim, claim.moves)
        if still < self.lease.ttl_seconds and not claim.proof:
            self.wait_seconds = min(self.wait_seconds, max(self.lease.ttl_seconds - still, SOON_SECONDS))
            return False
        if not term_checked(self.claims.miss(term, claim.run_id, claim.claim, claim.moves)).moved:
            return False
        self.failpoints.hit("lost.after_miss")
        logger.warning("a run is missing", extra={**names(claim), "silent_seconds": round(still, 1)})
        return True

    def _ask_for_signs(self, missing: Sequence[Claim], by_worker: Mapping[str, WorkerRow]) -> None:
        now, asked = self.clock(), {claim.claim for claim in missing}
        interval = min(SIGNS_SECONDS, self.lease.grace_seconds / 4)
        if now - self._signs_at < interval and asked <= self._asked:
            return
        if not missing:
            self._signs_at, self._asked = now, asked
            return
        silent = [
            Silent(
                run_id=claim.run_id,
                worker=claim.worker or "",
                pools=row.offer.pools if row else (),
                pool_id=claim.route.scope,
            )
            for claim in missing
            for row in [by_worker.get(claim.worker or "")]
        ]
        try:
            self._signs = self.life.signs(silent, self.fleet)
        except ApiRejected as exc:
            logger.info("the API does not tell signs of life", extra={"error": str(exc)})
        else:
            if self._away and self.clock() - self._told_at > 3 * interval:
                # nobody can show a life at an API that is away: the grace begins anew with its first answer
                self._life.begin_anew()
            self._told_at, self._away = self.clock(), False
        # not after an outage, which ends this round: nobody is judged by signs of before
        self._signs_at, self._asked = now, asked

    def _judge(self, term: int, claim: Claim, row: WorkerRow | None, patience: float) -> bool:
        gone = self._missing.unmoved_seconds(claim.claim, claim.missed_at)
        sign = self._signs.get(claim.run_id, "")
        quiet = min(gone, self._life.unmoved_seconds(claim.claim, sign))
        proof = claim.proof or (f"its host {claim.host} was restarted" if rebooted(claim, row) else "")
        cut_off = bool(sign) and not self.runs_beat and gone >= CUT_OFF_SECONDS
        grace = self.lease.grace_seconds + patience
        if claim.policy == "requeue" and claim.switch:
            # its deadline may be by a longer lease than ours, of a leader before
            grace += SWITCH_MARGIN_SECONDS + max(claim.ttl - self.lease.ttl_seconds, 0.0)
        if not proof and not cut_off and quiet < grace:
            self.wait_seconds = min(self.wait_seconds, max(grace - quiet, SOON_SECONDS))
            return False
        if not proof and claim.policy == "requeue" and claim.switch:
            proof = "its process has ended itself, since its lease ran out"
        # a leader that has just begun has watched for less time than the claim is missing
        since = (claim.missed_at or self.wall() - gone) - self.lease.ttl_seconds
        reason = self.reports.words(claim, since, proof, cut_off=cut_off)
        outcome = term_checked(
            self.claims.judge(term, claim.run_id, claim.claim, claim.moves, proof=proof, reason=reason)
        )
        if not outcome.moved or outcome.claim is None:
            return False
        self.failpoints.hit("lost.after_judge")
        logger.warning("a run is held for lost", extra={**names(claim), "proof": proof or "none"})
        self.reports.tell(term, outcome.claim)
        return True

    def _inherit(self, term: int, claim: Claim, row: WorkerRow | None) -> bool:
        still = self._moves.unmoved_seconds(claim.claim, claim.moves)
        # whoever holds the claim renews it, also while its report waits: that a worker of its name lives says nothing
        if still < self.lease.ttl_seconds + self.lease.grace_seconds:
            return False
        return self.reports.inherit(term, claim, owner_lives=row is not None and row.live)


def may_live(worker: str) -> str:
    """Why a lost run is not started again, for people."""
    host = "a host that nobody knows any more" if worker == UNKNOWN_WORKER else worker.rpartition("@")[2][:80]
    remedy = f"bring it back, or, if it is gone for good, `{forget_command(worker)}`"
    return f"its earlier process may live on {host}: {remedy}"


def rebooted(started: Claim | Tomb, row: WorkerRow | None) -> bool:
    """Whether the machine that this was started on has another boot id by its worker's row: nothing of it lives.

    A host that names no machine is a container, whose next one may be on another machine while this one lives.
    """
    if row is None or not row.boot_id or not started.boot_id or not started.machine:
        return False
    return row.machine == started.machine and row.boot_id != started.boot_id


def names(claim: Claim) -> dict[str, object]:
    """The fields of a log line about a claim."""
    return {"run_id": claim.run_id, "claim": claim.claim, "worker": claim.worker, "run_name": claim.name}
