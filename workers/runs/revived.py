"""Revived claims: claims that a Redis which has lost its last writes has brought back after their end was told."""

import logging
from dataclasses import dataclass

from flowfleet.ledger.claims import Claims
from workers.state.attempts import Attempts
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)

#: what the ledger's record of such a claim says
OUTCOME = "told before Redis lost it"


@dataclass(frozen=True, kw_only=True)
class RevivedClaims:
    """The release of claims that an older snapshot or a promoted replica still has, and that are settled here.

    Nobody renews them, and each takes up a slot until the leader would give it up. The disk of their host knows that
    they have ended and that the API has been told.
    """

    worker: str
    claims: Claims
    attempts: Attempts
    runs: RunFolders

    def release(self) -> None:
        """Release them; raises `LedgerError`. To be called when the gate opens, for only then can there be any."""
        for claim in self.claims.live():
            key = f"{claim.run_id}.{claim.claim}"
            if claim.worker != self.worker or self.attempts.get(key) is not None:
                continue
            folder = self.runs.find(claim.run_id, claim.claim)
            exit_ = folder.exit_record() if folder.settled() else None
            if exit_ is None:
                continue
            self.claims.end(claim.run_id, claim.claim, self.worker, exit_)
            if self.claims.release(claim.run_id, claim.claim, self.worker, OUTCOME).moved:
                logger.warning(
                    "the ledger had a claim again whose end was told before",
                    extra={"run_id": claim.run_id, "claim": claim.claim, "state": claim.state},
                )
