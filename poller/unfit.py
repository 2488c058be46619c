"""Unfit runs: due runs that nobody here can take; each is reported once, in our log and on its own log page."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet.api.backlog import UnfitRun
from flowfleet.api.client import ApiClient, LogLine
from flowfleet.errors import ApiError, ApiRejected, ApiUnavailable
from flowfleet.flow_run import Offer
from flowfleet.ledger.roster import WorkerRow
from poller.listing import Clock

logger = logging.getLogger(__name__)

#: how often the API is asked for runs that nobody's labels fit, and when first: workers need time to sign on
LOOK_SECONDS = 60.0
FIRST_LOOK_SECONDS = 30.0
#: a worker that is away for less than this only restarts: what it can take is not called unfit
AWAY_SECONDS = 120.0
#: how long a run must be listed as unfit before it is reported, for the same reason
PATIENCE_SECONDS = 15.0
#: a run that was not seen for so long is forgotten
KEPT_SECONDS = 3600.0
#: at most so many runs are remembered
KEPT = 10_000
#: so many lines go to the API at a time
BATCH = 100


@dataclass(kw_only=True)
class _Seen:
    first: float
    last: float
    told: bool = False


@dataclass
class UnfitRuns:
    """Reports unfit runs and remembers which it has reported; its own errors never end a round."""

    api: ApiClient
    clock: Clock
    cloud_logs: bool
    skew_seconds: Callable[[], float] = lambda: 0.0
    _seen: dict[str, _Seen] = field(default_factory=dict, init=False)
    _offers: dict[Offer, float] = field(default_factory=dict, init=False)
    _lines: list[LogLine] = field(default_factory=list, init=False)
    _next_look: float = field(default=0.0, init=False)
    _next_send: float = field(default=0.0, init=False)
    _full_said: bool = field(default=False, init=False)

    def note(self, found: Iterable[UnfitRun], after_seconds: float = PATIENCE_SECONDS) -> None:
        """Note the runs that a listing calls unfit for every offer in it, and report those that stay so for so long."""
        for run in found:
            self._note(run, after_seconds)
        self._send()

    def look(self, rows: Sequence[WorkerRow], term_began: float) -> None:
        """Ask, each minute, for due runs that no worker of ours nor any other agent has the labels for (Prefect 1)."""
        now = self.clock.monotonic()
        self._offers.update((row.offer, now) for row in rows if row.live and row.offer.is_for(self.api.backend))
        # early in a term workers that we have not seen may live, and get the time to say so
        if now < max(self._next_look, term_began + FIRST_LOOK_SECONDS):
            return
        self._next_look = now + LOOK_SECONDS
        self._offers = {offer: at for offer, at in self._offers.items() if now - at < AWAY_SECONDS}
        self._seen = {run_id: seen for run_id, seen in self._seen.items() if now - seen.last < KEPT_SECONDS}
        if self._offers:  # a fleet without workers is not in anybody's way
            try:
                found = self.api.backlog.unserved(tuple(self._offers))
            except ApiError as exc:
                logger.info("runs that nobody can take cannot be asked for now", extra={"error": str(exc)})
            else:
                for run in found:
                    self._note(run, 0.0)
        self._send()

    def _note(self, run: UnfitRun, after_seconds: float) -> None:
        now = self.clock.monotonic()
        seen = self._seen.get(run.run_id)
        if seen is None:
            if len(self._seen) >= KEPT:
                self._say_full()
                return
            seen = self._seen[run.run_id] = _Seen(first=now, last=now)
        seen.last = now
        if not seen.told and now - seen.first >= after_seconds:
            seen.told = True
            self._tell(run)

    def _tell(self, run: UnfitRun) -> None:
        names = {"run_id": run.run_id, "run_name": run.name, "reason": run.reason}
        logger.warning("no worker can take this run: it stays Scheduled", extra=names)
        if self.cloud_logs:
            at = datetime.fromtimestamp(self.clock.wall() + self.skew_seconds(), UTC)
            self._lines.append(LogLine(run_id=run.run_id, message=run.reason, at=at, level=logging.WARNING))

    def _say_full(self) -> None:
        if not self._full_said:
            self._full_said = True
            logger.warning("more runs wait that no worker can take than are told one by one", extra={"told": KEPT})

    def _send(self) -> None:
        """Send the lines that the API does not have yet; after a failure, once a minute."""
        now = self.clock.monotonic()
        while self._lines and now >= self._next_send:
            batch, self._lines = self._lines[:BATCH], self._lines[BATCH:]
            try:
                self._log(batch)
            except ApiUnavailable as exc:
                self._lines = batch + self._lines
                self._next_send = now + LOOK_SECONDS
                logger.info("log pages of runs cannot be written now", extra={"error": str(exc), "lines": len(batch)})

    def _log(self, lines: Sequence[LogLine]) -> None:
        """Write lines to the log pages; a refused one must not take the others with it. Raises `ApiUnavailable`."""
        try:
            self.api.log(lines)
        except ApiRejected as exc:
            if len(lines) > 1:
                for line in lines:
                    self._log([line])
            else:
                logger.info("the log page of a run takes no line", extra={"run_id": lines[0].run_id, "error": str(exc)})
