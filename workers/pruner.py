"""Pruner: removes the oldest settled run folders, so that outputs and records stay within their limits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from workers.records import RunRecords

logger = logging.getLogger(__name__)

EACH_SECONDS = 600.0


class Pruner:
    """A thread that looks at the folders every ten minutes."""

    def __init__(
        self, runs: RunRecords, *, keep_days: float, keep_bytes: int, busy: Callable[[], AbstractSet[str]]
    ) -> None:
        self._runs = runs
        self._keep_seconds = keep_days * 86400
        self._keep_bytes = keep_bytes
        self._busy = busy
        self._thread = threading.Thread(target=self._run, name="pruner", daemon=True)
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self.prune()
            self._closed.wait(EACH_SECONDS)

    def prune(self) -> list[str]:
        """Once; the keys of what was removed."""
        try:
            gone = self._runs.prune(
                now=time.time(), keep_seconds=self._keep_seconds, keep_bytes=self._keep_bytes, busy=self._busy()
            )
        except OSError as exc:
            logger.warning("old run folders were not removed", extra={"error": str(exc)})
            return []
        if gone:
            logger.info("old run folders removed", extra={"runs": len(gone)})
        return gone
