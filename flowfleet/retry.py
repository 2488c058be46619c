"""Retry: how long to wait for a neighbour (Redis, the Prefect API) that does not answer, and what the log says."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flowfleet.errors import ApiUnavailable, FleetError, KeyRefused, LedgerUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: how often an outage that goes on is logged again
REPEAT_SECONDS = 30.0
#: the pause after a refused key, which asking fast does not cure
REFUSED_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
#: an API that asks for a longer pause than this is asked again all the same: nobody would notice that it is back
LONGEST_ASKED_SECONDS = 3600.0
#: how long a launch waits. The run is handed back to an API that is silent for so long; the leader would do so at 60 s
LAUNCH_API_SECONDS = 45.0
LAUNCH_LEDGER_SECONDS = 15.0


class OutageLog:
    """Log of the outages of one neighbour: a line at once, again each 30 s, and when the neighbour is back."""

    def __init__(self, neighbour: str, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._neighbour = neighbour
        self._logger = logger
        self._clock = clock
        self._since: float | None = None
        self._said = 0.0
        self._kind: type[Exception] | None = None

    @property
    def lasts(self) -> bool:
        """Whether the neighbour is away: its last answer failed."""
        return self._since is not None

    def failed(self, error: Exception, *, next_try: float) -> None:
        """Note that the neighbour did not answer; the next request follows in `next_try` seconds."""
        now = self._clock()
        if self._since is None:
            self._since = now
        elif now - self._said < REPEAT_SECONDS and type(error) is self._kind:
            return
        self._said, self._kind = now, type(error)
        fields = {
            "neighbour": self._neighbour,
            "error": str(error),
            "away_seconds": round(now - self._since, 1),
            "next_try_seconds": round(next_try, 1),
        }
        self._logger.warning("does not answer, waiting", extra=fields)

    def passed(self) -> None:
        """Note that the neighbour answered."""
        if self._since is None:
            return
        away = self._clock() - self._since
        self._since = None
        self._logger.warning("answers again", extra={"neighbour": self._neighbour, "away_seconds": round(away, 1)})


def backoff(attempt: int, *, first: float = 0.5, most: float = 10.0) -> float:
    """Seconds before the next try: doubled each time, up to `most`."""
    return min(most, first * 2.0 ** min(attempt, 16))


class RetrySchedule:
    """Schedule by which a loop asks a neighbour again: after growing pauses while the neighbour does not answer."""

    def __init__(self, what: str, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self.error: FleetError | None = None
        #: how many outages there have been: a part that was busy elsewhere notices by it that one has passed
        self.count = 0
        self._outage_log = OutageLog(what, logger, clock)
        self._clock = clock
        self._jitter = jitter
        self._pause = FIRST_PAUSE_SECONDS
        self._next = 0.0

    @property
    def away(self) -> bool:
        """Whether the last request failed."""
        return self.error is not None

    @property
    def key_refused(self) -> bool:
        """Whether the neighbour refuses our key."""
        return isinstance(self.error, KeyRefused)

    def may_ask(self) -> bool:
        """Whether it is time to ask: always while the neighbour answers, else once the pause is over."""
        return self.error is None or self._clock() >= self._next

    def wait_seconds(self) -> float:
        """Seconds until it is time to ask."""
        return 0.0 if self.error is None else max(0.0, self._next - self._clock())

    def failed(self, error: FleetError) -> None:
        """Note a failed request: choose the next try, and log the outage unless it was logged lately."""
        if self.error is None:
            self._pause = FIRST_PAUSE_SECONDS
            self.count += 1
        wait = REFUSED_SECONDS if isinstance(error, KeyRefused) else self._pause * (0.7 + 0.3 * self._jitter())
        if isinstance(error, ApiUnavailable):
            wait = max(wait, min(error.retry_after_seconds or 0.0, LONGEST_ASKED_SECONDS))
        self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2)
        self._next = self._clock() + wait
        self.error = error
        self._outage_log.failed(error, next_try=wait)

    def hurry(self) -> None:
        """End the pause: the cause of the failure may be gone."""
        self._next = 0.0

    def over(self) -> None:
        """Note that the neighbour answered."""
        self.error = None
        self._outage_log.passed()


@dataclass(frozen=True, kw_only=True)
class BoundedRetry:
    """Retry of a request for a time, or until the worker stops (`hurried`): for a launch, which holds a slot."""

    hurried: Callable[[], bool]
    api_seconds: float = LAUNCH_API_SECONDS
    ledger_seconds: float = LAUNCH_LEDGER_SECONDS
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def with_ledger(self, ask: Callable[[], T]) -> T:
        """Repeat a move of the ledger with the same ids: a move that was carried out is answered as moved again."""
        deadline = self.clock() + self.ledger_seconds
        tries = 0
        while True:
            try:
                return ask()
            except LedgerUnavailable as exc:
                if self.clock() > deadline or self.hurried():
                    raise
                logger.warning("no answer of Redis about a run in hand", extra={"error": str(exc)})
            self.wait(backoff(tries, most=2.0))
            tries += 1

    def with_api(self, ask: Callable[[], T]) -> T:
        """Repeat a request to the API; not after a refused key, which says nothing about the run."""
        deadline = self.clock() + self.api_seconds
        tries = 0
        while True:
            try:
                return ask()
            except KeyRefused:
                raise
            except ApiUnavailable as exc:
                if self.clock() > deadline or self.hurried():
                    raise
                logger.warning("no answer of the API about a run in hand", extra={"error": str(exc)})
            self.wait(backoff(tries, most=5.0))
            tries += 1
