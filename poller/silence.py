"""Silence: the watch that tells the fleet of an API which keeps its poller waiting, while it does so."""

import logging
import threading
from collections.abc import Callable

from flowfleet.errors import FleetError, LedgerError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class SilenceWatch:
    """A thread beside the one that waits for the API, which can tell nobody meanwhile."""

    def __init__(self, trouble: Callable[[], FleetError | None], tell: Callable[[FleetError | None], None]) -> None:
        """`trouble` says what is met now, None: nothing that is to be told here; `tell` tells it to the fleet."""
        self._trouble = trouble
        self._tell = tell
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="silence", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and tell the fleet that nobody waits here any more."""
        self._stopped.set()
        self._thread.join(timeout=10)
        self._say(None)

    def look(self) -> None:
        """Tell what is met now, if anything is."""
        trouble = self._trouble()
        if trouble is not None:
            self._say(trouble)

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            self.look()

    def _say(self, trouble: FleetError | None) -> None:
        try:
            self._tell(trouble)
        except LedgerError as exc:
            # whoever asks Redis for more than this tells of its outage
            logger.debug("what keeps the API away could not be told", extra={"error": str(exc)})
