"""Arrival: what a worker does before it serves: it adopts what workers before it have left on this host."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from flowfleet.ledger.roster import Roster, WorkerRow
from workers.deployment import Deployer
from workers.reporting.endings import Endings
from workers.runs.adoption import Adoption, ClaimAdoption
from workers.runs.hand_back import HandBack
from workers.runs.supervisor import BeforeEnd
from workers.runs.takeover import Takeover, may_live, scopes_of
from workers.state.attempts import Attempt
from workers.state.state_folder import StateFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The takeover from dead workers of this host, and the adoption of all their runs and reports."""

    fleet: str
    #: the API's address, as it may be shown
    api: str
    row: WorkerRow
    state: StateFolder
    roster: Roster
    claim_adoption: ClaimAdoption
    deployer: Deployer
    hand_back: HandBack
    endings: Endings
    #: as `Adoption` has them
    on_alive: Callable[[str], object]
    on_cancelled: Callable[[Attempt], None]
    before_end: BeforeEnd

    def arrive(self) -> None:
        """Adopt all that is ours to look after, and send the reports again that are still to be sent."""
        recover = getattr(self.deployer, "recover", None)
        if recover is not None:
            recover(self.state.runs)  # what the disk has lost of runs that live
        takeover = Takeover(
            own=self.state,
            worker=self.row.worker,
            fleet=self.fleet,
            api=self.api,
            scopes=scopes_of(self.row.offer),
            take_reports=self.endings.outbox.take_over,
            may_live=partial(may_live, self.roster),
        )
        folders = takeover.take_over()
        reports = {report.key for report in self.endings.resend()}
        adoption = Adoption(
            worker=self.row.worker,
            claims=self.claim_adoption.claims,
            claim_adoption=self.claim_adoption,
            deployer=self.deployer,
            attempts=self.hand_back.attempts,
            hand_back=self.hand_back,
            to_ledger=self.hand_back.to_ledger,
            on_alive=self.on_alive,
            on_ended=self.endings.ended,
            on_cancelled=self.on_cancelled,
            before_end=self.before_end,
        )
        alive = adoption.adopt_all(folders, reports)
        logger.info("adoption done", extra={"alive": alive, "reports": len(reports)})
