"""Attempts: every claim that this worker holds now, until it is settled or given back, in a table behind one lock."""

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowfleet.api.client import Job
from flowfleet.ledger.claims import HANDLE_LIMIT, CancelAsked, CancelHow, Claim, Refusal, State
from workers.deployment import Exit, StartedRun
from workers.state.run_folders import RunFolder
from workers.stop import Stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run as this worker holds it."""

    held: Claim
    folder: RunFolder
    started_run: StartedRun | None = None
    exit: Exit | None = None
    #: adopted as this process started, not launched by it
    adopted: bool = False
    #: the ledger says that the claim is not ours any more; the end of the run is logged and not reported
    fenced: bool = False
    #: what the ledger, or the worker before us, says about a cancel of the run
    cancel: CancelAsked | None = None
    #: how far this process has gone in ending the run for that
    stopped: CancelHow = CancelHow.NONE
    #: the run is gone and its flow's hooks run, which keep its slot and its working folder
    hooks: bool = False
    #: the ledger's word by which it was fenced
    refusal: Refusal | None = None
    #: since when this process holds the claim, by the monotonic clock
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        """The key of the attempt, RUN.CLAIM."""
        return f"{self.held.run_id}.{self.held.claim}"

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that every log line about the attempt carries."""
        return {"run_id": self.held.run_id, "claim": self.held.claim, "run_name": self.held.name}

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants the run cancelled."""
        return self.cancel is not None

    def stop(self, stop: Stop, worker: str, *, written: Callable[[], None] = lambda: None) -> None:
        """End the started run; its folder says why before any signal goes, and `written` is called in between.

        `worker` is our own NAME@HOST. Returns at once.
        """
        if self.started_run is None:
            return
        logger.info("run is being stopped", extra={**self.fields, "reason": str(stop.reason), "kill": stop.kill})
        try:
            self.folder.write_stop(stop, worker)
        except OSError as exc:  # a full disk keeps no run alive
            logger.error("reason of a stop not written", extra={**self.fields, "error": str(exc)})
        try:
            written()
        finally:  # nobody asks for this stop again
            if stop.kill:
                self.started_run.kill()
            else:
                self.started_run.stop()


@dataclass
class Attempts:
    """The table of attempts by key. `on_change` is called, outside the lock, when a slot may have become free.

    It takes no lock either.
    """

    on_change: Callable[[], None] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _table: dict[str, Attempt] = field(default_factory=dict)
    _closed: bool = False
    #: boot-time clock at which the latest accepted proof of life for a claim was sent
    _proofs: dict[str, float] = field(default_factory=dict)

    def begin(self, attempt: Attempt) -> bool:
        """Enter an attempt; False when the worker is stopping, so that no launch begins unseen by the stop.

        An adopted attempt is entered all the same.
        """
        with self._lock:
            if self._closed and not attempt.adopted:
                return False
            held = dataclasses.replace(attempt.held, handle=fit_handle(attempt.held.handle))
            self._table[attempt.key] = dataclasses.replace(attempt, held=held)
            return True

    def close(self) -> None:
        """Let no more launches begin, and tell that. This takes no lock, since a signal handler calls it."""
        self._closed = True
        self.on_change()

    @property
    def closed(self) -> bool:
        """Whether the worker is stopping, so that no more launches begin."""
        return self._closed

    def change(self, key: str, **changes: Any) -> Attempt | None:
        """Replace fields of an attempt; None when it is not held any more."""
        with self._lock:
            attempt = self._table.get(key)
            if attempt is None:
                return None
            attempt = dataclasses.replace(attempt, **changes)
            self._table[key] = attempt
        self.on_change()
        return attempt

    def move(self, key: str, state: State, *, handle: Any = None, exit_: Exit | None = None) -> Attempt | None:
        """Note the state of the claim; a later state is never replaced by an earlier one.

        None as `handle` or `exit_` leaves what is there. Returns the attempt, or None when it is not held any more.
        """
        with self._lock:
            attempt = self._table.get(key)
            if attempt is None:
                return None
            order = [State.TAKEN, State.STARTING, State.RUNNING, State.ENDED]
            held = attempt.held
            if order.index(state) > order.index(held.state):
                held = dataclasses.replace(held, state=state)
            if handle is not None:
                held = dataclasses.replace(held, handle=fit_handle(handle))
            if exit_ is not None:
                held = dataclasses.replace(held, exit=exit_.certificate())
            attempt = dataclasses.replace(attempt, held=held, exit=exit_ or attempt.exit)
            self._table[key] = attempt
        self.on_change()
        return attempt

    def remove(self, key: str) -> Attempt | None:
        """Remove an attempt from the table; None when it is not held any more."""
        with self._lock:
            attempt = self._table.pop(key, None)
            self._proofs.pop(key, None)
        self.on_change()
        return attempt

    def get(self, key: str) -> Attempt | None:
        """The attempt with this key; None when it is not held any more."""
        with self._lock:
            return self._table.get(key)

    def all(self) -> list[Attempt]:
        """All attempts, as of now."""
        with self._lock:
            return list(self._table.values())

    def occupying(self) -> set[str]:
        """The keys of the attempts that take up a slot: all that have not ended, and those whose hooks run."""
        return {attempt.key for attempt in self.all() if attempt.hooks or attempt.held.state is not State.ENDED}

    def running(self) -> list[Attempt]:
        """The attempts whose started run lives."""
        return [
            attempt for attempt in self.all() if attempt.started_run is not None and attempt.held.state is State.RUNNING
        ]

    def prove(self, keys: list[str], sent: float) -> None:
        """Note that the ledger has accepted a proof of life for these claims, sent at `sent` (boot-time clock)."""
        with self._lock:
            for key in keys:
                self._proofs[key] = max(sent, self._proofs.get(key, sent))

    def proof(self, key: str) -> float | None:
        """When the latest accepted proof of life for this claim was sent (boot-time clock); None = no proof yet."""
        with self._lock:
            return self._proofs.get(key)


def fit_handle(handle: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The handle in a form that the ledger accepts: whole, or cut down to the few short fields that people look at.

    A handle that the ledger refused would let every renewal of this worker fail. Adoption reads the whole one on disk.
    """
    if handle is None:
        return None
    try:
        if len(json.dumps(handle)) <= HANDLE_LIMIT:
            return handle
    except (TypeError, ValueError):
        pass  # not JSON at all
    known = {name: handle.get(name) for name in ("kind", "host", "id", "pid")}
    return {name: value if isinstance(value, int) else str(value)[:200] for name, value in known.items() if value}


def named(held: Claim, job: Job | None) -> Claim:
    """The claim with the names of its run's flow and deployment, where the API has told the job."""
    if job is None:
        return held
    return dataclasses.replace(held, flow=job.flow_name or "", deployment=job.deployment_name or "")


def held_to_intent(held: Claim) -> dict[str, Any]:
    """The facts of a claim for the run's folder, so that the next worker can hold it without the ledger."""
    return {
        "call": held.call,
        "route": str(held.route),
        "name": held.name,
        "flow": held.flow,
        "deployment": held.deployment,
        "due": held.due.isoformat(),
        "attempt": held.attempt,
        "policy": held.policy,
        "switch": held.switch,
    }
