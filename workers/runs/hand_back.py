"""Hand back: a claim whose user code never began goes back to the API as Scheduled: ledger, API, ledger, in this order.

A crash in between leaves the claim `returning`, and the leader finishes it. A claim that Redis has lost is told to the
API all the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flowfleet.api.client import EndApi, Mark, StateType, Verdict
from flowfleet.errors import ApiUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, Refusal
from workers.background import BackgroundJobs
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HandBack:
    """The hand-back of claims; every step is repeated until its neighbour, Redis or the API, has answered."""

    attempts: Attempts
    claims: Claims
    api: EndApi
    worker: str
    mark: Mark
    to_ledger: BackgroundJobs
    to_api: BackgroundJobs
    failpoints: Failpoints
    #: called with a short reason once the API has the run back
    on_told: Callable[[str], None] = lambda _reason: None
    #: takes a claim over once more that the ledger gives to another worker; True when the claim is ours again
    take_again: Callable[[Attempt], bool] = lambda _attempt: False

    def give(self, attempt: Attempt, reason: str, *, cancelled: bool = False) -> None:
        """Hand back an attempt that is taken or starting; its folder must not be able to start any more."""
        logger.info("run is handed back", extra={**attempt.fields, "reason": reason})
        self.to_ledger.post(lambda: self._give(attempt, reason, cancelled=cancelled))

    def _give(self, attempt: Attempt, reason: str, *, cancelled: bool) -> None:
        held = attempt.held
        outcome = self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
        if outcome.refusal is Refusal.OWNER and self.take_again(attempt):
            outcome = self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
        self.attempts.remove(attempt.key)
        lost = outcome.refusal is Refusal.UNKNOWN
        if not outcome.moved and not lost:
            # the leader has taken the claim back and tells the API itself, or the claim is somebody else's
            logger.info("nothing to hand back", extra={**attempt.fields, "refusal": str(outcome.refusal)})
            attempt.folder.remove()
            return
        self.failpoints.hit("return.after_ledger")
        if lost:
            # perhaps Redis has lost the claim: then nobody else ever tells the API, and the call's id fences our write
            logger.warning("claim is unknown to the ledger, handed back all the same", extra=attempt.fields)
        self.to_api.post(lambda: self._tell(held, attempt.folder, reason, cancelled=cancelled and not lost, lost=lost))

    def _tell(self, held: Claim, folder: RunFolder, reason: str, *, cancelled: bool, lost: bool) -> None:
        if not cancelled:
            answer = self.api.hand_back(held.run_id, held.call, held.due, self.mark, reason, never_began=True)
            # the state Cancelling carries no call's id: of a lost claim it may by now be about another attempt
            cancelled = answer.being_cancelled and not (lost and self._claimed_anew(held))
        if cancelled:
            answer = self.api.report(held.run_id, StateType.CANCELLED, "Cancelled before it was started.", self.mark)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the hand-back of run {held.run_id}: {answer.reason}")
        if answer.verdict is Verdict.ACCEPTED:
            self.on_told("not started")
        self.failpoints.hit("return.after_api")
        self.to_ledger.post(lambda: self._drop(held, folder))

    def _claimed_anew(self, held: Claim) -> bool:
        claim = self.claims.get(held.run_id)
        return claim is not None and claim.claim != held.claim

    def _drop(self, held: Claim, folder: RunFolder) -> None:
        outcome = self.claims.drop(held.run_id, held.claim, worker=self.worker)
        if outcome.refusal is Refusal.STATE:
            # Redis had lost the claim, and a renewal that was under way as we heard of that has written it again
            reason = "it was handed back while Redis had lost it"
            self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
            self.claims.drop(held.run_id, held.claim, worker=self.worker)
        folder.remove()  # user code never began here, so there is no output to keep until it is pruned
