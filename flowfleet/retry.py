"""Outage: says at once that a neighbour does not answer, again each 30 s, and when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

REPEAT_SECONDS = 30.0


class Outage:
    """One neighbour (Redis, the Prefect API) as one loop sees it."""

    def __init__(self, neighbour: str, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._neighbour = neighbour
        self._logger = logger
        self._clock = clock
        self._since: float | None = None
        self._said = 0.0
        self._kind: type[Exception] | None = None

    @property
    def lasts(self) -> bool:
        """Whether the neighbour is away, as far as is known."""
        return self._since is not None

    def failed(self, error: Exception, *, next_try: float) -> None:
        """It did not answer; `next_try` is in how many seconds it is asked again."""
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
        """It answered."""
        if self._since is None:
            return
        away = self._clock() - self._since
        self._since = None
        self._logger.warning("answers again", extra={"neighbour": self._neighbour, "away_seconds": round(away, 1)})


def backoff(attempt: int, *, first: float = 0.5, most: float = 10.0) -> float:
    """Seconds before the next try: doubled each time, up to `most`."""
    return min(most, first * 2.0 ** min(attempt, 16))
