"""Background jobs: a thread that does small jobs for one neighbour, each repeated until the neighbour has answered."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from flowfleet.errors import (
    ApiMaintenance,
    ApiRejected,
    ApiUnavailable,
    FleetError,
    KeyRefused,
    LedgerBehind,
    LedgerError,
)
from flowfleet.retry import SharedOutage, asked_seconds, backoff

logger = logging.getLogger(__name__)

BackgroundJob = Callable[[], object]

#: seconds until a refused key is tried again: most servers count refusals
KEY_SECONDS = 60.0
#: how often a job that fails by a fault of ours is tried again
FAULTS = 8


class BackgroundJobs:
    """Runs jobs one after the other. A job that meets `ApiUnavailable` or an error of ledger or host is tried again."""

    def __init__(self, neighbour: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._neighbour = neighbour
        self._clock = clock
        #: the neighbour's outage, for the other parts of the process that meet it too: each is said once
        self.outage = SharedOutage(neighbour, clock)
        self._outage = self.outage.of("jobs")
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, int, BackgroundJob]] = []
        self._order = itertools.count()
        self._busy = False
        self._closed = False
        self._error: FleetError | None = None
        #: no job is done before: the neighbour itself has asked for the pause
        self._not_before = 0.0
        self._thread = threading.Thread(target=self._run, name=f"background-{neighbour}", daemon=True)

    @property
    def away(self) -> bool:
        """Whether the neighbour is away: the last job failed for it."""
        return self._outage.lasts

    @property
    def error(self) -> FleetError | None:
        """What the last job met of its neighbour; None where it did what was asked."""
        return self._error

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def post(self, job: BackgroundJob, *, after: float = 0.0) -> None:
        """Do the job in `after` seconds."""
        self._push(self._clock() + after, 0, job)

    def _push(self, when: float, tries: int, job: BackgroundJob) -> None:
        with self._changed:
            heapq.heappush(self._jobs, (when, next(self._order), tries, job))
            self._changed.notify_all()

    def hurry(self) -> None:
        """Do now the jobs that were put off on purpose (`after`); jobs that wait for their neighbour go on waiting."""
        self._do_now(lambda tries: tries == 0)

    def retry(self) -> None:
        """Try again now the jobs that wait for their neighbour: the neighbour may answer again."""
        self._do_now(lambda tries: tries > 0)

    def _do_now(self, chosen: Callable[[int], bool]) -> None:
        with self._changed:
            self._not_before = 0.0
            self._jobs = [(0.0 if chosen(tries) else at, order, tries, job) for at, order, tries, job in self._jobs]
            heapq.heapify(self._jobs)
            self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until everything is done; False when it is not after `seconds` or when the neighbour is away."""
        deadline = self._clock() + seconds
        with self._changed:
            while self._jobs or self._busy:
                left = deadline - self._clock()
                if left <= 0 or self.away:
                    return False
                self._changed.wait(min(left, 0.2))
        return True

    def close(self) -> None:
        """End the thread after the job in hand; jobs that are left are not done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            entry = self._next()
            if entry is None:
                return
            tries, job = entry
            try:
                self._do(tries, job)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> tuple[int, BackgroundJob] | None:
        with self._changed:
            while not self._closed:
                now = self._clock()
                due = max(self._jobs[0][0], self._not_before) if self._jobs else 0.0
                if self._jobs and due <= now:
                    _, _, tries, job = heapq.heappop(self._jobs)
                    self._busy = True
                    return tries, job
                self._changed.wait(due - now if self._jobs else None)
        return None

    def _do(self, tries: int, job: BackgroundJob) -> None:
        try:
            job()
        except LedgerBehind as exc:
            wait = backoff(tries)
            logger.info("told again", extra={"why": str(exc), "next_try_seconds": round(wait, 1)})
            self._push(self._clock() + wait, tries + 1, job)
        except (ApiUnavailable, LedgerError) as exc:
            asked = asked_seconds(exc)
            wait = max(KEY_SECONDS if isinstance(exc, KeyRefused) else backoff(tries), asked)
            self._error = exc
            self._outage.failed(exc, next_try=wait)
            if asked or isinstance(exc, ApiMaintenance):
                self._not_before = self._clock() + wait  # it is asked of all, not of this one job
            self._push(self._clock() + wait, tries + 1, job)
        except FleetError as exc:
            logger.error("a background job was refused", extra={"neighbour": self._neighbour, "error": str(exc)})
            if isinstance(exc, ApiRejected):
                self._answered()
        except OSError as exc:  # a full or failing disk: there may be room later for what the job writes
            wait = backoff(tries, first=2.0, most=60.0)
            logger.error(
                "a background job met an error of this host",
                extra={"neighbour": self._neighbour, "error": str(exc), "next_try_seconds": round(wait, 1)},
            )
            self._push(self._clock() + wait, tries + 1, job)
        except Exception:  # guards the loop: a fault of ours in one job must not end all others
            again = tries < FAULTS
            logger.exception("a background job failed", extra={"neighbour": self._neighbour, "again": again})
            if again:
                self._push(self._clock() + backoff(tries, first=2.0, most=60.0), tries + 1, job)
        else:
            self._answered()

    def _answered(self) -> None:
        self._error = None
        self._outage.passed()
