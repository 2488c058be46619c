"""Shutdown: how a worker ends: what becomes of its runs, its last requests to Redis and the API, its sign-off."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

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
from workers.state.attempts import Attempts
from workers.state.pruner import Pruner

logger = logging.getLogger(__name__)

#: seconds that a stop waits, each time, for the last requests to Redis or to the API
LAST_WORDS_SECONDS = 1.5
#: seconds that runs which were told to end get beyond their grace: to be killed, looked at and reported
TELL_SECONDS = 15.0

_WAITS = "this worker stops, and waits for its runs before it ends them: a second signal leaves them as they are"
_ENDS = "this worker stops, and ends its runs: a second signal leaves them as they are"


@dataclass(frozen=True, kw_only=True)
class WorkerShutdown:
    """The orderly end of one worker, once Celery's loop has ended."""

    row: WorkerRow
    #: what becomes of runs at a stop: detach, wait or cancel
    mode: str
    #: seconds that runs get to end by themselves, and again once they were told to
    grace: float
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
        self.yielding.wait()
        self._sign_off()
        self.stop_signals.finished()

    def _end_runs(self, mode: str) -> None:
        if self.attempts.all():
            logger.info(
                _WAITS if mode == "wait" else _ENDS,
                extra={"worker": self.row.worker, "runs": len(self.attempts.all()), "grace_seconds": self.grace},
            )
        if mode == "wait" and self._wait(self.grace):
            return
        stopped: set[str] = set()

        def stop_all() -> None:
            # called at each look, again and again: a launch in hand may begin to run after the first look
            for attempt in self.attempts.running():
                if attempt.key not in stopped:
                    stopped.add(attempt.key)
                    self.supervisor.stop(attempt.key, StopReason.WORKER)

        self._wait(self.grace + TELL_SECONDS, meanwhile=stop_all)

    def _wait(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        return wait_for_runs(self.attempts, seconds, clock=self.clock, wait=self.wait, meanwhile=meanwhile)

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


def wait_for_runs(
    attempts: Attempts,
    seconds: float | None,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    meanwhile: Callable[[], None] = lambda: None,
) -> bool:
    """Wait until no run is left and every end is reported; False when some are left after `seconds` (None = no limit).

    `meanwhile` is called at each look.
    """
    deadline = None if seconds is None else clock() + seconds
    while attempts.all():
        meanwhile()
        if deadline is not None and clock() >= deadline:
            return False
        wait(0.05)
    return True
