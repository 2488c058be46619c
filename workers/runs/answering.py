"""Answering: this host's word to the ledger that no process of a lost claim is left.

A leader that has not heard of a claim for too long can only wait, or bury it; the host knows. With each renewal the
ledger names such claims of this host that the worker does not hold. Where nothing of one is left the worker says so:
a claim is then judged without waiting, and a tombstone goes.
"""

import logging
from dataclasses import dataclass, field

from flowfleet.ledger.claims import Missed, State
from workers.background import BackgroundJobs
from workers.runs.adoption import ClaimAdoption
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Answers for claims; each answer is repeated until Redis has heard it."""

    #: who we are to the ledger, and its claims
    host: ClaimAdoption
    #: the name of our state folder, by which run folders know their keeper
    name: str
    attempts: Attempts
    runs: RunFolders
    to_ledger: BackgroundJobs
    #: the claims for which an answer is on its way
    _under_way: set[str] = field(default_factory=set, init=False)

    def gone(self, attempt: Attempt) -> None:
        """Say that no process of this attempt is left, if anybody wants to know."""
        self._say(attempt.held.run_id, attempt.held.claim)

    def asked(self, missed: Missed) -> None:
        """Answer for a claim that the ledger has asked about, where its end is certain."""
        if missed.claim not in self._under_way and self._is_gone(missed):
            self._say(missed.run_id, missed.claim)

    def _is_gone(self, missed: Missed) -> bool:
        attempt = self.attempts.get(f"{missed.run_id}.{missed.claim}")
        if attempt is not None:
            return attempt.held.state is State.ENDED
        folder = self.runs.find(missed.run_id, missed.claim)
        if not folder.path.exists() or folder.keeper() != self.name:
            # what has no folder here may live in another container of this host's name, and another worker's run is
            # not ours to judge: whoever holds its lock answers
            return False
        return folder.settled() or folder.cleared() or (folder.start() or {}).get("by") == "abandoned"

    def _say(self, run_id: str, claim: str) -> None:
        def say() -> None:
            worker = self.host.worker
            done = self.host.claims.prove(run_id, claim, worker, self.host.nonce, f"{worker} says that it has ended")
            self._under_way.discard(claim)
            if done.moved:
                logger.info("ledger was told that a lost run has ended", extra={"run_id": run_id, "claim": claim})

        self._under_way.add(claim)
        self.to_ledger.post(say)
