"""Pruner: removes the oldest settled run folders, so that outputs and records stay within their limits.

Those of workers of other names too, while these do not live: a name that never comes back would keep its outputs for
good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from workers.state.run_folders import RunFolders, StateFolder, StateLocked

logger = logging.getLogger(__name__)

EACH_SECONDS = 600.0


class Pruner:
    """A thread that looks at the folders every ten minutes."""

    def __init__(
        self, state: StateFolder, *, keep_days: float, keep_bytes: int, busy: Callable[[], AbstractSet[str]]
    ) -> None:
        self._state = state
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
            gone = self._prune(self._state.runs)
            for path in self._state.siblings():
                gone += self._prune_sibling(path)
        except OSError as exc:
            logger.warning("old run folders were not removed", extra={"error": str(exc)})
            return []
        if gone:
            logger.info("old run folders removed", extra={"runs": len(gone)})
        return gone

    def _prune_sibling(self, path: Path) -> list[str]:
        try:
            sibling = StateFolder.open_path(path)
        except StateLocked:
            return []  # it lives and sees to its own
        # let go at once: its worker may start again at any time, and two may well prune what is settled
        sibling.close()
        return self._prune(sibling.runs)

    def _prune(self, runs: RunFolders) -> list[str]:
        return runs.prune(
            now=time.time(), keep_seconds=self._keep_seconds, keep_bytes=self._keep_bytes, busy=self._busy()
        )
