"""Draining: a worker that the operator has drained ends once it holds nothing any more."""

import logging
from dataclasses import dataclass, field

from flowfleet.ledger.roster import Roster
from workers.lifecycle.consumer import Slots
from workers.lifecycle.stop_signals import StopSignals
from workers.reporting.outbox import Outbox
from workers.state.attempts import Attempts
from workers.state.ledger_view import LedgerView

logger = logging.getLogger(__name__)


@dataclass
class Draining:
    """The drain of one worker, looked at after each renewal."""

    worker: str
    roster: Roster
    ledger_view: LedgerView
    attempts: Attempts
    slots: Slots
    outbox: Outbox
    stop_signals: StopSignals
    #: whether the worker ended because it had been drained before it started: it could take no run
    from_start: bool = field(default=False, init=False)
    _was_wanted: bool = field(default=False, init=False)

    def look(self) -> None:
        """Ask for the stop of a drained worker that is empty; raises `LedgerUnavailable`."""
        if self.ledger_view.wanted != "draining":
            self._was_wanted = True
            return
        empty = not self.attempts.all() and self.slots.in_use() == 0
        if not empty or not self.ledger_view.ready.is_set() or self.stop_signals.first_signal is not None:
            return
        if self.outbox.to_send():
            return  # of runs that an earlier process had: nobody else on this host tells their ends
        self.from_start = not self._was_wanted
        if self.from_start:
            logger.warning(
                "this worker was drained before it started, and ends: `worker resume` lets it take runs again",
                extra={"worker": self.worker, "resume": f"worker resume {self.worker}", "note": self._note() or None},
            )
        else:
            logger.info("drained, this worker ends", extra={"worker": self.worker})
        self.stop_signals.request()

    def _note(self) -> str:
        """Why it was drained, as its operator has said."""
        return next((row.note for row in self.roster.rows() if row.worker == self.worker), "")
