"""Cancel and fence: what becomes of a run whose claim was cancelled, or is not this worker's any more."""

import logging
from dataclasses import dataclass

from flowfleet.api.client import EndApi, StateType
from flowfleet.errors import LedgerError
from flowfleet.ledger.claims import Claims, Refusal, State
from workers.background import BackgroundJobs
from workers.deployment import StopReason
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CancelAndFence:
    """What to do about cancelled and fenced claims. Renewals call it; the API is asked in a background job."""

    worker: str
    attempts: Attempts
    claims: Claims
    api: EndApi
    supervisor: Supervisor
    to_api: BackgroundJobs

    def cancelled(self, attempt: Attempt) -> None:
        """Kill a run that somebody wants cancelled; the ledger refuses the start of a run that has not begun."""
        if attempt.started_run is not None:
            # the engine writes Crashed on a bare TERM, so none is sent
            self.supervisor.stop(attempt.key, StopReason.CANCEL, kill=True)

    def fenced(self, attempt: Attempt, refusal: Refusal) -> None:
        """Deal with a claim that is not ours by the ledger; each renewal says so until the attempt is marked fenced."""
        ours = False
        if refusal is Refusal.OWNER:
            try:
                ours = self._still_ours(attempt)
            except LedgerError as exc:
                logger.info("owner of the claim is asked for again", extra={**attempt.fields, "error": str(exc)})
                return
        if ours and (attempt.started_run is None or attempt.held.state is State.ENDED):
            return  # the next move of the claim in the ledger checks its owner anyway
        if attempt.started_run is None or attempt.held.state is State.ENDED:
            self.attempts.change(attempt.key, fenced=True)
        else:
            self.to_api.post(lambda: self._ask_and_fence(attempt, refusal, ours=ours))

    def _still_ours(self, attempt: Attempt) -> bool:
        """Whether only our row in the roster has another owner, and not the claim.

        A process that took our name while we were cut off has none of our claims.
        """
        claim = self.claims.get(attempt.held.run_id)
        return claim is None or (claim.claim == attempt.held.claim and claim.worker in (None, self.worker))

    def _ask_and_fence(self, attempt: Attempt, refusal: Refusal, *, ours: bool) -> None:
        now = self.attempts.get(attempt.key)
        if now is None or now.fenced:
            return
        state = self.api.states([attempt.held.run_id]).get(attempt.held.run_id)
        if ours and (state is None or state.kind is not StateType.SCHEDULED):
            return  # a run is stopped only for somebody who gets it instead; the next renewal asks again
        if refusal is Refusal.STATE and state is not None and state.kind in (StateType.RUNNING, StateType.PENDING):
            return  # the leader has given the run up and not told the API yet: the next renewal asks again
        if self.attempts.change(attempt.key, fenced=True) is None:
            return
        if state is not None and state.kind.terminal:
            logger.warning("run goes on though it has an end at the API", extra=attempt.fields)
        else:
            self.supervisor.stop(attempt.key, StopReason.FENCE)
