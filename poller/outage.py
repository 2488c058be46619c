"""Retry: when to ask a part again that does not answer; the outage itself is said by flowfleet/retry.py."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from flowfleet.errors import ApiUnavailable, FleetError, KeyRefused
from flowfleet.retry import Outage as Voice

logger = logging.getLogger(__name__)

#: a refused key is not cured by asking fast
REFUSED_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
#: an API that asks for more patience than this is asked again all the same: nobody would notice that it is back
LONGEST_ASKED_SECONDS = 3600.0


class Outage:
    """Whether a part is away, and when to ask it next: with growing pauses."""

    def __init__(self, what: str, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self.error: FleetError | None = None
        #: how many outages there have been: who depends on the part tells by it that one has passed unseen
        self.count = 0
        self._voice = Voice(what, logger, clock)
        self._clock = clock
        self._jitter = jitter
        self._pause = FIRST_PAUSE_SECONDS
        self._next = 0.0

    @property
    def away(self) -> bool:
        """True when the last question failed."""
        return self.error is not None

    @property
    def key_refused(self) -> bool:
        """True when it is away because it refuses our key."""
        return isinstance(self.error, KeyRefused)

    def may_ask(self) -> bool:
        """True when it is time to ask (always, while nothing is wrong)."""
        return self.error is None or self._clock() >= self._next

    def wait_seconds(self) -> float:
        """How long until it is time to ask."""
        return 0.0 if self.error is None else max(0.0, self._next - self._clock())

    def failed(self, error: FleetError) -> None:
        """A question failed: choose the next try, and say it when it was not said lately."""
        if self.error is None:
            self._pause = FIRST_PAUSE_SECONDS
            self.count += 1
        wait = REFUSED_SECONDS if isinstance(error, KeyRefused) else self._pause * (0.7 + 0.3 * self._jitter())
        if isinstance(error, ApiUnavailable):
            wait = max(wait, min(error.retry_after_seconds or 0.0, LONGEST_ASKED_SECONDS))
        self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2)
        self._next = self._clock() + wait
        self.error = error
        self._voice.failed(error, next_try=wait)

    def hurry(self) -> None:
        """What it failed for may be cured: ask now."""
        self._next = 0.0

    def over(self) -> None:
        """It answered."""
        self.error = None
        self._voice.passed()
