"""Pruner: removes the oldest settled run folders, so that outputs and records stay within their limits.

The folders of dead workers of other names are pruned too: a name that never comes back would keep its outputs for
good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path

from workers.state.run_folders import RunFolders
from workers.state.state_folder import StateFolder, StateLocked

logger = logging.getLogger(__name__)

#: the folders are looked at this often
EACH_SECONDS = 600.0


class Pruner:
    """A thread that prunes the run folders every ten minutes. `busy` gives the keys of runs that stay in any case."""

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
        """Let the thread end."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self.prune()
            self._closed.wait(EACH_SECONDS)

    def prune(self) -> list[str]:
        """Prune once; returns the keys (RUN.CLAIM) of the removed folders."""
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
            return []  # its worker lives, and prunes its own folders
        # the lock is let go at once: that worker may start again at any time, and two may well prune settled folders
        sibling.close()
        return self._prune(sibling.runs)

    def _prune(self, runs: RunFolders) -> list[str]:
        return runs.prune(
            now=time.time(), keep_seconds=self._keep_seconds, keep_bytes=self._keep_bytes, busy=self._busy()
        )
