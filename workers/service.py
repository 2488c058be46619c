"""Service: one worker, joined from its parts, from sign-on to its last line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowfleet.api.client import ApiClient, Mark
from flowfleet.broker import App
from flowfleet.errors import LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message, Route
from flowfleet.ledger.claims import Claims
from flowfleet.ledger.roster import Roster, Row
from flowfleet.settings.classes import WorkerSettings
from workers.background import Errands
from workers.deployment import Deployer
from workers.lifecycle import consumer
from workers.lifecycle.consumer import Slots, register_task
from workers.lifecycle.heartbeat import Renewer
from workers.lifecycle.shutdown import Farewell
from workers.lifecycle.stop_signals import Stopping
from workers.metrics import Meters
from workers.page import Vitals
from workers.patience import Patience
from workers.reporting.endings import Endings
from workers.reporting.outbox import Outbox
from workers.reporting.run_log import Logbook
from workers.reporting.show_output import FlowOutput
from workers.runs.adoption import Adoption, Ownership
from workers.runs.cancel_and_fence import Fences
from workers.runs.hand_back import HandBack
from workers.runs.launch import Launch
from workers.runs.start_spec import Orders
from workers.runs.supervisor import Supervisor
from workers.runs.takeover import Siblings, scopes_of
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import Standing
from workers.state.pruner import Pruner
from workers.state.run_folders import StateFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a worker is made of, as its command or a test has built it."""

    settings: WorkerSettings
    row: Row
    app: App
    claims: Claims
    roster: Roster
    api: ApiClient
    deployer: Deployer
    orders: Orders
    state: StateFolder
    failpoints: Failpoints = field(default_factory=Failpoints)
    #: what becomes of runs at a stop: detach, wait or cancel
    mode: str = "detach"
    #: counts a refused message for people, beside our own metric
    count_refused: Callable[[str], None] = lambda _reason: None
    #: told of each launch that is over, well or not
    launched: Callable[[str], None] = lambda _run_id: None
    leave: Callable[[int], Any] = os._exit


class Service:
    """The joined worker; `run` blocks until it has stopped and returns the exit code."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        settings, worker = parts.settings, parts.row.worker
        self.meters = Meters()
        self.standing = Standing(parts.row.offer)
        self.attempts = Attempts(on_change=self._changed)
        self.to_ledger = Errands("Redis")
        self.to_api = Errands("the Prefect API")
        self.supervisor = Supervisor(self.attempts, self._run_ended, run_timeout=settings.run_timeout)
        self.slots = Slots(settings.slots, self, on_arrival=self._arrived)
        self.stopping = Stopping(self.slots, self.attempts, leave=parts.leave, guarded=parts.mode == "detach")
        self.output = FlowOutput() if settings.show_flow_logs else None
        self.pruner = Pruner(
            parts.state,
            keep_days=settings.keep_logs_days,
            keep_bytes=settings.keep_logs_bytes,
            busy=lambda: {attempt.key for attempt in self.attempts.all()},
        )
        self._mark = Mark(fleet=settings.fleet, worker=worker)
        self._join()
        self.vitals = Vitals(
            worker=worker,
            watcher=self.supervisor,
            standing=self.standing,
            attempts=self.attempts,
            slots=self.slots,
            outbox=self.outbox,
            meters=self.meters,
            runs=parts.state.runs,
        )
        self.farewell = Farewell(
            row=parts.row,
            mode=parts.mode,
            grace=settings.stop_grace,
            attempts=self.attempts,
            supervisor=self.supervisor,
            renewer=self.renewer,
            pruner=self.pruner,
            output=self.output,
            roster=parts.roster,
            deployer=parts.deployer,
            to_ledger=self.to_ledger,
            to_api=self.to_api,
            stopping=self.stopping,
        )

    def _shared(self) -> dict[str, Any]:
        """What launches, hand-backs and endings all need."""
        parts = self._parts
        neighbours = {"claims": parts.claims, "api": parts.api, "to_ledger": self.to_ledger, "to_api": self.to_api}
        return {"attempts": self.attempts, "failpoints": parts.failpoints, **neighbours}

    def _join(self) -> None:
        self._join_ends()
        self._join_renewal()
        self._join_launch()

    def _join_ends(self) -> None:
        parts, worker = self._parts, self._parts.row.worker
        self.logbook = Logbook(parts.api, self.to_api, enabled=parts.settings.cloud_logs)
        self.ownership = Ownership(worker=worker, nonce=parts.row.nonce, claims=parts.claims)
        self.handback = HandBack(
            worker=worker,
            mark=self._mark,
            on_told=self._handed_back,
            take_again=self.ownership.again,
            **self._shared(),
        )
        self.endings = Endings(
            worker=worker,
            runs=parts.state.runs,
            logbook=self.logbook,
            on_settled=self._settled,
            take_again=self.ownership.again,
            **self._shared(),
        )
        self.outbox = Outbox(
            folder=parts.state.outbox,
            api=parts.api,
            errands=self.to_api,
            mark=self._mark,
            on_answer=self.endings.answered,
            failpoints=parts.failpoints,
        )
        self.endings.outbox = self.outbox

    def _join_renewal(self) -> None:
        parts = self._parts
        fences = Fences(
            worker=parts.row.worker,
            attempts=self.attempts,
            claims=parts.claims,
            api=parts.api,
            supervisor=self.supervisor,
            to_api=self.to_api,
        )
        self.renewer = Renewer(
            claims=parts.claims,
            roster=parts.roster,
            row=parts.row,
            attempts=self.attempts,
            standing=self.standing,
            watcher=self.supervisor,
            on_fenced=fences.fenced,
            on_cancelled=fences.cancelled,
            on_answer=self._answered,
            take_again=self.ownership.again,
        )

    def _join_launch(self) -> None:
        parts = self._parts
        self.launch = Launch(
            worker=parts.row.worker,
            nonce=parts.row.nonce,
            mark=self._mark,
            deployer=parts.deployer,
            orders=parts.orders,
            standing=self.standing,
            runs=parts.state.runs,
            handback=self.handback,
            logbook=self.logbook,
            on_started=self._run_started,
            on_failed=self.endings.ended,
            patience=Patience(hurried=lambda: self.attempts.closed),
            **self._shared(),
        )

    # -- the room of the slots

    def accepting(self) -> bool:
        """Whether any message may be fetched now."""
        return self.standing.accepting

    def occupying(self) -> set[str]:
        """Every run that takes up a slot."""
        return self.attempts.occupying()

    def routes(self) -> Iterable[Route]:
        """What is to be served."""
        return self.standing.routes()

    def serving(self, routes: frozenset[Route]) -> None:
        """What is served; the roster says so at once, since only these count when slots are counted."""
        if self.slots.stopping:
            routes = frozenset()  # also where Celery connects once more on its way out
        if routes != self.standing.served:
            self.standing.served = routes
            self.renewer.nudge()

    def refused(self, reason: str) -> None:
        """A message was refused."""
        logger.warning("message refused", extra={"reason": reason})
        self.meters.refused.inc()
        self.to_ledger.post(lambda: self._parts.count_refused(reason))

    # -- what the parts tell each other

    def _changed(self) -> None:
        self.slots.bell.ring()

    def _arrived(self, sent_at: float) -> None:
        self.meters.queue_wait.observe(max(0.0, time.time() - sent_at))

    def _handed_back(self, reason: str) -> None:
        self.meters.handed_back.labels(reason=reason).inc()

    def _run_started(self, key: str) -> None:
        self.meters.started.inc()
        self.supervisor.watch(key)
        attempt = self.attempts.get(key)
        if attempt is not None:
            self.meters.start_seconds.observe(time.monotonic() - attempt.since)
            self.meters.lateness.observe(max(0.0, time.time() - attempt.held.due.timestamp()))
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
        self.meters.finished.labels(outcome=outcome).inc()
        if attempt is not None and attempt.exit is not None and attempt.exit.started_at and attempt.exit.ended_at:
            self.meters.duration.observe(max(0.0, attempt.exit.ended_at - attempt.exit.started_at))

    def _answered(self) -> None:
        self.slots.bell.ring()
        empty = not self.attempts.all() and self.slots.in_use() == 0
        if self.standing.wanted == "draining" and empty and self.standing.ready:
            logger.info("drained, this worker ends", extra={"worker": self._parts.row.worker})
            if self.stopping.number is None:
                self.stopping.request()

    # -- life

    def run(self) -> int:
        """Sign on is done; adopt, serve, stop."""
        for part in (self.to_ledger, self.to_api, self.supervisor):
            part.start()
        if self.output is not None:
            self.output.start()
        self._adopt()
        self.renewer.start()
        self.renewer.nudge()
        self.pruner.start()
        self.standing.ready = True
        code = self._serve()
        self.farewell.say()
        return code

    def _siblings(self) -> Siblings:
        parts = self._parts
        return Siblings(
            own=parts.state,
            fleet=parts.settings.fleet,
            api=parts.api.address,
            scopes=scopes_of(parts.row.offer),
            take_reports=self.outbox.take_over,
            may_live=self._may_live,
        )

    def _may_live(self, last: Mapping[str, Any]) -> bool:
        """A worker that no lock proves dead: whether the roster has it as alive, or does not answer."""
        try:
            rows = self._parts.roster.rows()
        except LedgerError:
            return True
        return any(row.worker == last.get("worker") and row.nonce == last.get("nonce") and row.live for row in rows)

    def _adopt(self) -> None:
        folders = self._siblings().take_over()
        reports = {report.key for report in self.outbox.resend()}
        adoption = Adoption(
            worker=self._parts.row.worker,
            claims=self._parts.claims,
            ownership=self.ownership,
            deployer=self._parts.deployer,
            attempts=self.attempts,
            handback=self.handback,
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
