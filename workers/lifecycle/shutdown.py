"""Shutdown: how a worker ends: what becomes of its runs, its last requests to Redis and the API, its sign-off."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.errors import LedgerError
from flowfleet.ledger.claims import State
from flowfleet.ledger.roster import Roster, WorkerRow
from workers.background import BackgroundJobs
from workers.deployment import Deployer, StopReason
from workers.lifecycle.heartbeat import Heartbeat
from workers.lifecycle.stop_signals import StopSignals
from workers.lifecycle.yielding import Yielding
from workers.reporting.show_output import OutputFollower
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts
from workers.state.pruner import Pruner
from workers.stop import Stop

logger = logging.getLogger(__name__)

#: seconds that a stop waits, each time, for the last requests to Redis or to the API
LAST_WORDS_SECONDS = 1.5
#: seconds that runs which were told to end get beyond their grace: to be killed, looked at and reported
TELL_SECONDS = 15.0
_LOOK_SECONDS = 0.05

_WAITS = "this worker stops, waits for its runs, and then ends those that are left: a second signal leaves them"
_ENDS = "this worker stops, and ends its runs: a second signal leaves them"


@dataclass(frozen=True, kw_only=True)
class WorkerShutdown:
    """The orderly end of one worker, once Celery's loop has ended."""

    row: WorkerRow
    #: what becomes of runs at a stop: detach, wait or cancel
    mode: str
    #: seconds that a run without a time of its own gets to end by itself, and again once it was told to
    grace: float
    engine_crashes_on_term: bool
    attempts: Attempts
    supervisor: Supervisor
    heartbeat: Heartbeat
    pruner: Pruner
    output: OutputFollower | None
    roster: Roster
    deployer: Deployer
    to_ledger: BackgroundJobs
    to_api: BackgroundJobs
    stop_signals: StopSignals
    yielding: Yielding
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep

    def run(self) -> None:
        """Stop the worker: let no run begin any more, end or leave the runs, and sign off."""
        self.attempts.close()
        self.heartbeat.nudge()  # from here on nothing is claimed for this worker
        self.yielding.leave()
        # Celery may also end by itself: then nobody has asked for the end of any run
        mode = self.mode if self.stop_signals.first_signal is not None else "detach"
        if mode == "detach":
            self.to_api.hurry()
            # a hand-back goes from the ledger to the API and back
            for background in (self.to_ledger, self.to_api, self.to_ledger):
                background.wait_idle(LAST_WORDS_SECONDS)
        else:
            self._end_runs(mode)
            self.to_api.wait_idle(LAST_WORDS_SECONDS)
        self.yielding.wait()
        self._sign_off()
        self.stop_signals.finished()

    def _end_runs(self, mode: str) -> None:
        grace, stopped, begun = Graces(self.grace), set[str](), self.clock()
        left = self.attempts.all()
        if left:
            logger.info(
                _WAITS if mode == "wait" else _ENDS,
                extra={"worker": self.row.worker, "runs": len(left), "grace_seconds": max(map(grace.of, left))},
            )
        while left:
            # at each look again: a launch in hand may begin to run after the first one
            for attempt in self.attempts.running():
                waits = grace.of(attempt) if mode == "wait" else 0.0
                if attempt.key not in stopped and self.clock() >= begun + waits:
                    stopped.add(attempt.key)
                    stop = Stop(reason=StopReason.WORKER, kill=self._kills(attempt))
                    self.supervisor.stop(attempt.key, stop)
            longest = max(map(grace.of, left))
            over = self.clock() >= begun + longest * (2 if mode == "wait" else 1) + TELL_SECONDS
            if over or self._only_untold():
                return
            self.wait(_LOOK_SECONDS)
            left = self.attempts.all()

    def _kills(self, attempt: Attempt) -> bool:
        # A run that is to be started again gets no TERM where its engine would write an end of its own. One without a
        # shim is not started again, since nobody says that it is gone whole, and so it gets its time.
        return self.engine_crashes_on_term and attempt.held.policy == "requeue" and attempt.folder.obeys()

    def _only_untold(self) -> bool:
        """Whether all that is left are ends that Redis cannot be told now: the next worker tells them, from disk."""
        return self.to_ledger.away and all(one.held.state is State.ENDED for one in self.attempts.all())

    def _sign_off(self) -> None:
        left = [attempt for attempt in self.attempts.all() if attempt.held.state is not State.ENDED]
        self.supervisor.close()
        if self.output is not None:
            self.output.close()  # after the last end was seen: closing copies what is still uncopied
        self.heartbeat.close()
        self.pruner.close()
        try:
            self.roster.sign_off(self.row.worker, self.row.nonce)
        except LedgerError as exc:  # the leader notices our silence
            logger.warning("not signed off", extra={"error": str(exc)})
        self.deployer.close()
        if not left:
            logger.info("worker stopped, no run is left", extra={"worker": self.row.worker})
            return
        names = ", ".join(f"{one.held.name} ({one.held.run_id})" for one in left)
        logger.warning(
            "worker stopped, its runs go on and the next worker on this host adopts them: `flowfleet status` shows "
            "them, and to end them start this worker again under its name with `--on-stop cancel` and stop it",
            extra={"worker": self.row.worker, "runs": names},
        )


@dataclass
class Graces:
    """How long each run gets at the stop; read once from its folder, as it was started with."""

    standard: float
    _known: dict[str, float] = field(default_factory=dict)

    def of(self, attempt: Attempt) -> float:
        """The seconds of this run; those of its worker while it is being started, or where it has none of its own."""
        if attempt.key not in self._known:
            own = attempt.folder.stop_grace()
            if own is None:
                return self.standard
            self._known[attempt.key] = own
        return self._known[attempt.key]
