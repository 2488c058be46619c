"""Container run: one started run in a container, fresh or adopted: watched, stopped, and removed when its end is kept.

A thread of its own copies what it prints and sees its end; another one carries out a stop. Both wait for an engine that
is away: a run is called dead only when the engine has answered.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flowfleet.errors import EngineAway, EngineRefused
from flowfleet.guard import guarded
from flowfleet.wakeup import Wakeup
from workers.containers.container import Container, ContainerState
from workers.containers.engine import Engine
from workers.containers.events import Events
from workers.containers.exit_codes import exit_of
from workers.containers.output import Output
from workers.deployment import Exit, Handle
from workers.shim import atomic_files, log_cap
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN_SECONDS = 1.0
#: what of the record on disk is no part of the handle
_NOT_SHOWN = frozenset({"v", "stop_grace", "log_limit", "boot_clock"})
#: how long the rest of the output is waited for once the engine calls a container ended
_DRAIN_SECONDS = 30.0
_KILL_AGAIN_SECONDS = 5.0


class _Closed(Exception):
    """The worker ends while it waits for the engine."""


@dataclass(kw_only=True)
class ContainerRun:
    """A started run that is a container of this host's engine."""

    folder: RunFolder
    container: Container
    #: the handle on disk
    started: Mapping[str, Any]
    events: Events
    log_limit: int
    holes: bool
    #: called once its watch is over
    on_over: Callable[[ContainerRun], None] = lambda _run: None
    #: called when its end is kept, before its container is removed
    hit: Callable[[str], None] = lambda _name: None
    clock: Callable[[], float] = time.monotonic
    _exit: Exit | None = field(default=None, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)
    _closed: bool = field(default=False, init=False)
    #: so that nobody wakes a descriptor that is closed
    _closing: threading.Lock = field(default_factory=threading.Lock, init=False)
    #: "term" or "kill", as the container was last signalled by us
    _stopped_by: str | None = field(default=None, init=False)
    _stopping: threading.Thread | None = field(default=None, init=False)
    _kill_now: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._wakeup = Wakeup()
        self._output = Output(self.engine, self.container.id, self.folder.log, limit=self.log_limit, holes=self.holes)
        self._exit = self.folder.exit()
        if self._exit is not None:
            self._exit = replace(self._exit, last_lines=log_cap.last_lines(self.folder.log))
            self._over.set()

    @property
    def engine(self) -> Engine:
        """The engine that has the container."""
        return self.container.engine

    @property
    def closed(self) -> bool:
        """Whether nobody watches it any more."""
        return self._closed

    def watch(self) -> ContainerRun:
        """Begin to watch; returns itself."""
        target = self._remove_only if self._exit is not None else self._watch
        threading.Thread(target=target, name=f"container-{self.container.id[:12]}", daemon=True).start()
        return self

    # the StartedRun protocol
    @property
    def handle(self) -> Handle:
        return {name: value for name, value in self.started.items() if name not in _NOT_SHOWN}

    def fileno(self) -> int | None:
        return self._wakeup.fileno()

    def poll(self) -> Exit | None:
        if not self._over.is_set():
            return None
        with self._closing:
            if not self._closed:
                self._wakeup.clear()
        return self._exit

    def stop(self) -> None:
        asked = self.folder.stop_record() or {}
        grace = float(self.started.get("stop_grace") or 0.0)
        grace = min(grace, float(asked.get("most_grace") or grace))
        self._begin_stop(float(asked.get("patience") or 0.0), grace)

    def kill(self) -> None:
        self._kill_now.set()
        self._begin_stop(0.0, 0.0)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wakeup.close()
        self._output.close()

    def died(self) -> None:
        """The engine tells that the container has ended or is gone: called by the stream of events."""
        threading.Thread(target=self._drain, name=f"drain-{self.container.id[:12]}", daemon=True).start()

    def _drain(self) -> None:
        self._output.container_ended()
        # its output ends by itself, as a rule
        if not self._over.wait(_DRAIN_SECONDS):
            self._output.close()

    # -- the watch

    def _watch(self) -> None:
        while not self._closed and not self._over.is_set():
            fields = self.folder.fields
            # what fails is tried again
            with guarded(logger, "a container could not be watched", **fields), contextlib.suppress(_Closed):
                self._look()
            if not self._over.is_set():
                time.sleep(_AGAIN_SECONDS)

    def _look(self) -> None:
        """Follow it as long as it runs, and settle its end; returns early where it has to be looked at again."""
        state = self._asked(self.container.state)
        if state is not None and state.never_began:
            self._give_up()
            return
        if state is not None and not state.over:
            try:
                self._output.copy(follow=True, tty=state.tty)
            except (EngineAway, EngineRefused) as exc:
                logger.info("output of a run is not copied now", extra={**self.folder.fields, "error": str(exc)})
            except OSError as exc:
                logger.warning("output of a run cannot be written", extra={**self.folder.fields, "error": str(exc)})
                self._over.wait(_AGAIN_SECONDS)
            state = self._asked(self.container.state)
        if self._closed or (state is not None and not state.over):
            return
        if state is not None:
            self._copy_rest(state)
        self._settle(state)

    def _give_up(self) -> None:
        """It was created and never started, and the engine was away when its worker came back: it never is."""
        if self._asked(self.container.remove):
            self._keep(Exit(error="its container was created and not started", ended_at=time.time()), begun=False)

    def _copy_rest(self, state: ContainerState) -> None:
        output = Output(self.engine, self.container.id, self.folder.log, limit=self.log_limit, holes=self.holes)
        try:
            self._asked(lambda: output.copy(follow=False, tty=state.tty))
        except (EngineRefused, OSError) as exc:
            logger.warning("last output of a run is lost", extra={**self.folder.fields, "error": str(exc)})

    def _settle(self, state: ContainerState | None) -> None:
        ended_at, code = (state.finished_at, state.exit_code) if state else (None, 0)
        death = self.events.death(self.container.id, ended_at, code, ours=self._stopped_by is not None)
        end = exit_of(state, death, stopped_by=self._stopped_by)
        self._keep(self.folder.with_reason(end), begun=True, remove=state is not None)

    def note_start(self) -> None:
        """Note that it has begun; where the disk is full, that is noted with its end."""
        try:
            atomic_files.write_json(self.folder.path / "started.json", dict(self.started))
        except OSError as exc:
            logger.error("start of a container not written", extra={**self.folder.fields, "error": str(exc)})

    def _keep(self, end: Exit, *, begun: bool, remove: bool = False) -> None:
        if begun and self.folder.started() is None:
            self.note_start()
        self.folder.write_exit(end, begun=begun)
        self.hit("container.after_exit_record")
        self._exit = replace(end, last_lines=log_cap.last_lines(self.folder.log))
        if remove:
            self._remove()
        else:
            self.folder.mark_cleared()
        self._over.set()
        self._wake()
        self.on_over(self)

    def _wake(self) -> None:
        with self._closing:
            if not self._closed:
                self._wakeup.wake()

    def _remove_only(self) -> None:
        fields = self.folder.fields
        # what is left is removed with the other leftovers
        with guarded(logger, "a container could not be removed", **fields), contextlib.suppress(_Closed):
            self._remove()
        self._wake()
        self.on_over(self)

    def _remove(self) -> None:
        try:
            if self._asked(self.container.remove):
                self.folder.mark_cleared()
        except EngineRefused as exc:
            logger.warning("container is not removed yet", extra={**self.folder.fields, "error": str(exc)})
        self.events.forget(self.container.id)

    def _asked(self, question: Callable[[], T]) -> T:
        """The answer of the engine, however long it is away."""
        while True:
            try:
                return question()
            except EngineAway:
                if self._closed:
                    raise _Closed from None
                time.sleep(_AGAIN_SECONDS)

    # -- a stop

    def _begin_stop(self, patience: float, grace: float) -> None:
        if self._over.is_set() or (self._stopping is not None and self._stopping.is_alive()):
            return  # what is under way goes on, and is hurried by `_kill_now`
        self._stopping = threading.Thread(
            target=self._stop, args=(patience, grace), name=f"stop-{self.container.id[:12]}", daemon=True
        )
        self._stopping.start()

    def _stop(self, patience: float, grace: float) -> None:
        fields = self.folder.fields
        # whoever wants it gone at once asks again, by `kill`
        with guarded(logger, "a container could not be stopped", **fields), contextlib.suppress(_Closed):
            if not self._pause(patience):
                self._ask_to_end()
                self._pause(grace)
            while not self._over.is_set() and not self._closed:
                sent = self._signal("SIGKILL", by="kill")
                self._over.wait(_KILL_AGAIN_SECONDS if sent else _AGAIN_SECONDS)

    def _ask_to_end(self) -> None:
        # an image may name a signal that there is not
        for name in dict.fromkeys([self._stop_signal(), "SIGTERM"]):
            if self._signal(name, by="term") is not None:
                return

    def _stop_signal(self) -> str:
        try:
            state = self._asked(self.container.state)
        except EngineRefused as exc:
            logger.warning("stop signal of a container not known", extra={**self.folder.fields, "error": str(exc)})
            state = None
        return (state.stop_signal if state else "") or "SIGTERM"

    def _signal(self, name: str, *, by: str) -> bool | None:
        """Whether it was sent; None where the engine has refused it."""
        if self._over.is_set() or self._closed or (by == "term" and self._kill_now.is_set()):
            return False
        before, self._stopped_by = self._stopped_by, by
        try:
            sent: bool | None = self._asked(lambda: self.container.signal(name))
        except EngineRefused as exc:
            fields = {**self.folder.fields, "signal": name, "error": str(exc)}
            logger.warning("the engine has refused a signal", extra=fields)
            sent = None
        if not sent:
            self._stopped_by = before  # it had ended already
        return sent

    def _pause(self, seconds: float) -> bool:
        """Wait so long for its end; True when there is nothing more to wait for: it is over, or is to be killed."""
        deadline = self.clock() + seconds
        while self.clock() < deadline:
            if self._over.is_set() or self._kill_now.wait(min(0.1, max(0.0, deadline - self.clock()))):
                return True
        return self._over.is_set()
