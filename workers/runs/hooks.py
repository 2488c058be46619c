"""Hooks: the hooks of a flow for its cancel or its crash, which a child runs when nothing of the run is left.

The engine runs them where it writes the end itself. Where the worker does, it runs them as the stock worker does: those
for a cancel before it writes Cancelled, those for a crash once its own Crashed was accepted. The child is a run of its
own, with a shim and a folder in the run's folder: so it is started at most once, outlives this worker, and is found by
the next one. It has a minute, and whatever becomes of it, the run's end stays what it is.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.api.client import ApiClient, Job, StateType
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiRejected, ApiUnavailable, DeployError, RunGone, SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import CancelHow
from flowfleet.settings.classes import WorkerSettings
from workers.background import BackgroundJobs
from workers.deployment import Deployer, Exit, StartedRun, StopReason
from workers.reporting.run_log import RunLog
from workers.runs.cancelling import cancel_of
from workers.runs.start_spec import StartSpecBuilder
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder, RunFolders
from workers.stop import FORCED_SECONDS, HOOK_SECONDS, MOST_GRACE_SECONDS, Stop

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
#: the state of the run whose hooks are run → the name of these hooks
_HOOKS = {StateType.CANCELLING: "cancellation", StateType.CRASHED: "crashed"}

GoOn = Callable[[], None]


def check_times(settings: WorkerSettings, traits: Traits) -> None:
    """Raise `SettingsError` where the server would not wait until a cancelled run and its hooks have ended."""
    if traits.worker_runs_hooks and settings.stop_grace >= MOST_GRACE_SECONDS:
        raise SettingsError(
            f"--stop-grace {settings.stop_grace:g} is too long: the Prefect API calls a run Cancelled after "
            f"{FORCED_SECONDS:g} s, and its hooks have {HOOK_SECONDS:g} s of them, "
            f"so give less than {MOST_GRACE_SECONDS:g}"
        )


@dataclass
class _Child:
    """One child that runs hooks."""

    run: RunFolder
    folder: RunFolder
    started_run: StartedRun
    go_on: GoOn
    stopped: bool = False


@dataclass(kw_only=True)
class Hooks:
    """The runner of hooks. Whoever asks for them is called back when they are over, or when there are none."""

    worker: str
    api: ApiClient
    deployer: Deployer
    start_specs: StartSpecBuilder
    attempts: Attempts
    run_log: RunLog
    to_api: BackgroundJobs
    failpoints: Failpoints
    seconds: float = HOOK_SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    #: keys of the runs whose hooks are over, though the disk could not be told
    _over: set[str] = field(default_factory=set, init=False)
    #: watches the children, whatever becomes of the API
    _watch: BackgroundJobs = field(default_factory=lambda: BackgroundJobs("hooks"), init=False)

    def start(self) -> None:
        """Start the thread that watches the children."""
        self._watch.start()

    def wanted(self, run: RunFolder) -> bool:
        """Whether hooks are to be run for this run: its engine had begun here, and they are not over yet.

        Somebody who wants a run killed at once (`flowfleet cancel --now`) wants no hook either.
        """
        cancel = cancel_of(run)
        if cancel is not None and cancel.how is CancelHow.OVER:
            return False
        if not self.api.traits.worker_runs_hooks or not run.is_engine():
            return False
        # a deployer of another package starts runs elsewhere, where our hooks' program is not
        if not run.is_container() and (run.started() or {}).get("kind") != "process":
            return False
        if not (run.exit_record() or {}).get("begun") or not run.obeys():
            return False
        with self._lock:
            return run.key not in self._over and not self._folder(run).settled()

    def before_end(self, attempt: Attempt, end: Exit, go_on: GoOn) -> bool:
        """Run the hooks of a cancelled run before its end is noted, so that it keeps its slot; False = there are none.

        An API that does not answer is not waited for: they are then run before the end is told.
        """
        cancelled = attempt.cancelled or end.stop_reason == StopReason.CANCEL
        if not cancelled or attempt.fenced or not self.wanted(attempt.folder):
            return False
        self._begin(attempt.folder, StateType.CANCELLING, go_on, waits=False)
        return True

    def run(self, run: RunFolder, state: StateType, go_on: GoOn) -> None:
        """Run the hooks for this state of the run, which the API shows, and go on then; the API is waited for."""
        self._begin(run, state, go_on, waits=True)

    # -- the start

    def _begin(self, run: RunFolder, state: StateType, go_on: GoOn, *, waits: bool) -> None:
        self.attempts.change(run.key, hooks=True)

        def last() -> None:
            self.attempts.change(run.key, hooks=False)
            go_on()

        self.to_api.post(lambda: self._ask(run, state, last, waits=waits))

    def _ask(self, run: RunFolder, state: StateType, go_on: GoOn, *, waits: bool) -> None:
        folder = self._folder(run)
        try:
            if folder.start() is not None:
                started_run = self.deployer.adopt(folder.path)  # of a worker before us
            else:
                job = self.api.jobs.job(run.run_id)
                if job.state.kind is not state:
                    go_on()
                    return
                started_run = self._start(run, folder, job, state)
        except ApiUnavailable:
            if waits:
                raise
            go_on()
            return
        except (RunGone, ApiRejected, DeployError, OSError) as exc:
            if isinstance(exc, OSError) and folder.start() is not None:
                raise  # the child may live: it is adopted once this host can do so
            logger.warning("hooks cannot be run", extra={**run.fields, "error": str(exc)})
            self.run_log.say(run.run_id, f"The flow's on_{_HOOKS[state]} hooks cannot be run: {exc}", logging.WARNING)
            started_run = None
        if started_run is None:
            self._end(run, folder, go_on)
        else:
            self.failpoints.hit("hooks.after_start")
            self._look(_Child(run=run, folder=folder, started_run=started_run, go_on=go_on))

    def _start(self, run: RunFolder, folder: RunFolder, job: Job, state: StateType) -> StartedRun | None:
        spec = self.start_specs.for_hooks(job, _HOOKS[state], run=run, folder=folder)
        if spec is None:
            return None
        folder.path.parent.mkdir(mode=0o700, exist_ok=True)
        RunFolders(folder.path.parent).create(folder.run_id, folder.claim, {"hooks": _HOOKS[state]})
        if not folder.log.is_symlink():
            folder.log.symlink_to(run.log)  # what hooks print stands behind what the run has printed
        logger.info("hooks are run", extra={**run.fields, "hooks": _HOOKS[state]})
        return self.deployer.start(spec)

    # -- the end

    def _look(self, child: _Child) -> None:
        end = child.started_run.poll()
        if end is None:
            self._stop_in_time(child)
            self._watch.post(lambda: self._look(child), after=_LOOK_SECONDS)
            return
        child.started_run.close()
        logger.info("hooks are over", extra={**child.run.fields, "exit": str(end)})
        if not end.ok:
            # a hook that raises is told of by the child itself; a child that is killed tells nothing
            self.run_log.say(child.run.run_id, f"The process of the flow's hooks {end}.", logging.WARNING)
        # a job of its own, for it may have to be done again, and the child is closed
        self._watch.post(lambda: self._end(child.run, child.folder, child.go_on))

    def _reason_to_stop(self, child: _Child) -> StopReason | None:
        attempt = self.attempts.get(child.run.key)
        if attempt is not None and attempt.fenced:
            return StopReason.FENCE
        # somebody is in a hurry by now (`flowfleet cancel --now`), or the server has called the run Cancelled
        if attempt is not None and attempt.cancel is not None and attempt.cancel.how is CancelHow.OVER:
            return StopReason.CANCEL
        return StopReason.HOOK_TIMEOUT if child.folder.age_seconds() > self.seconds else None

    def _stop_in_time(self, child: _Child) -> None:
        reason = None if child.stopped else self._reason_to_stop(child)
        if reason is None:
            return
        child.stopped = True
        try:
            child.folder.write_stop(Stop(reason=reason, kill=True), self.worker)
        except OSError as exc:  # a full disk keeps no hook alive
            logger.error("reason of a stop not written", extra={**child.run.fields, "error": str(exc)})
        child.started_run.kill()

    def _end(self, run: RunFolder, folder: RunFolder, go_on: GoOn) -> None:
        try:
            folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.abandon("there were no hooks to run")
            folder.settle()
        except OSError as exc:
            logger.warning("end of hooks not written", extra={**run.fields, "error": str(exc)})
            with self._lock:
                self._over.add(run.key)
        self.failpoints.hit("hooks.before_report")
        go_on()

    def _folder(self, run: RunFolder) -> RunFolder:
        # a claim of its own: whoever clears what is left of the run must not take the hooks for it
        return RunFolders(run.path / "hooks").get(run.run_id, f"{run.claim}-hooks")
