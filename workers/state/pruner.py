"""Pruner: removes the oldest settled run folders, so that outputs and records stay within their limits.

The folders of dead workers of other names are pruned too: a name that never comes back would keep its outputs for
good.
"""

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from workers.state.run_folders import RunFolders
from workers.state.state_folder import StateFolder, StateLocked

logger = logging.getLogger(__name__)

#: the folders are looked at this often
EACH_SECONDS = 600.0


@dataclass
class Pruner:
    """A thread that prunes the run folders every ten minutes. `busy` gives the keys of runs that stay in any case."""

    state: StateFolder
    keep_days: float
    keep_bytes: int
    busy: Callable[[], AbstractSet[str]]
    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="pruner", daemon=True).start()

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
            gone = self._prune(self.state.runs)
            for path in self.state.siblings():
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
            now=time.time(), keep_seconds=self.keep_days * 86400, keep_bytes=self.keep_bytes, busy=self.busy()
        )
