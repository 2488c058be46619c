"""Service: one worker, put together from its parts, from its sign-on to its last log line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowfleet.api.client import ApiClient, Mark
from flowfleet.broker import App
from flowfleet.errors import LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message, Route
from flowfleet.ledger.claims import Claims
from flowfleet.ledger.roster import Roster, WorkerRow
from flowfleet.settings.classes import WorkerSettings
from workers.background import BackgroundJobs
from workers.deployment import Deployer
from workers.lifecycle import consumer
from workers.lifecycle.consumer import Slots, register_task
from workers.lifecycle.heartbeat import Heartbeat
from workers.lifecycle.shutdown import WorkerShutdown
from workers.lifecycle.stop_signals import StopSignals
from workers.metrics import WorkerMetrics
from workers.page import WorkerHealth
from workers.reporting.endings import Endings
from workers.reporting.outbox import Outbox
from workers.reporting.run_log import RunLog
from workers.reporting.show_output import OutputFollower
from workers.runs.adoption import Adoption, ClaimAdoption
from workers.runs.cancel_and_fence import CancelAndFence
from workers.runs.hand_back import HandBack
from workers.runs.launch import API_RETRY, LEDGER_RETRY, Launch
from workers.runs.start_spec import StartSpecBuilder
from workers.runs.supervisor import Supervisor
from workers.runs.takeover import Takeover, scopes_of
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.state.pruner import Pruner
from workers.state.state_folder import StateFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerParts:
    """The parts of a worker, as its command or a test has built them."""

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
    #: called with the run id after each launch, whether it succeeded or failed
    launched: Callable[[str], None] = lambda _run_id: None
    leave: Callable[[int], Any] = os._exit


class WorkerService:
    """The worker; `run` blocks until it has stopped and returns the exit code."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        settings, worker = parts.settings, parts.row.worker
        self.metrics = WorkerMetrics()
        self.ledger_view = LedgerView(parts.row.offer)
        self.attempts = Attempts(on_change=self._changed)
        self.to_ledger = BackgroundJobs("Redis")
        self.to_api = parts.to_api
        self.supervisor = Supervisor(self.attempts, self._run_ended, run_timeout=settings.run_timeout)
        self.slots = Slots(settings.slots, self, on_arrival=self._arrived)
        self.stop_signals = StopSignals(self.slots, self.attempts, leave=parts.leave, guarded=parts.mode == "detach")
        self.output = OutputFollower() if settings.show_flow_logs else None
        self.pruner = Pruner(
            parts.state,
            keep_days=settings.keep_logs_days,
            keep_bytes=settings.keep_logs_bytes,
            busy=lambda: {attempt.key for attempt in self.attempts.all()},
        )
        self._mark = Mark(fleet=settings.fleet, worker=worker)
        self._join_ends()
        self._join_renewal()
        self._join_launch()
        self.health = WorkerHealth(
            worker=worker,
            watcher=self.supervisor,
            ledger_view=self.ledger_view,
            attempts=self.attempts,
            slots=self.slots,
            outbox=self.outbox,
            metrics=self.metrics,
            runs=parts.state.runs,
        )
        self.shutdown = WorkerShutdown(
            row=parts.row,
            mode=parts.mode,
            grace=settings.stop_grace,
            attempts=self.attempts,
            supervisor=self.supervisor,
            heartbeat=self.heartbeat,
            pruner=self.pruner,
            output=self.output,
            roster=parts.roster,
            deployer=parts.deployer,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            stop_signals=self.stop_signals,
        )

    def _join_ends(self) -> None:
        parts, worker = self._parts, self._parts.row.worker
        self.run_log = RunLog(parts.api, self.to_api, enabled=parts.settings.cloud_logs)
        self.claim_adoption = ClaimAdoption(worker=worker, nonce=parts.row.nonce, claims=parts.claims)
        self.hand_back = HandBack(
            worker=worker,
            mark=self._mark,
            on_told=self._handed_back,
            take_again=self.claim_adoption.again,
            attempts=self.attempts,
            claims=parts.claims,
            api=parts.api.ends,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=parts.failpoints,
        )
        self.outbox = Outbox(parts.state.outbox)
        self.endings = Endings(
            worker=worker,
            mark=self._mark,
            outbox=self.outbox,
            runs=parts.state.runs,
            run_log=self.run_log,
            on_settled=self._settled,
            take_again=self.claim_adoption.again,
            attempts=self.attempts,
            claims=parts.claims,
            api=parts.api.ends,
            traits=parts.api.traits,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=parts.failpoints,
        )

    def _join_renewal(self) -> None:
        parts = self._parts
        cancel_and_fence = CancelAndFence(
            worker=parts.row.worker,
            attempts=self.attempts,
            claims=parts.claims,
            api=parts.api.ends,
            supervisor=self.supervisor,
            to_api=self.to_api,
        )
        self.heartbeat = Heartbeat(
            claims=parts.claims,
            roster=parts.roster,
            row=parts.row,
            attempts=self.attempts,
            ledger_view=self.ledger_view,
            watcher=self.supervisor,
            on_fenced=cancel_and_fence.fenced,
            on_cancelled=cancel_and_fence.cancelled,
            on_answer=self._answered,
            take_again=self.claim_adoption.again,
        )

    def _join_launch(self) -> None:
        parts = self._parts
        self.launch = Launch(
            worker=parts.row.worker,
            nonce=parts.row.nonce,
            mark=self._mark,
            deployer=parts.deployer,
            start_specs=parts.start_specs,
            ledger_view=self.ledger_view,
            runs=parts.state.runs,
            hand_back=self.hand_back,
            run_log=self.run_log,
            on_started=self._run_started,
            on_failed=self.endings.ended,
            ledger_retry=replace(LEDGER_RETRY, wait=self.stop_signals.wait, stopped=lambda: self.attempts.closed),
            api_retry=replace(API_RETRY, wait=self.stop_signals.wait, stopped=lambda: self.attempts.closed),
            attempts=self.attempts,
            claims=parts.claims,
            api=parts.api,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            failpoints=parts.failpoints,
        )

    # -- the worker as its slots see it (`SlotOwner`)

    def accepting(self) -> bool:
        return self.ledger_view.accepting

    def occupying(self) -> set[str]:
        return self.attempts.occupying()

    def routes(self) -> Iterable[Route]:
        return self.ledger_view.routes()

    def serving(self, routes: frozenset[Route]) -> None:
        # the roster has to say so at once, since only served routes count when slots are counted
        if self.slots.stopping:
            routes = frozenset()  # also where Celery connects once more on its way out
        if self.ledger_view.serve(routes):
            self.heartbeat.nudge()

    def refused(self, reason: str) -> None:
        logger.warning("message refused", extra={"reason": reason})
        self.metrics.refused.inc()
        self.to_ledger.post(lambda: self._parts.count_refused(reason))

    # -- what the parts tell each other

    def _changed(self) -> None:
        self.slots.wakeup.wake()

    def _arrived(self, sent_at: float) -> None:
        self.metrics.queue_wait.observe(max(0.0, time.time() - sent_at))

    def _handed_back(self, reason: str) -> None:
        self.metrics.handed_back.labels(reason=reason).inc()

    def _run_started(self, key: str) -> None:
        self.metrics.started.inc()
        self.supervisor.watch(key)
        attempt = self.attempts.get(key)
        if attempt is not None:
            self.metrics.start_seconds.observe(time.monotonic() - attempt.since)
            self.metrics.lateness.observe(max(0.0, time.time() - attempt.held.due.timestamp()))
        if self.output is not None and attempt is not None:
            self.output.follow(attempt.folder.log, attempt.held.name)

    def _run_adopted(self, key: str) -> None:
        self.supervisor.watch(key)
        attempt = self.attempts.get(key)
        if self.output is not None and attempt is not None:
            self.output.follow(attempt.folder.log, attempt.held.name, from_now=True)

    def _run_ended(self, attempt: Attempt) -> None:
        if self.output is not None:
            self.output.finish(attempt.folder.log)
        self.endings.ended(attempt)

    def _settled(self, attempt: Attempt | None, outcome: str) -> None:
        self.metrics.finished.labels(outcome=outcome).inc()
        if attempt is not None and attempt.exit is not None and attempt.exit.started_at and attempt.exit.ended_at:
            self.metrics.duration.observe(max(0.0, attempt.exit.ended_at - attempt.exit.started_at))

    def _answered(self) -> None:
        self.slots.wakeup.wake()
        empty = not self.attempts.all() and self.slots.in_use() == 0
        if self.ledger_view.wanted == "draining" and empty and self.ledger_view.ready.is_set():
            logger.info("drained, this worker ends", extra={"worker": self._parts.row.worker})
            if self.stop_signals.first_signal is None:
                self.stop_signals.request()

    # -- life

    def run(self) -> int:
        """Adopt, serve and stop; the caller has signed the worker on."""
        for part in (self.to_ledger, self.to_api, self.supervisor):
            part.start()
        if self.output is not None:
            self.output.start()
        self._adopt()
        self.heartbeat.start()
        self.heartbeat.nudge()
        self.pruner.start()
        self.ledger_view.ready.set()
        code = self._serve()
        self.shutdown.run()
        return code

    def _takeover(self) -> Takeover:
        parts = self._parts
        return Takeover(
            own=parts.state,
            fleet=parts.settings.fleet,
            api=parts.api.address,
            scopes=scopes_of(parts.row.offer),
            take_reports=self.outbox.take_over,
            may_live=self._may_live,
        )

    def _may_live(self, last: Mapping[str, Any]) -> bool:
        """Whether a worker that no lock proves dead may live: the roster has it as live, or Redis does not answer."""
        try:
            rows = self._parts.roster.rows()
        except LedgerError:
            return True
        return any(row.worker == last.get("worker") and row.nonce == last.get("nonce") and row.live for row in rows)

    def _adopt(self) -> None:
        folders = self._takeover().take_over()
        reports = {report.key for report in self.endings.resend()}
        adoption = Adoption(
            worker=self._parts.row.worker,
            claims=self._parts.claims,
            claim_adoption=self.claim_adoption,
            deployer=self._parts.deployer,
            attempts=self.attempts,
            hand_back=self.hand_back,
            to_ledger=self.to_ledger,
            on_alive=self._run_adopted,
            on_ended=self.endings.ended,
        )
        alive = adoption.adopt_all(folders, lambda run_id, claim: f"{run_id}.{claim}" in reports)
        logger.info("adoption done", extra={"alive": alive, "reports": len(reports)})

    def _launch(self, message: Message) -> None:
        try:
            self.launch(message)
        finally:
            self._parts.launched(message.run_id)

    def _serve(self) -> int:
        app = self._parts.app
        register_task(app, self._launch)
        app.steps["consumer"].add(self.slots.step())
        worker = consumer.make_worker(app, self._parts.row.worker, self._parts.settings)
        worker.start()
        return int(worker.exitcode or 0)
