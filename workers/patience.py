"""Patience: asking ledger and API again for a while, in the one place that may wait for them: a launch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from flowfleet.errors import ApiUnavailable, KeyRefused, LedgerUnavailable
from flowfleet.retry import backoff

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: an API that does not answer for this long gets the run back; the leader would take it at 60 s
API_SECONDS = 45.0
LEDGER_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a launch waits; `hurried` turns true when the worker stops."""

    hurried: Callable[[], bool]
    api_seconds: float = API_SECONDS
    ledger_seconds: float = LEDGER_SECONDS
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def with_ledger(self, ask: Callable[[], T]) -> T:
        """Repeat a move with the same ids: one that was carried out is answered as moved again."""
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
        """Ask the API until it answers; a refused key is not asked again, since it says nothing about the run."""
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
