"""Clock: the API's own time, which a test can move on."""

import threading
from datetime import UTC, datetime, timedelta


class Clock:
    """The real time plus what `advance` has added; after `stand_still` by that alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead = timedelta()
        self._stands_at: datetime | None = None

    def __call__(self) -> datetime:
        with self._lock:
            return (self._stands_at or datetime.now(UTC)) + self._ahead

    def stand_still(self) -> None:
        """Pass no more by itself: for whoever moves another clock together with this one."""
        with self._lock:
            self._stands_at = datetime.now(UTC)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._ahead += timedelta(seconds=seconds)
