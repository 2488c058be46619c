"""Lost reports: what the API is told of runs whose hosts are away, and how their claims go then."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet import certificate
from flowfleet.api.client import Answer, EndApi, Mark, RunState, StateType, Verdict
from flowfleet.api.traits import Traits
from flowfleet.certificate import EndedBy
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import again_id
from flowfleet.ledger.claims import AGAIN, UNKNOWN_WORKER, Claim, Claims, Outcome
from flowfleet.ledger.gate import Gate
from flowfleet.logs import redact
from poller.cancellation import FEW, GONE_SECONDS, MANY_GONE_SECONDS
from poller.claiming import term_checked
from poller.leader import TermLost
from poller.metrics import PollerMetrics
from poller.reconcile import OWNER_SECONDS, StallWatch

logger = logging.getLogger(__name__)

#: what the API does not take now is told again after so long
AGAIN_SECONDS = 5.0


@dataclass
class LostReports:
    """Tells the API of lost runs, and of the ends of runs whose hosts are away, and then drops their claims."""

    api: EndApi
    claims: Claims
    gate: Gate
    mark: Mark
    traits: Traits
    failpoints: Failpoints
    metrics: PollerMetrics
    clock: Callable[[], float]
    ttl_seconds: float
    #: called after each answer of the API
    progressed: Callable[[], object] = lambda: None
    #: claim → when it is to be told again
    _not_before: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # the time in which the API gave no answer counts for neither
        #: for how long the API has not shown the run of a claim
        self._absent = StallWatch(self.clock, 4 * AGAIN_SECONDS)
        #: for how long the worker of an ended claim, which lives, could have told its end
        self._left = StallWatch(self.clock, 4 * AGAIN_SECONDS)

    def keep(self, claims: Sequence[Claim]) -> None:
        """Forget what was seen of all claims but these."""
        for watch in (self._absent, self._left):
            watch.keep([claim.claim for claim in claims])

    def words(self, claim: Claim, since: float, proof: str, *, cut_off: bool = False) -> str:
        """The sentences for people about a run that was last heard of at `since`; what names are in them is bounded."""
        where = f"its host {claim.host[:80]} (worker {(claim.worker or '')[:120]})"
        if claim.worker == UNKNOWN_WORKER:
            where = "its host, whose name was lost with the data of Redis,"
        at = f"{datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC"
        if proof:
            why = "its worker was given up by worker forget" if proof == "forgotten" else proof[:160]
            return f"The flow run was lost: {where} has not been heard of since {at}, and {why}."
        known = "is cut off from Redis" if cut_off else "has not been heard of"
        forget = forget_command(claim.worker)
        return (
            f"The flow run was lost: {where} {known} since {at}. Its process may live on there: bring the host back, "
            f"or, if it is gone for good, run `{forget}`. Until then the run is not started again."
        )

    def tell(self, term: int, claim: Claim) -> bool:
        """Tell the API that a judged run is lost, unless it has an end there or goes on by itself; bury the claim.

        True when the claim is buried. Raises `ApiUnavailable` when the API has fallen silent, and `TermLost`.
        """
        if not self._due(claim):
            return False
        state, outcome = self._read(claim)
        if outcome is None and state is not None:
            outcome = self._write(term, claim, state)
        if outcome is None:
            self._not_before[claim.claim] = self.clock() + AGAIN_SECONDS
            return False
        self.failpoints.hit("lost.after_api")
        term_checked(self.claims.bury(term, claim.run_id, claim.claim, outcome))
        self.failpoints.hit("lost.after_bury")
        self.metrics.lost_runs.inc()
        self.metrics.ended.labels(by=EndedBy.HOST_LOST.value).inc()
        names = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name, "worker": claim.worker}
        logger.warning("lost run buried", extra={**names, "outcome": outcome, "proof": claim.proof or "none"})
        return True

    def _read(self, claim: Claim) -> tuple[RunState | None, str | None]:
        """The run's state, and the outcome where nothing is to be told; neither while it cannot be found."""
        state = self.api.states([claim.run_id]).get(claim.run_id)
        self.progressed()
        absent = self._absent.unmoved_seconds(claim.claim, state is None)
        if state is None:
            return None, "gone" if absent >= self._patience() else None
        return state, _nothing_to_tell(claim, state)

    def _patience(self) -> float:
        """How long a run must be absent to count as deleted: longer while many are."""
        return GONE_SECONDS if self._absent.count(True) <= FEW else MANY_GONE_SECONDS

    def _write(self, term: int, claim: Claim, state: RunState) -> str | None:
        """Write what is due; the outcome, or None when the API is to be asked again."""
        message = claim.reason or "The flow run was lost."
        if claim.proof and claim.missed_at is not None:
            # it may have come after the judgement, whose words know nothing of it
            message = self.words(claim, claim.missed_at - self.ttl_seconds, claim.proof)
        if claim.policy == "requeue" and claim.proof and state.needs_process:
            self._still_leads(term)
            answer = self.api.run_again(claim.run_id, claim.claim, f"{message} It is started again.", self.mark)
            return self._outcome(claim, answer, AGAIN)
        if state.kind is StateType.CANCELLING:
            may_live = "" if claim.proof else "; the process may still run there"
            asked = f" A cancel was asked for ({redact(claim.cancel_why)[:200]})." if claim.cancel_why else ""
            message = f"Cancelled: its host is away{may_live}.{asked} {message}"
        return self._report(term, claim, state, message)

    def _report(self, term: int, claim: Claim, state: RunState, message: str) -> str | None:
        """Report the end that is due over this state: Cancelled where that is wanted, else a crash."""
        kind = StateType.CRASHED if self.traits.has_crashed else StateType.FAILED
        if state.kind is StateType.CANCELLING:
            kind = StateType.CANCELLED
        answer = self.api.report(
            claim.run_id, kind, message, self.mark, claim=claim.claim, still=lambda: self._still_leads(term)
        )
        return self._outcome(claim, answer, kind.value.lower())

    def _outcome(self, claim: Claim, answer: Answer, told: str) -> str | None:
        self.progressed()
        if answer.silence:
            raise answer.silence
        if answer.verdict is Verdict.ACCEPTED:
            return told
        if answer.claimed_since:
            return "claimed since"
        if answer.verdict is Verdict.REFUSED and answer.state and (outcome := _nothing_to_tell(claim, answer.state)):
            return outcome
        extra = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name, "answer": answer.reason}
        logger.warning("a lost run cannot be told yet", extra={**extra, "next_try_seconds": AGAIN_SECONDS})
        return None

    def inherit(self, term: int, claim: Claim, *, owner_lives: bool = False) -> bool:
        """Tell the end of a run that no worker tells, by the short exit in the ledger; True when its claim is gone.

        A worker of the claim's name that lives and does not hold the claim has lost its disk, or sends a report of an
        earlier process: it has time for that.
        """
        if not self._due(claim):
            return False
        state, outcome = self._read(claim)
        if outcome is None and state is not None and state.comes_back and (claim.exit or {}).get("code") == 0:
            outcome = state.name.lower()
        waits = owner_lives and self._left.unmoved_seconds(claim.claim, claim.moves) < OWNER_SECONDS
        if outcome is None and state is not None and not waits:
            outcome = self._report(term, claim, state, _end_words(claim, owner_lives=owner_lives))
        if outcome is None:
            self._not_before[claim.claim] = self.clock() + AGAIN_SECONDS
            return False
        done: Outcome = term_checked(self.claims.inherit(term, claim.run_id, claim.claim, claim.moves, outcome=outcome))
        if done.moved:
            self.metrics.ended.labels(by=EndedBy.of(claim.exit).value).inc()
            logger.warning(
                "the end of a run was told for its host, which does not tell it",
                extra={
                    "run_id": claim.run_id,
                    "claim": claim.claim,
                    "run_name": claim.name,
                    "worker": claim.worker,
                    "outcome": outcome,
                    "owner_lives": owner_lives,
                },
            )
        return done.moved

    def _due(self, claim: Claim) -> bool:
        now = self.clock()
        self._not_before = {key: at for key, at in self._not_before.items() if at > now}
        return claim.claim not in self._not_before

    def _still_leads(self, term: int) -> None:
        leader = self.gate.leader()
        if leader is None or leader.term != term:
            raise TermLost("another poller leads this fleet now")


