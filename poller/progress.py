"""Progress: when the loop last came on, by which others tell a loop that hangs from one that is slow."""

from collections.abc import Callable


class Progress:
    """The progress of the loop: the time of its last step, which is a round that begins or ends, or an answer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()

    def note(self) -> float:
        """Note a step, and return its time."""
        self._at = now = self._clock()
        return now

    @property
    def seconds_ago(self) -> float:
        """Seconds since the last step."""
        return self._clock() - self._at
