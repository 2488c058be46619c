"""Events: one stream of what the engine tells of our containers: kills for memory, ends, and outages of its own.

An end itself is found without it. What only the stream tells is why: a kill for memory right before the end, and that
the engine was restarted. After a gap in the stream neither is known.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowfleet.errors import EngineAway, EngineError
from flowfleet.guard import guarded
from flowfleet.retry import OutageLog
from workers.containers.container import moment
from workers.containers.engine import Engine
from workers.containers.request import FLEET, HOST

logger = logging.getLogger(__name__)

#: the kernel's kill and the end that it brings are at most so far apart by the engine's clock (measured: 20 to 41 ms)
OOM_SECONDS = 1.0
#: the code of a container that a signal has ended is that much more than the signal's number
SIGNALS_FROM = 128
_KILLED = SIGNALS_FROM + signal.SIGKILL
#: the codes of those that an engine ends: with TERM first, in an order as at its restart (measured with Docker 20.10)
ENDED_BY_ENGINE = (_KILLED, SIGNALS_FROM + signal.SIGTERM)
#: how long such an end waits for the engine to go, and how long before that it may have come
LEAVE_SECONDS, _LEFT_SECONDS = 3.0, 5.0
_AGAIN_SECONDS = 1.0
#: how long an end waits for the stream: to be there, and to tell of it
CONNECT_SECONDS, TELL_SECONDS = 5.0, 1.0
#: containers whose events are kept
_KEPT = 10_000


@dataclass(frozen=True)
class _Told:
    """What the stream has told of one container."""

    ooms: tuple[float, ...] = ()
    die: float | None = None


@dataclass(frozen=True, kw_only=True)
class Death:
    """What the stream knows about the end of a container."""

    #: the kernel killed a process of it for memory right before its end
    oom: bool
    #: the stream had a gap then, so that `oom` means nothing
    gap: bool
    #: the engine was away when it ended
    engine_away: bool


@dataclass(kw_only=True)
class Events:
    """The thread that reads the stream."""

    engine: Engine
    fleet: str
    host: str
    #: called with the id of a container that has ended
    on_die: Callable[[str], None]
    #: called each time that the engine answers again, or for the first time
    on_back: Callable[[], None] = lambda: None
    wait: Callable[[float], None] = time.sleep
    _told: OrderedDict[str, _Told] = field(default_factory=OrderedDict, init=False)
    #: outages of the stream in the engine's time, each with its end; the first begins before all time
    _gaps: list[tuple[float, float]] = field(default_factory=list, init=False)
    _broken_at: float = field(default=0.0, init=False)
    _connected: bool = field(default=False, init=False)
    _away: str = field(default="", init=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Condition = field(default_factory=threading.Condition, init=False)
    _outage: OutageLog = field(default_factory=lambda: OutageLog("the container engine"), init=False)

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="container-events", daemon=True).start()

    def close(self) -> None:
        """Let the thread end with the process."""
        self._closed.set()

    @property
    def connected(self) -> bool:
        """Whether the engine is there, as far as the stream tells."""
        return self._connected

    @property
    def away(self) -> str:
        """Why the engine is not there, as a sentence; empty where it is."""
        if self._connected:
            return ""
        return self._away or f"the container engine at {self.engine.address} has not answered yet"

    def death(self, container: str, ended_at: float | None, exit_code: int, *, ours: bool) -> Death:
        """What is known about the end of this container, which the engine dates so; waits a moment to be told.

        `ours`: we have signalled it ourselves.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._connected, CONNECT_SECONDS)
            self._lock.wait_for(lambda: self._is_told(container, ended_at), TELL_SECONDS)
            told = self._told.get(container, _Told())
            at = told.die or ended_at or 0.0
            oom = exit_code == _KILLED and any(0 <= at - one <= OOM_SECONDS for one in told.ooms)
            if exit_code in ENDED_BY_ENGINE and not (ours or oom):
                # an engine that is stopped in order ends its containers, and only then itself
                self._lock.wait_for(lambda: not self._connected, LEAVE_SECONDS)
            gaps = [*self._gaps, *([] if self._connected else [(self._broken_at, math.inf)])]
            covered = self._connected and not any(start - OOM_SECONDS <= at <= end for start, end in gaps)
            # a worker that has begun after the end knows nothing of an outage then
            away = any(start > 0 and start - _LEFT_SECONDS <= at <= end + 1.0 for start, end in gaps)
        return Death(oom=oom, gap=not covered, engine_away=away)

    def _is_told(self, container: str, ended_at: float | None) -> bool:
        told = self._told.get(container)
        # what has ended before the stream began is told by nobody
        return bool(told and told.die) or any(start <= (ended_at or 0.0) <= end for start, end in self._gaps)

    def forget(self, container: str) -> None:
        """Keep nothing more about this container."""
        with self._lock:
            self._told.pop(container, None)

    def _run(self) -> None:
        while not self._closed.is_set():
            with guarded(logger, "the engine's events could not be read"):  # the runs need this thread
                self._follow()
            self.wait(_AGAIN_SECONDS)

    def _follow(self) -> None:
        try:
            now = self.engine.ask(lambda client: moment(client.api.info().get("SystemTime"))) or time.time()
            filters = {"type": ["container"], "label": [f"{FLEET}={self.fleet}", f"{HOST}={self.host}"]}
            # what happens between the two requests is told as well
            params = {"filters": json.dumps(filters), "since": f"{now:.9f}"}
            answer = self.engine.stream("/events", params, idle_seconds=None)
            with contextlib.closing(answer), self.engine.errors():
                self._back(now)
                for line in answer.iter_lines():
                    if line.strip():
                        self._take(json.loads(line))
            raise EngineAway(f"the container engine at {self.engine.address} has ended its stream of events")
        except EngineError as exc:
            self._broken(str(exc))
            self._outage.failed(exc, next_try=_AGAIN_SECONDS)

    def _back(self, now: float) -> None:
        with self._lock:
            self._gaps.append((self._broken_at, now))
            self._gaps = self._gaps[-100:]
            self._connected = True
            self._lock.notify_all()
        self._outage.passed()
        self.on_back()

    def _broken(self, why: str) -> None:
        with self._lock:
            if self._connected:
                self._broken_at = time.time()
            self._connected, self._away = False, why
            self._lock.notify_all()

    def _take(self, event: Mapping[str, Any]) -> None:
        container, action = str((event.get("Actor") or {}).get("ID") or event.get("id") or ""), event.get("Action")
        at = int(event.get("timeNano") or 0) / 1e9
        with self._lock:
            told = self._told.get(container, _Told())
            if action == "oom":
                told = replace(told, ooms=(*told.ooms, at))
            elif action in ("die", "died"):  # Podman writes the second
                told = replace(told, die=at)
            self._told[container] = told
            self._lock.notify_all()
            while len(self._told) > _KEPT:
                self._told.popitem(last=False)
        if action in ("die", "died", "destroy", "remove"):
            self.on_die(container)
