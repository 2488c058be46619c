"""Bell: what wakes the loop before its time: hints of the fleet, `/api/poke`, a signal."""

from __future__ import annotations

import queue
import time


class HintsInbox:
    """Rung from any thread and from signal handlers; only the loop waits for it.

    A SimpleQueue, since its `put` may be called by a signal handler that has interrupted `put` or `get` itself; a
    Condition could deadlock there.
    """

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ring(self, kind: str) -> None:
        """Wake the loop and say why."""
        self._rings.put(kind)

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Why it rang within the given time.

        After a ring, what follows shortly is gathered too: slots that are freed together make one claim, not several.
        """
        kinds: set[str] = set()
        try:
            kinds.add(self._rings.get(timeout=max(0.0, seconds)))
            until = time.monotonic() + gather_seconds
            while True:
                kinds.add(self._rings.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            return frozenset(kinds)
