"""Reinstate: runs that the API hands out again while their process lives: written back, or left to their users' word.

Prefect 1's Lazarus puts a run whose heartbeats have failed for ten minutes back to Scheduled, whether it runs or not.
Such a run is not claimed: the ledger refuses a second claim of it. But as long as it is Scheduled its own tasks cannot
begin.

Where the API puts no run back by itself, somebody wants the run once more. So do those at Prefect 1 whose run had ended
there. Such a run waits for the end of its earlier process, and its log page says so.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowfleet.api.backlog import UnfitRun
from flowfleet.api.client import ApiClient, Mark, Verdict
from flowfleet.ledger.claims import Claim, Claims, State
from flowfleet.ledger.roster import WorkerRow
from poller.listing import Listing
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)

#: a run is written back at most this often
AGAIN_SECONDS = 30.0
#: at most so many are written back after one listing: after an outage of the API all may come at once, others wait
MOST = 25
#: claims whose process may live
STARTED = frozenset({State.STARTING, State.RUNNING})


@dataclass
class Reinstater:
    """Looks in each listing for runs that this fleet runs already, and reinstates them."""

    api: ApiClient
    claims: Claims
    mark: Mark
    metrics: PollerMetrics
    clock: Callable[[], float]
    #: called after each answer of the API
    progressed: Callable[[], object] = lambda: None
    _asked: dict[str, float] = field(default_factory=dict, init=False)

    def answer(self, listing: Listing, live: Sequence[Claim], rows: Sequence[WorkerRow]) -> list[UnfitRun]:
        """Take runs that have a process out of the listing; write back the state of those the API calls Scheduled.

        A run that the API calls Running waits for a retry inside its own process, and is left to it. The answer is the
        runs that somebody wants once more, with what they wait for. Raises `ApiUnavailable` when the API falls silent.
        """
        started = {claim.run_id: claim for claim in live if claim.state in STARTED}
        if not self.api.traits.requeues_running:
            # the look for cancelled runs ends the process (poller/cancellation.py)
            due = [started[run.run_id] for run in listing.runs() if run.run_id in started]
            return [_waits(claim, "and is ended within about a minute") for claim in due]
        listed = listing.take_out(started.keys())
        owners = {row.worker for row in rows if row.live}
        now = self.clock()
        self._asked = {run_id: at for run_id, at in self._asked.items() if now - at < AGAIN_SECONDS}
        candidates = [
            run
            for run in listed
            if run.state != "Running" and run.run_id not in self._asked and started[run.run_id].worker in owners
        ]
        waiting = []
        for run in candidates[:MOST]:
            self._asked[run.run_id] = self.clock()
            if self._write_back(started[run.run_id]):
                remedy = "`flowfleet cancel --now` ends both, and `flowfleet requeue` starts the run again"
                waiting.append(_waits(started[run.run_id], f"and the run waits for its end: {remedy}"))
        return waiting

    def _write_back(self, claim: Claim) -> bool:
        """Write the state of a run back; True when it was refused, since somebody wants the run once more."""
        now = self.claims.get(claim.run_id)
        if now is None or now.claim != claim.claim or now.state not in STARTED:
            return False  # it ended while the API listed: whoever looks after its end finds its true state
        answer = self.api.claims.reinstate(claim.run_id, claim.claim, self.mark)
        self.progressed()
        names = {"run_id": claim.run_id, "claim": claim.claim, "worker": claim.worker, "run_name": claim.name}
        if answer.silence:
            raise answer.silence
        if answer.verdict is Verdict.ACCEPTED:
            self.metrics.reinstated.inc()
            logger.warning("the API had put back a run that is running: its state is written again", extra=names)
        elif answer.verdict is Verdict.UNSURE:
            logger.warning("the API has put back a run that is running", extra={**names, "answer": answer.reason})
        else:
            # somebody has restarted the run before its process was seen to end: it is claimed when the process is gone
            logger.info("a run that is due again still has its process", extra={**names, "answer": answer.reason})
            return True
        return False


def _waits(claim: Claim, more: str) -> UnfitRun:
    reason = f"its earlier process still runs on {claim.host[:80]}, {more}"
    return UnfitRun(run_id=claim.run_id, name=claim.name, reason=reason)
