"""Supervisor: the one thread that watches all runs of a worker, fresh and adopted, and sees each end.

Its thread does nothing that can wait for a network: what follows from an end is handed on.
"""

import logging
import queue
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.guard import guarded
from flowfleet.ledger.claims import State
from flowfleet.wakeup import Wakeup
from workers.deployment import Exit, StopReason
from workers.state.attempts import Attempt, Attempts
from workers.stop import Stop

logger = logging.getLogger(__name__)

#: runs without a descriptor are polled this often
POLL_SECONDS = 1.0
#: a run whose descriptor was readable and of which something still lives is polled this often
GOING_SECONDS = 0.1
#: a descriptor that was readable more often than this, without an end, is watched no more
MOST_WAKEUPS = 50

#: called in the supervisor's thread with each ended attempt
OnEnd = Callable[[Attempt], None]
BeforeEnd = Callable[[Attempt, Exit, Callable[[], None]], bool]


@dataclass
class Supervisor:
    """The supervisor thread, which watches all started runs of a worker by one selector."""

    attempts: Attempts
    on_end: OnEnd
    #: NAME@HOST of this worker
    worker: str
    run_timeout: float | None = None
    #: called in the supervisor's thread with each run that is gone; True puts its end off until the third argument is
    #: called, and the run keeps its slot
    before_end: BeforeEnd = lambda _attempt, _end, _go_on: False
    #: the keys of the runs whose dead man's switch should have ended them, and which live
    overdue: Callable[[], list[str]] = list
    clock: Callable[[], float] = time.monotonic
    _inbox: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue, init=False)
    _wakeup: Wakeup = field(default_factory=Wakeup, init=False)
    #: key of a watched run → when to poll it although its descriptor is not readable
    _ask_at: dict[str, float] = field(default_factory=dict, init=False)
    #: key of a watched run → when its --run-timeout is over
    _stop_at: dict[str, float] = field(default_factory=dict, init=False)
    #: key of a watched run → its descriptor in the selector
    _registered: dict[str, int] = field(default_factory=dict, init=False)
    #: key of a watched run → how often its descriptor was readable though the run had not ended
    _wakeups: dict[str, int] = field(default_factory=dict, init=False)
    #: keys of the overdue runs that were told to end
    _overdue: set[str] = field(default_factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        #: when the loop last went round, by `clock`: the heartbeat reads here whether the runs are watched at all
        self.seen = self.clock()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def watch(self, key: str) -> None:
        """Watch the started run of this attempt from now on."""
        self._post(lambda: self._watch(key))

    def stop(self, key: str, stop: Stop, *, written: Callable[[], None] = lambda: None) -> None:
        """Ask the thread to stop the run of this attempt, as `Attempt.stop` does."""
        self._post(lambda: self._stop(key, stop, written))

    def finish(self, key: str, end: Exit) -> None:
        """Ask the thread to note the end of a run that `before_end` has put off."""
        self._post(lambda: self._finish(key, end))

    def close(self) -> None:
        """End the thread; the runs go on."""
        self._closed = True
        self._post(lambda: None)
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _post(self, action: Callable[[], None]) -> None:
        self._inbox.put(action)
        self._wakeup.wake()

    # -- inside the thread

    def _run(self) -> None:
        while not self._closed:
            with guarded(logger, "the supervisor met an unexpected error"):  # or it would leave all runs unwatched
                self._round()

    def _round(self) -> None:
        self.seen = self.clock()
        nearest = min([*self._ask_at.values(), *self._stop_at.values()], default=self.seen + POLL_SECONDS)
        events = self._selector.select(max(0.0, min(POLL_SECONDS, nearest - self.clock())))
        woken = {key.data for key, _ in events if key.data is not None}
        self._empty_inbox()
        now = self.clock()
        for key in woken | {key for key, at in self._ask_at.items() if at <= now}:
            self._ask(key, woken=key in woken)
        for key in [key for key, at in self._stop_at.items() if at <= now]:
            del self._stop_at[key]
            self._time_out(key)
        self._end_overdue()

    def _empty_inbox(self) -> None:
        self._wakeup.clear()
        while True:
            try:
                action = self._inbox.get_nowait()
            except queue.Empty:
                return
            action()

    def _watch(self, key: str) -> None:
        attempt = self.attempts.get(key)
        if attempt is None or attempt.started_run is None:
            return
        fd = attempt.started_run.fileno()
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ, key)
            self._registered[key] = fd
        if self.run_timeout is not None:
            # an adopted run has used up a part of its time under the worker before
            age = attempt.folder.age_seconds() if attempt.adopted else 0.0
            self._stop_at[key] = self.clock() + self.run_timeout - age
        self._ask(key, woken=False)

    def _ask(self, key: str, *, woken: bool) -> None:
        with guarded(logger, "a run could not be asked", run_and_claim=key):  # the others must still be asked
            self._look(key, woken=woken)
            return
        self._ask_at[key] = self.clock() + POLL_SECONDS

    def _look(self, key: str, *, woken: bool) -> None:
        attempt = self.attempts.get(key)
        if attempt is None or attempt.started_run is None:
            self._unwatch(key)
            return
        end = attempt.started_run.poll()
        if end is not None:
            self._unwatch(key)
            self._ended(attempt, end)
        elif woken:
            # the leader of the run's group is gone and something of the group is not: polled without a wakeup too
            self._ask_at[key] = self.clock() + GOING_SECONDS
            self._wakeups[key] = self._wakeups.get(key, 0) + 1
            if self._wakeups[key] > MOST_WAKEUPS:
                self._unregister(key)  # a descriptor that stays readable would keep this thread spinning
        elif key not in self._registered or key in self._ask_at:
            self._ask_at[key] = self.clock() + (GOING_SECONDS if key in self._wakeups else POLL_SECONDS)

    def _unwatch(self, key: str) -> None:
        self._ask_at.pop(key, None)
        self._stop_at.pop(key, None)
        self._wakeups.pop(key, None)
        self._unregister(key)

    def _unregister(self, key: str) -> None:
        fd = self._registered.pop(key, None)
        if fd is not None:
            self._selector.unregister(fd)

    def _ended(self, attempt: Attempt, end: Exit) -> None:
        if attempt.started_run is not None:
            attempt.started_run.close()
        end = attempt.folder.with_reason(end)
        logger.info("run ended", extra={**attempt.fields, "exit": str(end)})
        if not self.before_end(attempt, end, lambda: self.finish(attempt.key, end)):
            self._finish(attempt.key, end)

    def _finish(self, key: str, end: Exit) -> None:
        moved = self.attempts.move(key, State.ENDED, exit_=end)
        if moved is not None:
            self.on_end(moved)

    def _stop(self, key: str, stop: Stop, written: Callable[[], None] = lambda: None) -> None:
        attempt = self.attempts.get(key)
        if attempt is not None and attempt.held.state is not State.ENDED and not attempt.hooks:
            attempt.stop(stop, self.worker, written=written)

    def _end_overdue(self) -> None:
        """End the runs whose shim has not done it: it is frozen, or dead. Each round, until they are gone."""
        keys = self.overdue()
        for key in keys:
            attempt = self.attempts.get(key)
            if attempt is None or attempt.started_run is None:
                continue
            if key in self._overdue:
                attempt.started_run.kill()
            else:
                logger.warning("lease of a run is over and it lives: it is killed", extra=attempt.fields)
                self._stop(key, Stop(reason=StopReason.SWITCH, kill=True))
        self._overdue = set(keys)

    def _time_out(self, key: str) -> None:
        attempt = self.attempts.get(key)
        if attempt is not None:
            logger.warning("run takes longer than --run-timeout", extra=attempt.fields)
            self._stop(key, Stop(reason=StopReason.TIMEOUT))