def forget_command(worker: str | None) -> str:
    """The command that gives up the worker of a lost run, to be pasted as it is."""
    return f"worker forget {(worker or UNKNOWN_WORKER)[:120]}"


def _nothing_to_tell(claim: Claim, state: RunState) -> str | None:
    """The outcome where the API needs no word of ours: an end, or a run that goes on by itself."""
    if state.kind is StateType.SCHEDULED and state.call and state.call == again_id(claim.claim, claim.run_id):
        # by us: whoever wrote it had no answer, or did not live to note it
        return AGAIN
    if state.kind.terminal or state.waits:
        return (state.name or state.kind.value).lower()
    return None


def _end_words(claim: Claim, *, owner_lives: bool) -> str:
    """The end of a run in words, by the short exit that its worker has written into the ledger."""
    end = claim.exit or {}
    if isinstance(end.get("sentence"), str):
        how = str(end["sentence"])[:300]
    elif isinstance(end.get("error"), str):
        how = f"could not be started: {str(end['error'])[:300]}"
    elif end.get("signal") is not None:
        how = f"was ended by signal {end['signal']}"
    elif end.get("code") is not None:
        how = f"exited {end['code']}" + ("" if end["code"] else " without reporting an end")
    else:
        how = "ended, exit unknown"
    more = f" {took}" if (took := certificate.usage(end)) else ""
    if isinstance(end.get("last_line"), str):
        more += f" Its last output was: {end['last_line'][:300]}"
    why = "which has lost the records of it" if owner_lives else "whose host has been away since"
    return f"The flow run's process {how} on {claim.worker}, {why}.{more}"
