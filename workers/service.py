"""Service: one worker, put together from its parts, from its sign-on to its last log line."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from flowfleet.api.client import ApiClient, Mark
from flowfleet.broker import App
from flowfleet.errors import FleetError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import Claims
from flowfleet.ledger.roster import Roster, WorkerRow
from flowfleet.settings.classes import WorkerSettings
from workers.background import BackgroundJobs
from workers.deployment import Deployer
from workers.lifecycle import consumer
from workers.lifecycle.arrival import Arrival
from workers.lifecycle.consumer import Slots
from workers.lifecycle.draining import Draining
from workers.lifecycle.heartbeat import Heartbeat
from workers.lifecycle.shutdown import WorkerShutdown
from workers.lifecycle.stop_signals import StopSignals
from workers.lifecycle.yielding import Yielding
from workers.metrics import WorkerMetrics
from workers.page import WorkerHealth
from workers.reporting.endings import Endings
from workers.reporting.outbox import Outbox
from workers.reporting.receipts import Receipts
from workers.reporting.run_log import RunLog
from workers.reporting.show_output import OutputFollower
from workers.runs.adoption import ClaimAdoption
from workers.runs.answering import Answering
from workers.runs.api_watch import ApiWatch
from workers.runs.cancelling import Cancelling
from workers.runs.hand_back import HandBack
from workers.runs.hooks import Hooks
from workers.runs.launch import Launch
from workers.runs.launch_waits import API_RETRY, LEDGER_RETRY
from workers.runs.leases import Leases
from workers.runs.lingering import Lingering
from workers.runs.start_spec import StartSpecBuilder
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.state.pruner import Pruner
from workers.state.state_folder import StateFolder

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class WorkerService:
    """The worker, put together from what its command or a test has built; `run` blocks until it has stopped."""

    settings: WorkerSettings
    row: WorkerRow
    app: App
    claims: Claims
    roster: Roster
    api: ApiClient
    to_api: BackgroundJobs
    deployer: Deployer
    start_specs: StartSpecBuilder
    state: StateFolder
    failpoints: Failpoints = field(default_factory=Failpoints)
    #: what becomes of runs at a stop: detach, wait or cancel
    mode: str = "detach"
    #: called with the reason of each refused message: counts it in the ledger for people, beside our own metric
    count_refused: Callable[[str], None] = lambda _reason: None
    tell_api: Callable[[FleetError | None], None] = lambda _error: None
    #: called with the run id after each launch, whether it succeeded or failed
    launched: Callable[[str], None] = lambda _run_id: None
    leave: Callable[[int], Any] = os._exit

    def __post_init__(self) -> None:
        settings, worker = self.settings, self.row.worker
        self.metrics = WorkerMetrics()
        self.ledger_view = LedgerView(self.row.offer, shut=lambda: getattr(self.deployer, "shut", ""))
        self.attempts = Attempts(on_change=self._changed)
        self.to_ledger = BackgroundJobs("Redis")
        self._mark = Mark(fleet=settings.fleet, worker=worker)
        self.run_log = RunLog(self.api, self.to_api, enabled=settings.cloud_logs)
        self.hooks = Hooks(
            worker=worker,
            api=self.api,
            deployer=self.deployer,
            start_specs=self.start_specs,
            attempts=self.attempts,
            run_log=self.run_log,
            to_api=self.to_api,
            failpoints=self.failpoints,
        )
        self.leases = Leases(attempts=self.attempts, ledger_view=self.ledger_view)
        self.supervisor = Supervisor(
            self.attempts,
            self._run_ended,
            worker=worker,
            run_timeout=settings.run_timeout,
            before_end=self.hooks.before_end,
            overdue=self.leases.overdue,
        )
        self.slots = Slots(
            settings.slots,
            ledger_view=self.ledger_view,
            attempts=self.attempts,
            on_serving=self._serving,
            on_refused=self._refused,
            on_arrival=self.metrics.arrived,
        )
        self.stop_signals = StopSignals(self.slots, self.attempts, leave=self.leave, guarded=self.mode == "detach")
        self._join_ends()
        self._join_claims()
        self._join_stop()

    def _join_ends(self) -> None:
        worker = self.row.worker
        self.claim_adoption = ClaimAdoption(worker=worker, nonce=self.row.nonce, claims=self.claims)
        self.hand_back = HandBack(
            worker=worker,
            mark=self._mark,
            on_told=self.metrics.count_handed_back,
            take_again=self.claim_adoption.again,
            attempts=self.attempts,
            claims=self.claims,
            api=self.api.ends,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=self.failpoints,
        )
        self.yielding = Yielding(
            worker=worker,
            nonce=self.row.nonce,
            claims=self.claims,
            hand_back=self.hand_back,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=self.failpoints,
        )
        self.outbox = Outbox(self.state.outbox)
        self.answering = Answering(
            host=self.claim_adoption,
            name=self.state.path.name,
            attempts=self.attempts,
            runs=self.state.runs,
            to_ledger=self.to_ledger,
        )
        self.endings = Endings(
            worker=worker,
            mark=self._mark,
            outbox=self.outbox,
            runs=self.state.runs,
            run_log=self.run_log,
            hooks=self.hooks,
            cancel_at_api=self.api.orders.cancel,
            on_settled=lambda one, outcome: self.metrics.settled(outcome, one.exit if one is not None else None),
            on_fenced_end=self.answering.gone,
            receipts=Receipts(choice=Random(self.row.nonce), count=self.metrics.count_receipt),
            take_again=self.claim_adoption.again,
            attempts=self.attempts,
            claims=self.claims,
            api=self.api.ends,
            traits=self.api.traits,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=self.failpoints,
        )

    def _join_claims(self) -> None:
        self.cancelling = Cancelling(
            attempts=self.attempts,
            supervisor=self.supervisor,
            api=self.api,
            to_api=self.to_api,
            hit=self.failpoints.hit,
        )
        self.api_watch = ApiWatch(
            mark=self._mark,
            ledger_view=self.ledger_view,
            claims=self.claims,
            cancelling=self.cancelling,
        )
        self.heartbeat = Heartbeat(
            claims=self.claims,
            roster=self.roster,
            row=self.row,
            attempts=self.attempts,
            ledger_view=self.ledger_view,
            supervisor=self.supervisor,
            cancelling=self.cancelling,
            leases=self.leases,
            api_watch=self.api_watch,
            answering=self.answering,
            on_answer=self._answered,
            runs=self.state.runs,
            take_again=self.claim_adoption.again,
            outage=self.to_ledger.outage.of("renewals"),
        )
        launch_retry = partial(replace, wait=self.stop_signals.wait, stopped=lambda: self.attempts.closed)
        self.launch = Launch(
            worker=self.row.worker,
            nonce=self.row.nonce,
            mark=self._mark,
            deployer=self.deployer,
            start_specs=self.start_specs,
            leases=self.leases,
            runs=self.state.runs,
            hand_back=self.hand_back,
            run_log=self.run_log,
            on_started=self._run_started,
            on_cancelled=self.cancelling.act,
            on_failed=self.endings.ended,
            on_done=self.launched,
            ledger_retry=launch_retry(LEDGER_RETRY, outage=self.to_ledger.outage),
            api_retry=launch_retry(API_RETRY, outage=self.to_api.outage),
            attempts=self.attempts,
            claims=self.claims,
            api=self.api,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=self.failpoints,
        )

    def _join_stop(self) -> None:
        settings, worker, roster, stop = self.settings, self.row.worker, self.roster, self.stop_signals
        self.output = OutputFollower() if settings.show_flow_logs else None
        self.pruner = Pruner(
            self.state,
            keep_days=settings.keep_logs_days,
            keep_bytes=settings.keep_logs_bytes,
            busy=lambda: {attempt.key for attempt in self.attempts.all()},
        )
        self.lingering = Lingering(
            worker=worker,
            attempts=self.attempts,
            claims=self.claims,
            api=self.api.ends,
            supervisor=self.supervisor,
            to_ledger=self.to_ledger,
            outage=self.to_api.outage.of("lingering"),
            linger=settings.linger,
        )
        self.draining = Draining(worker, roster, self.ledger_view, self.attempts, self.slots, self.outbox, stop)
        self.health = WorkerHealth(
            worker=worker,
            supervisor=self.supervisor,
            ledger_view=self.ledger_view,
            attempts=self.attempts,
            slots=self.slots,
            outbox=self.outbox,
            metrics=self.metrics,
            runs=self.state.runs,
            to_api=self.to_api,
        )
        self.shutdown = WorkerShutdown(
            row=self.row,
            mode=self.mode,
            grace=settings.stop_grace,
            engine_crashes_on_term=self.api.traits.engine_crashes_on_term,
            attempts=self.attempts,
            supervisor=self.supervisor,
            heartbeat=self.heartbeat,
            pruner=self.pruner,
            output=self.output,
            roster=roster,
            deployer=self.deployer,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            stop_signals=stop,
            yielding=self.yielding,
        )

    # -- what the parts tell each other

    def _serving(self, routes: frozenset[Route]) -> None:
        # the roster has to say so at once, since only served routes count when slots are counted; Celery connects once
        # more on its way out
        if self.ledger_view.serve(frozenset() if self.slots.stopping else routes):
            self.heartbeat.nudge()

    def _refused(self, reason: str) -> None:
        logger.warning("message refused", extra={"reason": reason})
        self.metrics.refused.inc()
        self.to_ledger.post(lambda: self.count_refused(reason))

    def _changed(self) -> None:
        self.slots.wakeup.wake()

    def _run_started(self, key: str) -> None:
        attempt = self._watch(key)
        if attempt is not None:
            self.metrics.run_started(attempt.since, attempt.held.due)

    def _watch(self, key: str, *, from_now: bool = False) -> Attempt | None:
        """Watch a run that lives; of an adopted one (`from_now`) only what it prints from now on is shown."""
        self.supervisor.watch(key)
        attempt = self.attempts.get(key)
        if self.output is not None and attempt is not None:
            self.output.follow(attempt.folder.log, attempt.held.name, from_now=from_now)
        return attempt

    def _run_ended(self, attempt: Attempt) -> None:
        if self.output is not None:
            self.output.finish(attempt.folder.log)
        self.endings.ended(attempt)

    def _answered(self) -> None:
        self.slots.wakeup.wake()
        self.tell_api(self.to_api.error)
        self.yielding.look(self.ledger_view.wanted)
        self.draining.look()

    def run(self) -> int:
        """Adopt, serve and stop; the caller has signed the worker on."""
        for part in (self.to_ledger, self.to_api, self.supervisor, self.hooks):
            part.start()
        if self.output is not None:
            self.output.start()
        self._arrive()
        for thread in (self.heartbeat, self.pruner, self.lingering, self.api_watch):
            thread.start()
        self.heartbeat.nudge()
        self.ledger_view.ready.set()
        outage, wait = self.to_ledger.outage.of("messages"), self.stop_signals.wait
        code = consumer.serve(self.app, self.settings, self.slots, self.launch, outage=outage, wait=wait)
        self.shutdown.run()
        self.lingering.close()
        self.api_watch.close()
        return code

    def _arrive(self) -> None:
        Arrival(
            fleet=self.settings.fleet,
            api=self.api.address,
            row=self.row,
            state=self.state,
            roster=self.roster,
            claim_adoption=self.claim_adoption,
            deployer=self.deployer,
            hand_back=self.hand_back,
            endings=self.endings,
            on_alive=partial(self._watch, from_now=True),
            on_cancelled=self.cancelling.resume,
            before_end=self.hooks.before_end,
        ).arrive()
