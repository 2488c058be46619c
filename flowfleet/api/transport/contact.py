"""Contact: the contact of a process with one API, seen from all its threads: since when it has got no answer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowfleet.errors import ApiUnavailable

#: a request that has waited so long is told of; healthy servers have been seen to take 3 s for a claim of three runs
SILENT_SECONDS = 8.0
#: the same for one whose tries fail: the next try often helps within a second, since a busy SQLite refuses at once
FAILING_SECONDS = 2.0


class Contact:
    """The requests to one API that are under way, and how the last of their tries went. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: dict[int, float] = {}
        self._number = 0
        self._answered_at = float("-inf")
        self._error: ApiUnavailable | None = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count a request as under way while the block lasts, with all its tries."""
        with self._lock:
            self._number += 1
            number = self._number
            self._begun[number] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._begun[number]

    def answered(self) -> None:
        """Note an answer that can be used."""
        with self._lock:
            self._answered_at, self._error = self._clock(), None

    def failed(self, error: ApiUnavailable) -> None:
        """Note a try that has failed."""
        with self._lock:
            self._error = error

    @property
    def trouble(self) -> ApiUnavailable | None:
        """What a request that is under way meets, when it has waited for too long; None while nothing is to be told.

        A slow answer says nothing while other requests are answered.
        """
        with self._lock:
            if not self._begun:
                return None
            seconds = self._clock() - max(min(self._begun.values()), self._answered_at)
            if seconds < (FAILING_SECONDS if self._error else SILENT_SECONDS):
                return None
            return self._error or ApiUnavailable(f"the Prefect API has not answered for {seconds:.0f} s")
