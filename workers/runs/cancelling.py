"""Cancelling: what a worker does about a run of its own that somebody wants cancelled.

An engine that is told of a cancel which the API does not show ends at once and leaves its run Running. So the API is
asked before anything is signalled, about all such runs in one request. What is asked for is on the disk (stop.json)
before the signal, and a worker that finds it there goes on with it.

Every step may be repeated: each renewal tells of the cancel again, until the run is gone.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowfleet.api.client import ApiClient, RunState, StateType
from flowfleet.errors import ApiRejected, ApiUnavailable
from flowfleet.ledger.claims import CancelAsked, CancelHow, State
from workers.background import BackgroundJobs
from workers.deployment import StopReason
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder
from workers.stop import MOST_GRACE_SECONDS, Stop

logger = logging.getLogger(__name__)

#: how long a command has that cancels itself: `prefect flow-run execute` takes 5 s (prefect 3.9.1), Prefect 1's engine
#: looks each few seconds and then stops its tasks
PATIENCE_SECONDS = 20.0


@dataclass(kw_only=True)
class Cancelling:
    """The end of cancelled runs. Renewals, the launch and the adoption call it; background jobs ask the API."""

    attempts: Attempts
    supervisor: Supervisor
    api: ApiClient
    to_api: BackgroundJobs
    #: called with the name of each failpoint on the way
    hit: Callable[[str], None]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    #: keys of the attempts about which the API is to be asked
    _open: set[str] = field(default_factory=set, init=False)

    def cancelled(self, attempt: Attempt, asked: CancelAsked) -> None:
        """Take note of a cancel, and act on it; the ledger refuses the start of a run that has not begun."""
        if asked.outweighs(attempt.cancel):
            logger.info("run is to be cancelled", extra={**attempt.fields, "how": asked.how.name, "why": asked.why})
            self.attempts.change(attempt.key, cancel=asked)
        self.act(attempt.key)

    def act(self, key: str) -> None:
        """Do what is left to do about the cancel of this attempt; nothing while its run has not begun."""
        attempt = self.attempts.get(key)
        if attempt is None or attempt.cancel is None or attempt.started_run is None or attempt.fenced:
            return
        if attempt.held.state is State.ENDED or attempt.stopped >= attempt.cancel.how:
            return
        if attempt.cancel.how is CancelHow.OVER:
            self._stop(attempt, CancelHow.OVER)
            return
        with self._lock:
            asked = bool(self._open)
            self._open.add(key)
        if not asked:
            self.to_api.post(self._ask)

    def resume(self, attempt: Attempt) -> None:
        """Go on with the cancel of a run that is alive and that the worker before us has begun to end."""
        if attempt.cancel is not None:
            # what its folder says was seen at the API before it was written
            self._stop(attempt, attempt.cancel.how)

    def _ask(self) -> None:
        with self._lock:
            keys, self._open = self._open, set()
        attempts = [attempt for key in keys if (attempt := self.attempts.get(key)) is not None]
        try:
            states = self._states(attempts)
        except ApiUnavailable:
            # this very job is tried again; after a fault of ours it may not be, and then a renewal asks anew
            with self._lock:
                self._open |= keys
            raise
        for attempt in attempts:
            self._act_on(attempt, states.get(attempt.held.run_id))

    def _states(self, attempts: Sequence[Attempt]) -> dict[str, RunState]:
        try:
            return self.api.ends.states([attempt.held.run_id for attempt in attempts]) if attempts else {}
        except ApiRejected as exc:
            # a cancel is never given up: the API may understand us after its next upgrade
            raise ApiUnavailable(f"the API refused to tell the states of cancelled runs: {exc}") from exc

    def _act_on(self, attempt: Attempt, state: RunState | None) -> None:
        if state is not None and state.kind is StateType.CANCELLING:
            self._stop(attempt, CancelHow.ASKED)
        elif state is None or state.kind is StateType.CANCELLED:
            # only a command that cancels itself may have written that, and is about to end
            own = state is not None and self._cancels_itself(attempt)
            self._stop(attempt, CancelHow.ASKED if own else CancelHow.OVER)
        elif state.kind.terminal:
            logger.info("run has ended before its cancel", extra={**attempt.fields, "state": state.name})
        else:
            # the next renewal tells of the cancel again, and the API is asked again
            logger.info("cancel is not seen at the API yet", extra={**attempt.fields, "state": state.name})

    def _stop(self, attempt: Attempt, how: CancelHow) -> None:
        now = self.attempts.get(attempt.key)
        if now is None or now.stopped >= how:
            return
        self.attempts.change(attempt.key, stopped=how)
        # a deployer of another package knows no control session and no patience, and most engines take a TERM for a
        # crash
        kill = how is CancelHow.OVER or not attempt.folder.obeys()
        itself = self._cancels_itself(attempt)
        patience = PATIENCE_SECONDS if itself and not kill else 0.0
        stop = Stop(
            reason=StopReason.CANCEL,
            kill=kill,
            intent=not kill and not itself,
            patience=patience,
            most_grace=MOST_GRACE_SECONDS - patience if self.api.traits.worker_runs_hooks else 0.0,
            why=now.cancel.why if now.cancel is not None else "",
        )
        self.supervisor.stop(attempt.key, stop, written=lambda: self.hit("cancel.after_stop_file"))

    def _cancels_itself(self, attempt: Attempt) -> bool:
        """Whether the command looks for a cancel by itself: all but the engine that takes a TERM for a crash."""
        # what runs the engine in a container looks for a cancel by itself (`prefect flow-run execute`)
        folder = attempt.folder
        return folder.is_container() or not (self.api.traits.engine_crashes_on_term and folder.is_engine())


def cancel_of(folder: RunFolder) -> CancelAsked | None:
    """The cancel that a worker before us has begun to carry out; None when it has not."""
    stop = folder.stop_record() or {}
    if stop.get("reason") != StopReason.CANCEL or stop.get("claim") != folder.claim:
        return None
    how = CancelHow.OVER if stop.get("kill") else CancelHow.ASKED
    # whoever has asked for it may be known by now
    return CancelAsked(how=how, why=str(stop.get("why") or ""), found=True)
