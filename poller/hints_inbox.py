"""Hints inbox: what wakes the loop before its time: hints of the fleet, `/api/poke`, a signal."""

import queue
import time


class HintsInbox:
    """The inbox of hints: any thread and any signal handler puts them in, only the loop's thread waits for them.

    A SimpleQueue, since its `put` may be called by a signal handler that has interrupted `put` or `get` itself; a
    Condition could deadlock there.
    """

    def __init__(self) -> None:
        self._hints: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, kind: str) -> None:
        """Wake the loop and say why."""
        self._hints.put(kind)

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Wait for a hint; the kinds of those that came within the given time, or none.

        After the first hint more are gathered for `gather_seconds`: slots that are freed together make one claim, not
        several.
        """
        kinds: set[str] = set()
        try:
            kinds.add(self._hints.get(timeout=max(0.0, seconds)))
            until = time.monotonic() + gather_seconds
            while True:
                kinds.add(self._hints.get(timeout=max(0.0, until - time.monotonic())))
        except queue.Empty:
            return frozenset(kinds)
