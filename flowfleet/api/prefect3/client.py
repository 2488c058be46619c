"""Client: the `ApiClient` of a Prefect 3 server or Prefect Cloud, over REST."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from flowfleet.api import traits
from flowfleet.api.backlog import BacklogApi
from flowfleet.api.client import (
    ClaimApi,
    EndApi,
    JobApi,
    LogLine,
    Mark,
    OrderApi,
    StateType,
    UnfinishedRun,
    unguarded,
)
from flowfleet.api.life import LifeApi
from flowfleet.api.prefect3.backlog import Backlog
from flowfleet.api.prefect3.engine import EngineSettings
from flowfleet.api.prefect3.fence import Fence
from flowfleet.api.prefect3.jobs import Jobs
from flowfleet.api.prefect3.life import Life
from flowfleet.api.prefect3.orders import Orders
from flowfleet.api.prefect3.pools import Pools
from flowfleet.api.prefect3.states import state_of
from flowfleet.api.prefect3.writes import Writes, mark_message, mark_prefix
from flowfleet.api.presence import PresenceApi
from flowfleet.api.transport.reading import Json, instant, iso, reading, rows
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import Route

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
        settings: Callable[[], Mapping[str, str]] = dict,
        environ: Mapping[str, str] | None = None,
        worker: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        between: Callable[[], object] = unguarded,
    ) -> None:
        """`settings` gives the PREFECT_* settings that engines get, `worker` is the worker's name that they show.

        `between` is called between reading a run and writing its end or its way back.
        """
        self.session = session
        self.address = session.address.shown
        self._claims_in_bulk = False
        pools, writes = Pools(session, clock), Writes(session, Fence(session, clock), between)
        engine = EngineSettings(settings=settings, worker=worker)
        self.presence: PresenceApi = pools
        self.backlog: BacklogApi = Backlog(session, pools, lambda: now() + timedelta(seconds=session.skew_seconds))
        self.claims: ClaimApi = writes
        self.ends: EndApi = writes
        self.orders: OrderApi = Orders(session, writes)
        self.life: LifeApi = Life(session)
        self.jobs: JobApi = Jobs(session, pools, writes, engine=engine, environ=environ or {}, clock=clock)

    def probe(self) -> ServerInfo:
        # ask for the version, and whether claims can be made in bulk
        where, reader = self.session.address.shown, self.session.reader
        try:
            version = self.session.get("/admin/version", tries=ASKED_TRIES)
        except ResponseRefused as refused:
            answers = f"it answers {refused.status} to /admin/version"
            raise ApiRejected(f"{where} is not a Prefect 3 API: {answers}{reader.hint()}") from refused
        if not isinstance(version, str):
            raise ApiRejected(f"{where} is not a Prefect 3 API: it tells no version{reader.hint()}")
        if not self._claims_in_bulk:
            self._prove_bulk(version)
        reader.proven.set()
        return ServerInfo(backend=self.backend, version=version, skew_seconds=self.session.skew_seconds)

    def _prove_bulk(self, version: str) -> None:
        nothing = {"flow_runs": {"id": {"any_": [_NOBODY]}}, "state": {"type": "SCHEDULED"}}
        try:
            self.session.post("/flow_runs/bulk_set_state", nothing)
        except ResponseRefused as refused:
            raise ApiRejected(
                f"the Prefect server at {self.session.address.shown} has version {version}, "
                "which cannot claim runs in bulk (flow_runs/bulk_set_state): upgrade the server to the newest Prefect 3"
            ) from refused
        self._claims_in_bulk = True

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
        return rows(self.session.post("/flow_runs/filter", {"flow_runs": flow_runs, "limit": _PAGE}))

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
            self.session.post("/logs/", body)


def _unfinished(run: Json, mark: Mark) -> UnfinishedRun | None:
    state = state_of(run)
    prefix = mark_prefix(mark)
    infrastructure = state.infrastructure or ""
    launched = infrastructure.startswith(prefix)
    # only the state tells whose claim it is: the mark may be from an earlier attempt, and another fleet has the run now
    claimed = state.message.startswith(mark_message(mark, ""))
    if not (claimed if state.kind is StateType.PENDING else launched):
        return None
    if state.waits:
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
