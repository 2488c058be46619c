"""Retry: how a neighbour (Redis, the Prefect API) that does not answer is waited for, and what the log says."""

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flowfleet.errors import ApiMaintenance, ApiUnavailable, FleetError, KeyRefused, LedgerUnavailable

#: its name is the first word of these lines
logger = logging.getLogger("flowfleet.outage")

T = TypeVar("T")

#: how often an outage that goes on is logged again
REPEAT_SECONDS = 30.0
#: an outage that nobody has met for so long may be over for as long
UNWATCHED_SECONDS = 60.0
#: the pause after a refused key, which asking fast does not cure
REFUSED_SECONDS = 60.0
MAINTENANCE = "maintenance"
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0
#: an API that asks for a longer pause than this is asked again all the same: nobody would notice that it is back
LONGEST_ASKED_SECONDS = 3600.0


class Outage(Protocol):
    """An outage of a neighbour, as one part of a process meets it."""

    @property
    def lasts(self) -> bool:
        """Whether the last answer failed."""

    def failed(self, error: Exception, *, next_try: float) -> None:
        """Note that the neighbour did not do what was asked; the next request follows in `next_try` seconds."""

    def passed(self) -> None:
        """Note that the neighbour did what was asked."""

    def left(self) -> None:
        """Note that nobody waits here any more, whether the neighbour answers or not."""


class OutageLog:
    """Log of the outages of one neighbour: a line at once, again each 30 s, and when the neighbour is back.

    Within an outage another kind of trouble (`trouble_of`) is said at once too, the first time that it is met.
    """

    def __init__(
        self,
        neighbour: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        level: int = logging.WARNING,
    ) -> None:
        self._neighbour = neighbour
        self._clock = clock
        self._level = level
        self._since: float | None = None
        self._said_at = 0.0
        self._troubles: set[str] = set()

    @property
    def lasts(self) -> bool:
        """Whether there is an outage."""
        return self._since is not None

    def failed(self, error: Exception, *, next_try: float, anew: bool = False) -> None:
        """Say the outage where it is new (with `anew` it is in any case), or was not said lately."""
        now, trouble = self._clock(), trouble_of(error)
        if anew or self._since is None or (self._troubles == {MAINTENANCE} and trouble != MAINTENANCE):
            # what was announced is over, and only the rest is an outage
            self._since, self._troubles = now, set()
        elif trouble in self._troubles and not self._is_time(now, next_try):
            return
        self._said_at = now
        self._troubles.add(trouble)
        fields = {
            "neighbour": self._neighbour,
            "away_seconds": round(now - self._since, 1),
            "next_try_seconds": round(next_try, 1),
            "error": str(error),
        }
        logger.log(self._level, f"{self._neighbour} does not answer, waiting", extra=fields)

    def _is_time(self, now: float, next_try: float) -> bool:
        # of two tries the one that is nearer to the moment says it
        return now + min(next_try, LONGEST_PAUSE_SECONDS) / 2 >= self._said_at + REPEAT_SECONDS

    def passed(self, *, watched: bool = True) -> None:
        """Say that it is over, and how long it was; not `watched`: nobody knows how long."""
        if self._since is None:
            return
        away = {"away_seconds": round(self._clock() - self._since, 1)} if watched else {}
        fields = {"neighbour": self._neighbour, **away}
        self._since = None
        logger.log(self._level, f"{self._neighbour} answers again", extra=fields)


class SharedOutage:
    """Outage of one neighbour that several parts of a process meet.

    It begins with the first of them that gets no answer, and is over when none is left without one: a neighbour that
    answers some requests and refuses others is not said to be back.
    """

    def __init__(
        self, neighbour: str, clock: Callable[[], float] = time.monotonic, *, level: int = logging.WARNING
    ) -> None:
        self._log = OutageLog(neighbour, clock, level=level)
        self._clock = clock
        self._lock = threading.Lock()
        self._away: set[str] = set()
        self._met_at = clock()

    def of(self, part: str | None = None) -> Outage:
        """The outage as the part of this name meets it; None = a part that is there for one request."""
        return _OutageOfPart(self, part or uuid.uuid4().hex)

    def lasts_for(self, part: str) -> bool:
        """Whether this part's last answer failed."""
        return part in self._away

    def failed(self, part: str, error: Exception, *, next_try: float) -> None:
        """Note that this part got no answer."""
        with self._lock:
            anew = not self._watched()
            self._away.add(part)
            self._log.failed(error, next_try=next_try, anew=anew)
            self._met_at = self._clock()

    def passed(self, part: str) -> None:
        """Note that this part got an answer."""
        with self._lock:
            watched = self._watched()
            self._away.discard(part)
            if not self._away:
                self._log.passed(watched=watched)

    def left(self, part: str) -> None:
        """Note that this part waits no more; the outage lasts until another one gets an answer."""
        with self._lock:
            self._away.discard(part)

    def _watched(self) -> bool:
        """Whether somebody waits for the end of the outage, or has met it lately."""
        return bool(self._away) or self._clock() - self._met_at < UNWATCHED_SECONDS


@dataclass(frozen=True)
class _OutageOfPart:
    shared: SharedOutage
    part: str

    @property
    def lasts(self) -> bool:
        return self.shared.lasts_for(self.part)

    def failed(self, error: Exception, *, next_try: float) -> None:
        self.shared.failed(self.part, error, next_try=next_try)

    def passed(self) -> None:
        self.shared.passed(self.part)

    def left(self) -> None:
        self.shared.left(self.part)


