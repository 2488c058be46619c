"""Client: the `ApiClient` of a Prefect 3 server or Prefect Cloud, over REST."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

from flowfleet.api import traits
from flowfleet.api.client import (
    Answer,
    DueRuns,
    Job,
    LogLine,
    Mark,
    Place,
    Rival,
    RunState,
    ServerInfo,
    StateType,
    UnfinishedRun,
    UnfitRun,
    Verdict,
)
from flowfleet.api.prefect3.backlog import Backlog
from flowfleet.api.prefect3.engine import EngineSettings, engine_command
from flowfleet.api.prefect3.jobs import Jobs
from flowfleet.api.prefect3.places import Places
from flowfleet.api.prefect3.pools import Pools
from flowfleet.api.prefect3.states import state_of
from flowfleet.api.prefect3.writes import Writes, mark_message, mark_prefix
from flowfleet.api.transport.reading import Json, instant, iso, reading, rows
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import FlowRun, Offer, Route

logger = logging.getLogger(__name__)

#: types of states in which a run of ours may still have a process, and names of those in which it waits inside one
_UNFINISHED = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
_IN_PROCESS = ("AwaitingRetry",)
_PAGE = 200
_NOBODY = "00000000-0000-4000-8000-000000000000"


class Prefect3:
    """The client of one Prefect 3 API; its facts about pools and deployments are at most 30 s old."""

    backend = "prefect3"
    traits = traits.of(backend)

    def __init__(
        self,
        session: Session,
        *,
        settings: Callable[[], Mapping[str, str]] | Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        worker: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`settings` are the PREFECT_* settings that engines get, `worker` is the worker's name that they show."""
        self._session = session
        self.address = session.address.shown
        self._engine = EngineSettings(
            settings=settings if callable(settings) else lambda: settings or {}, worker=worker
        )
        self._claims_in_bulk = False
        self._pools = Pools(session, clock)
        self._jobs = Jobs(session, self._pools, environ or {}, clock)
        self._backlog = Backlog(session, self._pools, now)
        self._writes = Writes(session, clock)
        self._places = Places(session)

    # who answers

    @property
    def key_refused(self) -> bool:
        return self._session.key_refused

    def renew(self) -> bool:
        return self._session.renew()

    def probe(self) -> ServerInfo:
        # ask for the version, and whether claims can be made in bulk
        where, reader = self._session.address.shown, self._session.reader
        try:
            version = self._session.get("/admin/version", tries=ASKED_TRIES)
        except ResponseRefused as refused:
            answers = f"it answers {refused.status} to /admin/version"
            raise ApiRejected(f"{where} is not a Prefect 3 API: {answers}{reader.hint()}") from refused
        if not isinstance(version, str):
            raise ApiRejected(f"{where} is not a Prefect 3 API: it tells no version{reader.hint()}")
        if not self._claims_in_bulk:
            self._prove_bulk(version)
        reader.proven.set()
        return ServerInfo(backend=self.backend, version=version, skew_seconds=self._session.skew_seconds)

    def _prove_bulk(self, version: str) -> None:
        nothing = {"flow_runs": {"id": {"any_": [_NOBODY]}}, "state": {"type": "SCHEDULED"}}
        try:
            self._session.post("/flow_runs/bulk_set_state", nothing)
        except ResponseRefused as refused:
            raise ApiRejected(
                f"the Prefect server at {self._session.address.shown} has version {version}, "
                "which cannot claim runs in bulk (flow_runs/bulk_set_state), upgrade the server to the newest Prefect 3"
            ) from refused
        self._claims_in_bulk = True

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        with reading("for a pool"):
            resolved = self._pools.resolve(offer, create=create)
        if resolved.pool_ids:
            self._session.reader.proven.set()  # workers only ask for their pools, and never call `probe`
        return resolved

    def routes(self, offer: Offer) -> list[Route]:
        with reading("for the queues of a pool"):
            return self._pools.routes(offer)

    # listing and claiming

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        with reading("for what is due"):
            return self._backlog.due(offers, within_seconds=within_seconds, limit=limit)

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        with reading("for what is due"):
            return self._backlog.count_due(offers)

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> dict[str, Answer]:
        return self._writes.claim(runs, call, mark)

    def settle(self, run_id: str, call: str) -> Answer:
        return self._writes.settle(run_id, call)

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        return self._writes.hand_back(run_id, call, due, mark, reason, never_began=never_began)

    def unfinished(self, mark: Mark) -> list[UnfinishedRun]:
        # Runs of whichever pool: a pool that nobody offers any more may still have some.
        # The infrastructure mark cannot be asked for, so all unfinished runs of the server are looked at. Pages go by
        # the ids that were seen, not by an offset, which a run that ends meanwhile would shift.
        seen: list[str] = []
        ours: list[UnfinishedRun] = []
        while True:
            with reading("for unfinished runs"):
                page = self._unfinished_page(seen)
                seen += [str(run["id"]) for run in page]
                ours += [item for item in (_unfinished(run, mark) for run in page) if item is not None]
            if len(page) < _PAGE:
                return ours

    def _unfinished_page(self, seen: Sequence[str]) -> Sequence[Json]:
        flow_runs: dict[str, Any] = {
            "state": {
                "operator": "or_",
                "type": {"any_": [kind.value for kind in _UNFINISHED]},
                "name": {"any_": list(_IN_PROCESS)},
            }
        }
        if seen:
            flow_runs["id"] = {"not_any_": list(seen)}
        return rows(self._session.post("/flow_runs/filter", {"flow_runs": flow_runs, "limit": _PAGE}))

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        # none: a run names its own pool, and `status` shows what waits there
        del offers
        return []

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        # nothing at Prefect 3 puts a running run back
        del run_id, claim, mark
        return Answer(verdict=Verdict.REFUSED, reason="Prefect 3 puts no run back that has a process")

    def rivals(self, offers: Sequence[Offer], mark: Mark) -> list[Rival]:
        # none: the server's own locks keep workers of one pool apart
        del offers, mark
        return []

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        # a worker's heartbeat, which the pool's page shows
        self._session.post(
            f"/work_pools/{quote(pool, safe='')}/workers/heartbeat",
            {"name": name, "heartbeat_interval_seconds": max(1, round(interval_seconds))},
        )

    def offline(self, pool: str, name: str) -> None:
        try:
            self._session.call("DELETE", f"/work_pools/{quote(pool, safe='')}/workers/{quote(name, safe='')}")
        except ResponseRefused as refused:
            if refused.status != HTTPStatus.NOT_FOUND:
                raise

    # taking and ending

    def job(self, run_id: str) -> Job:
        run = self._writes.read(run_id)
        with reading("for what a run is"):
            return self.equip(self._jobs.job(run))

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        return self._writes.launching(run_id, call, claim, mark)

    def started(self, run_id: str, mark: Mark, pid: int) -> None:
        worker = quote(mark.worker or "", safe="@")
        self._writes.set_infrastructure(run_id, f"{mark_prefix(mark)}{worker}:{pid}")

    def started_line(self, mark: Mark, pid: int) -> str:
        return f"Submitted for execution by {mark.worker}: PID {pid}."

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        return {run_id: state_of(run) for run_id, run in self._writes.read_many(run_ids).items()}

    def place(self, run_id: str) -> Place | None:
        # pool and queue of the run, with their pauses and limits
        with reading("for where a run waits"):
            return self._places.place(run_id)

    def report(self, run_id: str, kind: StateType, message: str, mark: Mark) -> Answer:
        # the sentence stands alone, without our mark, since people read it in the UI
        del mark
        return self._writes.report(run_id, kind, message)

    def log(self, lines: Sequence[LogLine]) -> None:
        body = [
            {
                "name": "prefect.flow_runs.worker",
                "level": line.level,
                "message": line.message,
                "timestamp": iso(line.at),
                "flow_run_id": line.run_id,
            }
            for line in lines
        ]
        if body:
            self._session.post("/logs/", body)

    # the engine: the child process of a run

    def engine_command(self, python: str, job: Job, prefect: str) -> tuple[str, ...]:
        # the same for any version of prefect
        del job, prefect
        return engine_command(python)

    def equip(self, job: Job) -> Job:
        return self._engine.equip(job, url=self._session.address.url)


def _unfinished(run: Json, mark: Mark) -> UnfinishedRun | None:
    state = state_of(run)
    prefix = mark_prefix(mark)
    infrastructure = state.infrastructure or ""
    launched = infrastructure.startswith(prefix)
    # only the state tells whose claim it is: the mark may be from an earlier attempt, and another fleet has the run now
    claimed = state.message.startswith(mark_message(mark, ""))
    if not (claimed if state.kind is StateType.PENDING else launched):
        return None
    if state.kind in (StateType.SCHEDULED, StateType.PAUSED) and not state.held:
        return None  # the run went back to the queue, or is suspended without a process, and its old mark stayed
    route = None
    if run.get("work_pool_id") and run.get("work_queue_name"):
        route = Route("prefect3", str(run["work_pool_id"]), str(run["work_queue_name"]))
    worker = None
    if launched:
        worker = unquote(infrastructure.removeprefix(prefix).rpartition(":")[0]) or None
    return UnfinishedRun(
        state=state,
        route=route,
        due=state.scheduled or instant(run.get("expected_start_time")),
        worker=worker,
    )
