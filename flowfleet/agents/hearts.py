"""Heart: the thread that calls an agent's `heartbeat`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Heart:
    """Calls it at once, and again after each period; what it raises ends nothing."""

    def __init__(self, beat: Callable[[], None], period_seconds: Callable[[], float]) -> None:
        self._beat = beat
        self._period_seconds = period_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End it; a beat under way gets a second."""
        self._closed.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._beat()
            except Exception:  # it is the user's, and the next one may work
                logger.exception("heartbeat failed", extra={"next_try_seconds": self._period_seconds()})
            self._closed.wait(self._period_seconds())
