"""Run log: lines of ours on the runs' own log pages, sent together and at most a second late."""

import logging
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet.api.client import ApiClient, LogLine
from flowfleet.errors import ApiRejected
from workers.background import BackgroundJobs

logger = logging.getLogger(__name__)

#: lines wait this long for others
GATHER_SECONDS = 0.5
#: at most this many lines wait for an API that is away; the oldest are dropped
MOST_LINES = 2000


@dataclass
class RunLog:
    """The lines that wait to be sent to the API; with `enabled` False, lines are dropped at once."""

    api: ApiClient
    background: BackgroundJobs
    enabled: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _lines: list[LogLine] = field(default_factory=list, init=False)
    _posted: bool = field(default=False, init=False)

    def say(self, run_id: str, message: str, level: int = logging.INFO) -> None:
        """Put a line on the log page of a run."""
        if not self.enabled:
            return
        with self._lock:
            self._lines.append(LogLine(run_id=run_id, message=message, at=datetime.now(UTC), level=level))
            del self._lines[:-MOST_LINES]
            post = not self._posted
            self._posted = True
        if post:
            self.background.post(self._send, after=GATHER_SECONDS)

    def _send(self) -> None:
        with self._lock:
            lines = list(self._lines)
        try:
            if lines:
                self.api.log(lines)
        except ApiRejected as exc:
            # a line is not worth more than one try: its run may be gone
            logger.warning("log lines were refused", extra={"lines": len(lines), "error": str(exc)})
        with self._lock:
            sent = {id(line) for line in lines}
            self._lines = [line for line in self._lines if id(line) not in sent]
            self._posted = bool(self._lines)
            post = self._posted
        if post:
            self.background.post(self._send)
