"""Leases: until when each run of this worker may go on without news of its claim, and what ends it then.

Only a run that would be started again elsewhere has such an end (`Claim.switch`). Its shim holds the switch
(workers/shim/switch.py) and reads the deadline in the run's folder; a shim that is frozen, or dead, is stood in for by
this worker. Both count by the boot-time clock from the sending of the last renewal that was accepted, less a margin, so
the run has ended before anybody who counts from the arrival of that renewal can think so.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowfleet.ledger.claims import State
from workers.shim import switch
from workers.shim.syscalls import boot_clock
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView

logger = logging.getLogger(__name__)

#: taken off the lease: time that a frozen worker may have lost between the check and the fork, or a shim until the KILL
MARGIN_SECONDS = 3.0
#: the shim comes first; the worker steps in for one that has not done it by then
SHIM_SECONDS = switch.LOOK_SECONDS + 0.5


@dataclass(frozen=True, kw_only=True)
class Leases:
    """The leases of all attempts of this worker."""

    attempts: Attempts
    ledger_view: LedgerView
    clock: Callable[[], float] = boot_clock

    def deadline(self, key: str) -> float:
        """By when (boot-time clock) the attempt must have begun, or must have ended, as its lease is now.

        An adopted one has the deadline that the worker before has written, until our first renewal is accepted.
        """
        proof, attempt = self.attempts.proof(key), self.attempts.get(key)
        if proof is None and attempt is not None and attempt.adopted:
            written = switch.read(attempt.folder.path)
            if written is not None:
                return written
        return (self.clock() if proof is None else proof) + self.ledger_view.lease.ttl_seconds - MARGIN_SECONDS

    def ttl(self, key: str) -> float:
        """The lease by which the deadline of an attempt is counted; 0 where the worker before has written it."""
        attempt = self.attempts.get(key)
        before = attempt is not None and attempt.adopted and self.attempts.proof(key) is None
        return 0.0 if before else self.ledger_view.lease.ttl_seconds

    def write(self, attempt: Attempt) -> None:
        """Write the deadline of an attempt into its folder, where its shim reads it; raises `OSError`."""
        switch.write(attempt.folder.path, self.deadline(attempt.key))

    def extend(self, keys: Iterable[str]) -> None:
        """Write the new deadlines of these attempts, for which the ledger has just accepted a proof of life."""
        for attempt in filter(None, map(self.attempts.get, keys)):
            if attempt.held.switch and attempt.held.state in (State.STARTING, State.RUNNING):
                try:
                    self.write(attempt)
                except OSError as exc:  # it ends when the time is over: no disk trouble may let it run twice
                    logger.error("lease of a run not written", extra={**attempt.fields, "error": str(exc)})

    def overdue(self) -> list[str]:
        """The keys of the runs that should have been ended by their switch, and live."""
        now = self.clock() - SHIM_SECONDS
        return [
            attempt.key
            for attempt in self.attempts.running()
            if attempt.held.switch and self.deadline(attempt.key) <= now
        ]
