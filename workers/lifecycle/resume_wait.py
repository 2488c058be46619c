"""Resume wait: a drained worker that is not to end waits, signed off, until it may take runs again.

What starts containers anew whenever they end (compose, Kubernetes) would start a drained worker for ever.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from flowfleet.ledger.roster import Roster
from flowfleet.retry import Retry

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0


@dataclass(frozen=True)
class ResumeWait:
    """The wait of one worker, which has signed off, for its operator's word."""

    roster: Roster
    worker: str
    pause: Callable[[float], object] = time.sleep

    def run(self) -> None:
        """Wait until the worker is resumed, or forgotten; an outage of Redis is waited out."""
        logger.warning(
            "this worker is drained, and waits until it is resumed",
            extra={"worker": self.worker, "resume": f"worker resume {self.worker}"},
        )
        retry = Retry(wait=self.pause)
        while retry.ask("Redis", self._drained):
            self.pause(LOOK_SECONDS)
        logger.info("resumed, this worker starts anew", extra={"worker": self.worker})

    def _drained(self) -> bool:
        return any(row.worker == self.worker and row.wanted == "draining" for row in self.roster.rows())
