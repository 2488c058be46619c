"""Hand back: a claim whose user code never began goes back to the API as Scheduled: ledger, API, ledger, in this order.

A crash in between leaves the claim `returning`, and the leader finishes it. A claim that Redis has lost is told to the
API all the same. A folder goes only where the ledger has confirmed the hand-back; else it stays until it is pruned, to
prove that user code never began.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from flowfleet.api.client import EndApi, Mark, StateType, Verdict
from flowfleet.errors import ApiUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, Refusal
from workers.background import BackgroundJobs
from workers.reporting.exit_table import cancelled_message
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Return:
    """One claim on its way back, once the ledger has it as returning, or has lost it."""

    held: Claim
    reason: str
    #: None: no worker of this host has taken it, so nothing of it is on disk
    folder: RunFolder | None
    #: the words by which our metrics count it
    counted_as: str
    #: our proof that user code did not and will not begin, without which the API gives back no run in Launching
    never_began: bool
    cancelled: bool
    #: who has asked for the cancel, and why
    why: str = ""
    lost: bool = False
    on_done: Callable[[], None] = lambda: None


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

    def finish(self, claim: Claim, on_done: Callable[[], None]) -> None:
        """Finish the hand-back of a claim that the ledger has as returning by this worker, though it never took it."""
        went = _Return(
            held=claim,
            reason=claim.reason or "not started",
            folder=None,
            counted_as="yielded",
            never_began=claim.never_began,
            cancelled=bool(claim.cancel),
            why=claim.cancel_why,
            on_done=on_done,
        )
        self.to_api.post(lambda: self._tell(went))

    def _give(self, attempt: Attempt, reason: str, *, cancelled: bool) -> None:
        held = attempt.held
        outcome = self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
        if outcome.refusal is Refusal.OWNER and self.take_again(attempt):
            outcome = self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
        now = self.attempts.remove(attempt.key)
        lost = outcome.refusal is Refusal.UNKNOWN
        if not outcome.moved and not lost:
            # the leader has taken the claim back and tells the API itself, or the claim is somebody else's, or it is
            # held for lost: then this host is asked whether a process is left, and only the folder can answer
            logger.info("nothing to hand back", extra={**attempt.fields, "refusal": str(outcome.refusal)})
            attempt.folder.settle()
            return
        self.failpoints.hit("return.after_ledger")
        if lost:
            # perhaps Redis has lost the claim: then nobody else ever tells the API, and the call's id fences our write
            logger.warning("claim is unknown to the ledger, handed back all the same", extra=attempt.fields)
        went = _Return(
            held=held,
            reason=reason,
            folder=attempt.folder,
            counted_as="not started",
            never_began=True,
            cancelled=cancelled and not lost,
            why=now.cancel.why if now is not None and now.cancel is not None else "",
            lost=lost,
        )
        self.to_api.post(lambda: self._tell(went))

    def _tell(self, went: _Return) -> None:
        held, cancelled, answer = went.held, went.cancelled, None
        if not cancelled:
            answer = self.api.hand_back(
                held.run_id, held.call, held.due, self.mark, went.reason, never_began=went.never_began
            )
            # the state Cancelling carries no call's id: of a lost claim it may by now be about another attempt
            cancelled = answer.being_cancelled and not (went.lost and self._claimed_anew(held))
        if cancelled:
            why = went.why or (answer.state.message if answer is not None and answer.state is not None else "")
            message = cancelled_message(why, "It was not started.")
            answer = self.api.report(held.run_id, StateType.CANCELLED, message, self.mark, claim=held.claim)
        assert answer is not None
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the hand-back of run {held.run_id}: {answer.reason}")
        if answer.verdict is Verdict.ACCEPTED:
            self.on_told(went.counted_as)
        self.failpoints.hit("return.after_api")
        self.to_ledger.post(lambda: self._drop(went))

    def _claimed_anew(self, held: Claim) -> bool:
        claim = self.claims.get(held.run_id)
        return claim is not None and claim.claim != held.claim

    def _drop(self, went: _Return) -> None:
        held = went.held
        outcome = self.claims.drop(held.run_id, held.claim, worker=self.worker)
        if outcome.refusal is Refusal.STATE:
            # Redis had lost the claim, and a renewal that was under way as we heard of that has written it again
            reason = "it was handed back while Redis had lost it"
            self.claims.give_back(held.run_id, held.claim, reason, worker=self.worker, never_began=True)
            self.claims.drop(held.run_id, held.claim, worker=self.worker)
        if went.folder is not None and went.lost:
            went.folder.settle()  # the claim may have been buried: the folder is the proof that no process is left
        elif went.folder is not None:
            went.folder.remove()  # user code never began here, so there is no output to keep until it is pruned
        went.on_done()
