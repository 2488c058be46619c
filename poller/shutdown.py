"""Shutdown: SIGTERM and SIGINT, and how long an orderly end of a poller may take."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from flowfleet.errors import LedgerError
from flowfleet.signals import take
from poller.hints_inbox import HintsInbox

logger = logging.getLogger(__name__)

#: how long an orderly end waits for an answer of the API; while a claim is in hand, or what has not begun goes back, at
#: most so much longer
STOP_SECONDS = 5.0
STOP_CLAIM_SECONDS = 60.0


class PollerShutdown:
    """SIGTERM and SIGINT: the first asks for an orderly end, the second cuts it short."""

    def __init__(self, inbox: HintsInbox) -> None:
        self._inbox = inbox
        self.asked = False
        self._event = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._busy: Callable[[], bool] = lambda: False
        self._last: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Take both signals, whatever a shell has set for them: a job in the background starts with SIGINT ignored."""
        threading.Thread(target=self._cut_short, name="stop", daemon=True).start()
        take(signal.SIGTERM, signal.SIGINT, handler=self._on_signal, respect_ignored=False)

    def serve(self, *, stop: Callable[[], None], busy: Callable[[], bool], last: Callable[[], None]) -> None:
        """From now on call `stop`, in the signal handler, when the end is asked for.

        While `busy`, an end that takes too long is not cut short yet; `last` is called right before it is.
        """
        self._stop, self._busy, self._last = stop, busy, last

    def _on_signal(self, number: int) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        self._stop()
        self._inbox.put("stop")
        self._event.set()

    def _cut_short(self) -> None:
        """Cut a slow end short: an API that hangs must not keep it waiting, and the next leader does what is left."""
        self._event.wait()
        asked_at = time.monotonic()
        while (took := time.monotonic() - asked_at) < STOP_SECONDS or (self._busy() and took < STOP_CLAIM_SECONDS):
            time.sleep(0.1)
        logger.warning("ended without waiting for an answer any longer", extra={"waited_seconds": round(took, 1)})
        try:
            self._last()
        except LedgerError as exc:
            logger.warning("could not resign, a standby will notice", extra={"error": str(exc)})
        logging.shutdown()
        os._exit(0)