def trouble_of(error: Exception) -> str:
    """The trouble with the Prefect API in one word, as pages and status show it."""
    if isinstance(error, KeyRefused):
        return "key-refused"
    return MAINTENANCE if isinstance(error, ApiMaintenance) else "away"


def asked_seconds(error: Exception, most: float = LONGEST_ASKED_SECONDS) -> float:
    """How long the API itself asks us to wait, within reason; 0.0 where it does not say."""
    return min(error.retry_after_seconds or 0.0, most) if isinstance(error, ApiUnavailable) else 0.0


def backoff(attempt: int, *, first: float = 0.5, most: float = 10.0) -> float:
    """Seconds before the next try: doubled each time, up to `most`."""
    return min(most, first * 2.0 ** min(attempt, 16))


class RetrySchedule:
    """Schedule by which a loop asks a neighbour again: after growing pauses while the neighbour does not answer."""

    def __init__(
        self,
        neighbour: str,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        *,
        first_seconds: float = FIRST_PAUSE_SECONDS,
        longest_seconds: float = LONGEST_PAUSE_SECONDS,
        longest_asked_seconds: float = LONGEST_ASKED_SECONDS,
        level: int = logging.WARNING,
        outage: Outage | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` wakes the loop that waits for a pause to end; `longest_asked_seconds` bounds what an API asks for.

        `outage` is that of the neighbour, where other parts of the process meet it too.
        """
        self.error: FleetError | None = None
        #: how many outages there have been: a part that was busy elsewhere notices by it that one has passed
        self.count = 0
        self._outage = outage or SharedOutage(neighbour, clock, level=level).of()
        self._clock = clock
        self._jitter = jitter
        self._wake = wake
        self._first_seconds, self._longest_seconds = first_seconds, longest_seconds
        self._longest_asked_seconds = longest_asked_seconds
        self._tries = 0
        self._next = 0.0

    @property
    def away(self) -> bool:
        """Whether the last request failed."""
        return self.error is not None

    @property
    def key_refused(self) -> bool:
        """Whether the neighbour refuses our key."""
        return isinstance(self.error, KeyRefused)

    @property
    def announced(self) -> bool:
        """Whether the neighbour is away for a maintenance that it has announced, which is nobody's fault here."""
        return isinstance(self.error, ApiMaintenance)

    def may_ask(self) -> bool:
        """Whether it is time to ask: always while the neighbour answers, else once the pause is over."""
        return self.error is None or self._clock() >= self._next

    def wait_seconds(self) -> float:
        """Seconds until it is time to ask."""
        return 0.0 if self.error is None else max(0.0, self._next - self._clock())

    def failed(self, error: FleetError, *, most_seconds: float = math.inf) -> None:
        """Note a failed request: choose the next try, and log the outage unless it was logged lately."""
        if self.error is None:
            self._tries = 0
            self.count += 1
        pause = backoff(self._tries, first=self._first_seconds, most=self._longest_seconds)
        wait = REFUSED_SECONDS if isinstance(error, KeyRefused) else pause * (0.7 + 0.3 * self._jitter())
        wait = min(max(wait, asked_seconds(error, self._longest_asked_seconds)), most_seconds)
        self._tries += 1
        self._next = self._clock() + wait
        self.error = error
        self._outage.failed(error, next_try=wait)

    def hurry(self) -> None:
        """End the pause, and wake the loop: the cause of the failure may be gone."""
        self._next = 0.0
        self._wake()

    def over(self) -> None:
        """Note that the neighbour answered."""
        self.error = None
        self._outage.passed()

    def give_up(self) -> None:
        """Note that nobody asks by this schedule any more."""
        self._outage.left()


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Repeats a request until its neighbour answers, a limit in time is over, or a stop is asked for."""

    #: sleeps; it may return early, at a stop or when other credentials may help: then the request is repeated at once
    wait: Callable[[float], object] = time.sleep
    #: whether a stop is asked for: then the request is not repeated
    stopped: Callable[[], bool] = lambda: False
    #: how long the request is repeated; None = without a limit. An announced maintenance does not count
    limit_seconds: float | None = None
    #: whether a refused key is waited for, until there is another
    awaits_key: bool = True
    #: makes the schedule of one request, for a neighbour
    schedule: Callable[..., RetrySchedule] = RetrySchedule
    #: the outage of the one neighbour that is asked, where other parts of the process meet it too
    outage: SharedOutage | None = None
    clock: Callable[[], float] = time.monotonic

    def ask(self, neighbour: str, request: Callable[[], T]) -> T:
        """The answer to the request; raises the last error of the neighbour after the limit and at a stop.

        Any other error passes through, since waiting does not cure it.
        """
        schedule = self.schedule(neighbour, outage=self.outage and self.outage.of())
        try:
            return self._answer(schedule, request)
        finally:
            schedule.give_up()

    def _answer(self, schedule: RetrySchedule, request: Callable[[], T]) -> T:
        until = self._until()
        while True:
            try:
                answer = request()
            except (ApiUnavailable, LedgerUnavailable) as error:
                if isinstance(error, ApiMaintenance):
                    until = math.inf
                elif math.isinf(until):
                    until = self._until()  # it is over, and what comes after it counts from now on
                left = until - self.clock()
                if left <= 0 or self.stopped() or (isinstance(error, KeyRefused) and not self.awaits_key):
                    raise
                schedule.failed(error, most_seconds=left)
                self.wait(schedule.wait_seconds())
                if self.stopped():
                    raise
            else:
                schedule.over()
                return answer

    def _until(self) -> float:
        return math.inf if self.limit_seconds is None else self.clock() + self.limit_seconds
