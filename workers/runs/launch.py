"""Launch: the short Celery task that takes a claim, asks the API what to run, and starts the run.

Every way out leaves the claim with somebody: the supervisor (started), the endings (a start that failed), the
hand-back (user code never began), or the leader (the ledger did not answer).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flowfleet import logs
from flowfleet.api.client import Answer, ApiClient, Job, Mark, StateType, Verdict
from flowfleet.errors import (
    ApiRejected,
    ApiUnavailable,
    DeployError,
    FleetError,
    LedgerUnavailable,
    NotReady,
    RunGone,
    UserCodeFailed,
)
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.ledger.claims import Claim, Claims, Refusal, State
from flowfleet.retry import Retry
from workers.background import BackgroundJobs
from workers.deployment import Deployer, Exit, StartedRun, StopReason, process_of
from workers.reporting.run_log import RunLog
from workers.runs.hand_back import HandBack
from workers.runs.leases import Leases
from workers.runs.lost_policy import asked_policy
from workers.runs.preparation import prepare
from workers.runs.start_spec import StartSpecBuilder
from workers.shim.syscalls import boot_clock
from workers.state.attempts import Attempt, Attempts, fit_handle, held_to_intent, named
from workers.state.run_folders import RunFolders
from workers.stop import Stop

logger = logging.getLogger(__name__)

_HANDLE_TOO_LARGE = "The handle of its deployer is too large for the ledger or no JSON and is shown there in short."


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The way from one message to one started run."""

    worker: str
    nonce: str
    mark: Mark
    claims: Claims
    api: ApiClient
    deployer: Deployer
    start_specs: StartSpecBuilder
    attempts: Attempts
    leases: Leases
    runs: RunFolders
    hand_back: HandBack
    run_log: RunLog
    to_ledger: BackgroundJobs
    to_api: BackgroundJobs
    failpoints: Failpoints
    #: called with the key of each attempt whose run was started
    on_started: Callable[[str], None]
    #: called with the key of each attempt whose run was cancelled while it was started
    on_cancelled: Callable[[str], None]
    #: called with each attempt whose start failed; its exit is on disk
    on_failed: Callable[[Attempt], None]
    #: called with the run id after each launch, whether it succeeded or failed
    on_done: Callable[[str], None] = lambda _run_id: None
    ledger_retry: Retry
    api_retry: Retry

    def __call__(self, message: Message) -> None:
        """Take the claim and start its run; a fault of ours gives the claim away like any other way out."""
        try:
            self._launch(message)
        except Exception:  # guards Celery's loop, and lets no claim go astray
            fields = {"run_id": message.run_id, "claim": message.claim}
            logger.exception("a launch failed", extra=fields)
            try:
                self._recover(message)
            except Exception as exc:  # noqa: BLE001 - guards Celery's loop: a full disk, a deployer of the user
                logger.warning("a failed launch is given away later", extra={**fields, "error": str(exc)})
                self.to_ledger.post(lambda: self._recover(message))
        finally:
            self.on_done(message.run_id)

    def _launch(self, message: Message) -> None:
        self.failpoints.hit("take.on_arrival")
        attempt = self._take(message)
        if attempt is None:
            return
        if not self.attempts.begin(attempt):
            self._return(attempt, f"{self.worker} is stopping")
            return
        job = self._ask(attempt)
        if job is None or not self._prepare(attempt, job):
            return
        if (started := self._start(attempt, job)) is not None:
            self._deploy(started, job)

    # -- take

    def _take(self, message: Message) -> Attempt | None:
        run_id, claim = message.run_id, message.claim
        fields = {"run_id": run_id, "claim": claim}
        # the folder comes first: a worker killed after the move below must be able to find what it has taken
        ours = {"worker": self.worker, "fleet": self.mark.fleet, "api": self.api.address}
        folder = self.runs.create(run_id, claim, {"route": str(message.route), **ours})
        if folder is None:
            logger.warning("message delivered twice, dropped", extra=fields)
            return None
        self.failpoints.hit("take.after_folder")
        sent = boot_clock()
        try:
            outcome = self.ledger_retry.ask("Redis", lambda: self.claims.take(run_id, claim, self.worker, self.nonce))
        except LedgerUnavailable as exc:
            # nobody knows whether the move was carried out; without renewals the leader hands the claim back
            logger.warning("take got no answer: left to the leader", extra={**fields, "error": str(exc)})
            folder.abandon("the ledger did not answer")
            folder.remove()
            return None
        if not outcome.moved or outcome.claim is None:
            logger.info("claim not taken", extra={**fields, "refusal": str(outcome.refusal)})
            folder.remove()
            return None
        self.failpoints.hit("take.after_move")
        held = replace(outcome.claim, state=State.TAKEN)
        folder.note(**held_to_intent(held))
        attempt = Attempt(held=held, folder=folder)
        self.attempts.prove([attempt.key], sent)
        logger.info("run taken", extra={**attempt.fields, "route": str(held.route), "attempt": held.attempt})
        return attempt

    # -- ask

    def _ask(self, attempt: Attempt) -> Job | None:
        """The job to run, if the run is still ours; None when the claim was given away instead."""
        held = attempt.held
        try:
            job = self.api_retry.ask("the Prefect API", lambda: self.api.jobs.job(held.run_id))
            asked_policy(job)  # raises for what is no policy
        except ApiUnavailable as exc:
            self._return(attempt, f"the API did not answer {self.worker}: {exc}")
            return None
        except RunGone:
            self._return(attempt, "the run does not exist any more")
            return None
        except (DeployError, ApiRejected) as exc:
            self._fail_unstarted(attempt, exc)
            return None
        state = job.state
        if state.kind is StateType.PENDING and state.call in (None, held.call):
            return job
        if state.kind is StateType.CANCELLING:
            self._return(attempt, "cancelled before it was started", cancelled=True)
        else:
            self._return(attempt, f"the run is {state.name} at the API and not waiting for this claim")
        return None

    def _prepare(self, attempt: Attempt, job: Job) -> bool:
        """Have what the run needs brought here; False when the claim was given away instead."""
        try:
            prepare(self.deployer, self.start_specs, self.attempts, attempt, job)
        except NotReady as exc:
            now = self.attempts.get(attempt.key)
            self._return(attempt, f"not ready on {self.worker}: {exc}", cancelled=now is not None and now.cancelled)
        except DeployError as exc:
            self._fail_unstarted(attempt, exc, job)
        else:
            return True
        return False

    def _fail_unstarted(self, attempt: Attempt, error: FleetError, job: Job | None = None) -> None:
        if self._start(attempt, job) is not None:
            self._fail(attempt, _as_part(str(error)))

    # -- start

    def _start(self, attempt: Attempt, job: Job | None) -> Attempt | None:
        """Move the claim to starting, then the run to Launching at the API; None when the claim was given away."""
        held, policy, sent = named(attempt.held, job), asked_policy(job), boot_clock()
        switch = bool(getattr(self.deployer, "has_switch", False)) and (policy or held.policy) == "requeue"
        start = partial(self.claims.start, held.run_id, held.claim, self.worker, self.nonce)
        start = partial(start, flow=held.flow, deployment=held.deployment)
        start = partial(start, policy=policy, switch=switch, ttl=self.leases.ttl(attempt.key))
        try:
            outcome = self.ledger_retry.ask("Redis", start)
        except LedgerUnavailable as exc:
            self._return(attempt, f"Redis did not answer {self.worker}: {exc}")
            return None
        if not outcome.moved or outcome.claim is None:
            cancelled = outcome.refusal is Refusal.CANCELLED
            self._return(attempt, f"the start was refused: {outcome.refusal}", cancelled=cancelled)
            return None
        policy = outcome.claim.policy  # which may not be the one that the run asks for, since the ledger counts starts
        held = replace(held, policy=policy, switch=outcome.claim.switch and policy == "requeue")
        if held != attempt.held:
            attempt.folder.note(**held_to_intent(held))  # for the next worker, before anything begins
        attempt = self.attempts.change(attempt.key, held=held) or replace(attempt, held=held)
        attempt = self.attempts.move(attempt.key, State.STARTING) or attempt
        self.attempts.prove([attempt.key], sent)
        self.failpoints.hit("start.after_move")
        return attempt if self._launching(attempt) else None

    def _launching(self, attempt: Attempt) -> bool:
        held = attempt.held
        try:
            answer = self.api_retry.ask("the Prefect API", lambda: self._ask_launching(held))
        except ApiUnavailable as exc:
            self._return(attempt, f"the API did not answer {self.worker}: {exc}")
            return False
        if answer.verdict is Verdict.ACCEPTED:
            return True
        self._return(attempt, f"the API refused the launch: {answer.reason}")
        return False

    def _ask_launching(self, held: Claim) -> Answer:
        answer = self.api.claims.launching(held.run_id, held.call, held.claim, self.mark)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the launch of run {held.run_id}: {answer.reason}")
        return answer

    def _deploy(self, attempt: Attempt, job: Job) -> None:
        key = attempt.key
        now = self.attempts.get(key)
        not_after = self.leases.deadline(key)
        if self.attempts.closed:
            self._return(attempt, f"{self.worker} is stopping")
            return
        if now is not None and now.cancelled:
            self._return(attempt, "cancelled before it was started", cancelled=True)
            return
        if now is None or now.fenced or boot_clock() >= not_after:
            self._return(attempt, f"it was too late to start it on {self.worker}")
            return
        for remark in job.remarks:
            self.run_log.say(attempt.held.run_id, remark, logging.WARNING)
        self.failpoints.hit("start.before_fork")
        try:
            spec = self.start_specs.make(attempt.held, job, attempt.folder, not_after=not_after)
            if spec.switch:
                self.leases.write(attempt)
            started_run = self.deployer.start(spec)
        except (ApiUnavailable, RunGone, NotReady) as exc:
            # of a deployer that asks the API before anything begins; `_return` looks whether that is so
            self._return(attempt, f"{self.worker} could not deploy it: {exc}")
            return
        except DeployError as exc:
            self._not_started(attempt, exc)
            return
        self.failpoints.hit("start.after_fork")
        self._running(attempt, started_run)

    def _not_started(self, attempt: Attempt, error: DeployError) -> None:
        record = attempt.folder.exit_record() or {}
        if record.get("late"):
            # the shim came after the deadline and did not begin user code: nothing is wrong with the run itself
            self._return(attempt, f"it was too late to start it on {self.worker}")
            return
        sentence = str(error).removeprefix(f"Run {attempt.held.run_id} could not be started: ")
        self._fail(attempt, sentence, own_words=isinstance(error, UserCodeFailed))

    def _running(self, attempt: Attempt, started_run: StartedRun) -> None:
        held, whole = attempt.held, dict(started_run.handle)
        handle = fit_handle(whole) or {}
        self.attempts.change(attempt.key, started_run=started_run)
        self.attempts.move(attempt.key, State.RUNNING, handle=handle)
        self.on_started(attempt.key)
        now = self.attempts.get(attempt.key)
        if now is not None and now.fenced:
            logger.warning("claim was lost while its run was started", extra=attempt.fields)
            now.stop(Stop(reason=StopReason.FENCE), self.worker)
        elif now is not None and now.cancelled:
            # the cancel came while there was no process to end yet
            logger.info("run was cancelled while it was started", extra=attempt.fields)
            self.on_cancelled(attempt.key)
        logger.info("run started", extra={**attempt.fields, "pid": handle.get("pid")})
        note = partial(self.claims.run, held.run_id, held.claim, self.worker, handle)
        try:
            note()
        except LedgerUnavailable:
            self.to_ledger.post(note)
        self.failpoints.hit("start.after_running")
        self._tell_started(held, whole)
        if handle != whole:
            logger.warning("handle does not fit the ledger", extra={**attempt.fields, "kind": handle.get("kind")})
            self.run_log.say(held.run_id, _HANDLE_TOO_LARGE, logging.WARNING)

    def _tell_started(self, held: Claim, handle: Mapping[str, Any]) -> None:
        process = process_of(handle)
        # what the callable of an external run has answered, as Prefect 1's own agent writes it
        says = f"Submitted for execution: {handle['id']}" if handle.get("kind") == "external" else None
        if not handle.get("doubtful"):
            self.run_log.say(held.run_id, says or self.api.claims.started_line(self.mark, process))
        self.to_api.post(lambda: self.api.claims.started(held.run_id, self.mark, process))

    # -- ways out

    def _recover(self, message: Message) -> None:
        folder = self.runs.get(message.run_id, message.claim)
        attempt = self.attempts.get(message.task_id)
        if attempt is None and folder.path.exists():
            claim = self.claims.get(message.run_id)
            if claim is None or claim.claim != message.claim or claim.worker != self.worker:
                folder.abandon("it was not taken")
                folder.remove()
                return
            attempt = Attempt(held=replace(claim, state=State.TAKEN), folder=folder)
        if attempt is not None and attempt.started_run is None and attempt.exit is None:
            self._return(attempt, f"an unexpected error on {self.worker}")

    def _return(self, attempt: Attempt, reason: str, *, cancelled: bool = False) -> None:
        if attempt.folder.abandon(reason):
            self.hand_back.give(attempt, reason, cancelled=cancelled)
        else:  # a shim has won the start file, so user code may have begun: find out rather than give the claim away
            logger.error("run was started and cannot be handed back", extra=attempt.fields)
            self._adopt_own(attempt)

    def _adopt_own(self, attempt: Attempt) -> None:
        started_run = self.deployer.adopt(attempt.folder.path)
        if started_run is None:
            self.hand_back.give(attempt, "its start came too late")
        else:
            self._running(attempt, started_run)

    def _fail(self, attempt: Attempt, sentence: str, *, own_words: bool = False) -> None:
        # it goes to the ledger and the API, and the name of a program or folder may have come out of a secret block
        sentence = logs.redact(sentence)
        error = sentence if own_words else sentence.rstrip(".")
        end = Exit(error=error, own_words=own_words, ended_at=time.time())
        logger.warning("run could not be started", extra={**attempt.fields, "error": sentence})
        if attempt.folder.exit_record() is None:
            attempt.folder.abandon("it could not be started")
            attempt.folder.write_exit(end, begun=False)
        moved = self.attempts.move(attempt.key, State.ENDED, exit_=end)
        if moved is not None:
            self.on_failed(moved)


def _as_part(sentence: str) -> str:
    """The sentence as the end of a longer one: its first letter is lowered, unless its first word is in capitals."""
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence
