"""Server clock: the difference between the clock of a Prefect API and ours, by the `Date` header of its responses."""

import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

#: clocks that differ by less are taken for equal
KNOWN_SECONDS = 2.0


class ServerClock:
    """The last samples of one server's clock; threads may share the object."""

    def __init__(self) -> None:
        self._ahead: deque[float] = deque(maxlen=20)  # the server's clock minus ours, sample by sample

    @property
    def skew_seconds(self) -> float:
        """The server's clock minus ours; 0 when the difference is less than the header can tell."""
        ahead = max(list(self._ahead), default=0.0) + 0.5  # half of what the header cuts off
        return ahead if abs(ahead) > KNOWN_SECONDS else 0.0

    def note(self, header: str) -> None:
        """Take a sample from the `Date` header of one response.

        The header is cut to whole seconds and, on a busy server, seconds old: every error makes the server look slow,
        none makes it look fast, so the highest of the last samples is the nearest to the truth.
        """
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        self._ahead.append(date.timestamp() - time.time())


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """The API that answers, its version, and the difference between its clock and ours."""

    backend: str
    version: str
    skew_seconds: float  # the server's clock minus ours
