"""Yielding: what waits for a worker that takes no more runs, and for no other one, goes back to the API at once.

The ledger moves all such claims in one step (`yield` of the transition table), and the rest is an ordinary hand-back. A
worker that goes on taking runs looks from time to time whether a dead one has left such a hand-back half done.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, Yields
from workers.background import BackgroundJobs
from workers.runs.hand_back import HandBack

logger = logging.getLogger(__name__)

#: how often a worker looks for what dead ones were handing back; the leader, if there is one, comes first
LOOK_SECONDS = 30.0
#: seconds, from its beginning, that a stop waits for what it gives back: less than the watchdog of a stop waits
LEAVE_SECONDS = 3.0


@dataclass(kw_only=True)
class Yielding:
    """The yielding of one worker; all its requests are background jobs."""

    worker: str
    nonce: str
    claims: Claims
    hand_back: HandBack
    to_ledger: BackgroundJobs
    to_api: BackgroundJobs
    failpoints: Failpoints
    clock: Callable[[], float] = time.monotonic
    #: claims whose hand-back is under way
    _hands: dict[str, Claim] = field(default_factory=dict, init=False)
    #: questions to the ledger that are under way
    _questions: int = field(default=0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _next_look: float = field(default=float("-inf"), init=False)
    _leaves_until: float | None = field(default=None, init=False)

    def look(self, wanted: str) -> None:
        """Yield while the operator's word keeps this worker from taking runs; else look after dead ones."""
        if self._questions or self._leaves_until is not None:
            return
        if wanted != "active":
            # again after each renewal: a run that was being claimed for us may be queued only now
            self._ask("idle")
        elif self.clock() >= self._next_look:
            self._next_look = self.clock() + LOOK_SECONDS
            self._ask("finishing")

    def leave(self) -> None:
        """Yield, since the worker stops: from that moment on nothing is claimed for it any more."""
        self._leaves_until = self.clock() + LEAVE_SECONDS
        self._ask("stopping")

    def wait(self) -> None:
        """Wait, after `leave`, until the API has all back; what is left after its time is named."""
        until = self._leaves_until or self.clock()
        with self._changed:
            while self._hands or self._questions:
                left = until - self.clock()
                if left <= 0 or self.to_ledger.away or self.to_api.away:
                    break
                self._changed.wait(min(left, 0.2))
            waiting = list(self._hands.values())
        if waiting:
            names = ", ".join(f"{claim.name} ({claim.run_id})" for claim in waiting)
            logger.warning(
                "runs that waited for this worker are not back at the API yet: the poller or another worker does that",
                extra={"worker": self.worker, "runs": names},
            )

    def _ask(self, how: Yields) -> None:
        with self._changed:
            self._questions += 1
        self.to_ledger.post(lambda: self._yield(how))

    def _yield(self, how: Yields) -> None:
        found = self.claims.yield_waiting(self.worker, self.nonce, how, f"{self.worker} takes no more runs")
        with self._changed:
            self._questions -= 1
            new = [claim for claim in found if claim.claim not in self._hands]
            self._hands |= {claim.claim: claim for claim in new}
            self._changed.notify_all()
        if new:
            self.failpoints.hit("leave.after_ledger")
        for claim in new:
            names = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name, "reason": claim.reason}
            logger.info("run waits for nobody else and is handed back", extra=names)
            self.hand_back.finish(claim, lambda key=claim.claim: self._done(key))  # type: ignore[misc]

    def _done(self, key: str) -> None:
        with self._changed:
            self._hands.pop(key, None)
            self._changed.notify_all()
