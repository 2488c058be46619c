"""Lingering: runs that have ended at the API and whose processes have not, such as for a thread that never returns.

The engine reports its end before its process ends, and nothing on this host tells the one from the other. So the API is
asked: all runs that have lived for some time, in one request, each half minute. A short run costs no request.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from flowfleet.api.client import EndApi, RunState
from flowfleet.errors import ApiError, KeyRefused
from flowfleet.guard import guarded
from flowfleet.ledger.claims import Claims
from flowfleet.retry import REFUSED_SECONDS, Outage
from workers.background import BackgroundJobs
from workers.deployment import EXTERNAL, StopReason
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts
from workers.stop import Stop

logger = logging.getLogger(__name__)

#: pause between two requests
ASK_SECONDS = 30.0
#: a process ends a moment after its run as a rule; only one that takes longer is spoken of
SURE_SECONDS = 5.0
_LEAST_PAUSE_SECONDS = 0.2


@dataclass
class _Seen:
    """What was seen of a run that has ended at the API while its process lives."""

    #: its state's name and time: another one is another end, counted anew
    end: tuple[str, datetime | None]
    #: by our clock
    since: float
    told: bool = False
    stopped: bool = False


@dataclass(kw_only=True)
class Lingering:
    """The thread that finds such runs, says so in log and ledger, and ends them after `linger` seconds, if given."""

    worker: str
    attempts: Attempts
    claims: Claims
    api: EndApi
    supervisor: Supervisor
    to_ledger: BackgroundJobs
    #: of the API, as this part meets it
    outage: Outage
    #: seconds for which the end has to stand before the process is killed; None = it is left alone
    linger: float | None
    clock: Callable[[], float] = time.monotonic
    #: by the key of the attempt
    _seen: dict[str, _Seen] = field(default_factory=dict, init=False)
    #: keys of the attempts that were judged at least once
    _judged: set[str] = field(default_factory=set, init=False)
    #: seconds until the next look after one that got no answer, else None
    _again_in: float | None = field(default=None, init=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._ask_seconds = ASK_SECONDS if self.linger is None else min(ASK_SECONDS, max(self.linger, 1.0))
        self._sure_seconds = SURE_SECONDS if self.linger is None else min(SURE_SECONDS, self.linger)
        self._thread = threading.Thread(target=self._run, name="lingering", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._pause()):
            with guarded(logger, "runs that may have ended could not be looked at"):  # guards the loop
                self.look()

    def _pause(self) -> float:
        """Seconds until the next look."""
        if self._again_in is not None:
            return self._again_in
        due = [seen.since + self._sure_seconds for seen in self._seen.values() if not seen.told]
        if self.linger is not None:
            due += [seen.since + self.linger for seen in self._seen.values() if not seen.stopped]
        nearest = min(due, default=self.clock() + self._ask_seconds) - self.clock()
        return max(_LEAST_PAUSE_SECONDS, min(self._ask_seconds, nearest))

    def look(self) -> None:
        """Ask the API once about all runs that have lived long enough; an error of the API is logged."""
        now = self.clock()
        alive = {
            attempt.key: attempt
            for attempt in self.attempts.running()
            if not attempt.fenced and now - attempt.since >= self._ask_seconds and not _is_elsewhere(attempt)
        }
        self._seen = {key: seen for key, seen in self._seen.items() if key in alive}
        self._judged &= alive.keys()
        if not alive:
            self.outage.left()
            return
        try:
            states = self.api.states([attempt.held.run_id for attempt in alive.values()])
        except ApiError as exc:
            self._again_in = REFUSED_SECONDS if isinstance(exc, KeyRefused) else self._ask_seconds
            self.outage.failed(exc, next_try=self._again_in)
            self.outage.left()  # it asks too seldom to know first that the outage is over
            return
        self._again_in = None
        self.outage.passed()
        for attempt in alive.values():
            self._judge(attempt, states.get(attempt.held.run_id))

    def _judge(self, attempt: Attempt, state: RunState | None) -> None:
        seen, first_look = self._seen.get(attempt.key), attempt.key not in self._judged
        self._judged.add(attempt.key)
        if state is None or not state.kind.terminal:
            self._seen.pop(attempt.key, None)
            # it was restarted, or put back; of an adopted run the worker before may have noted an end
            if seen is not None or (attempt.adopted and first_look):
                self._note(attempt, "")
            return
        end, now = (state.name, state.at), self.clock()
        if seen is None or seen.end != end:
            seen = self._seen[attempt.key] = _Seen(end=end, since=now)
        if not seen.told and now - seen.since >= self._sure_seconds:
            seen.told = True
            self._note(attempt, state.name)
            if self.linger is None:
                logger.warning("run has ended and its process has not", extra={**attempt.fields, "state": state.name})
        if self.linger is not None and now - seen.since >= self.linger and not seen.stopped:
            seen.stopped = True
            facts = {"state": state.name, "linger_seconds": self.linger}
            logger.warning("run has ended and its process has not: it is killed", extra={**attempt.fields, **facts})
            # no TERM: engines take it for a crash of the run, and none may write one over the end that stands
            self.supervisor.stop(attempt.key, Stop(reason=StopReason.LINGER, kill=True))

    def _note(self, attempt: Attempt, state: str) -> None:
        held = attempt.held
        self.to_ledger.post(lambda: self.claims.linger(held.run_id, held.claim, self.worker, state))


def _is_elsewhere(attempt: Attempt) -> bool:
    """Whether the run has no process of ours: its end at the API is its end."""
    return attempt.started_run is not None and attempt.started_run.handle.get("kind") == EXTERNAL
