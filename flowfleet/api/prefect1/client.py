"""Client: the `ApiClient` of a Prefect 1 API (Prefect Server, or Cloud of that time), over GraphQL."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

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
from flowfleet.api.prefect1.agents import AgentRegistry
from flowfleet.api.prefect1.backlog import Backlog
from flowfleet.api.prefect1.engine import EngineSettings
from flowfleet.api.prefect1.fence import Fence
from flowfleet.api.prefect1.graphql import GraphQL
from flowfleet.api.prefect1.jobs import Jobs
from flowfleet.api.prefect1.life import Life
from flowfleet.api.prefect1.orders import Orders
from flowfleet.api.prefect1.runs import Runs, literal
from flowfleet.api.prefect1.states import SUBMITTED, Run, Stamp, plain
from flowfleet.api.prefect1.tenants import Tenants
from flowfleet.api.prefect1.writes import Writes
from flowfleet.api.presence import PresenceApi
from flowfleet.api.transport.reading import iso, reading, rows
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.api.transport.session import ASKED_TRIES
from flowfleet.errors import ApiRejected

#: how long after its last heartbeat an engine counts as gone; engines send them much more often (source: prefect 1.4.1)
HEARTBEAT_GONE = timedelta(seconds=180)
_PAGE = 100
_LEVELS = ((40, "ERROR"), (30, "WARNING"), (20, "INFO"), (0, "DEBUG"))


class Prefect1:
    """The client of one Prefect 1 API, for one tenant."""

    backend = "prefect1"
    traits = traits.of(backend)

    def __init__(
        self,
        graphql: GraphQL,
        *,
        agent_name: str = "agent",
        agent_config_id: str | None = None,
        server_backend: str = "server",
        labels: Sequence[str] = (),
        deploy: str = "process",
        log_level: str = "INFO",
        cloud_logs: bool = True,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        between: Callable[[], object] = unguarded,
    ) -> None:
        """`labels`, `deploy`, `log_level` and `cloud_logs` are what a worker gives to its engines.

        `between` is called between reading a run and writing its end or its way back.
        """
        self.graphql, self.session = graphql, graphql.session
        self.address = self.session.address.shown
        self._agent_name = agent_name
        #: the server's time
        self._now: Callable[[], datetime] = lambda: now() + timedelta(seconds=self.session.skew_seconds)
        self._runs = Runs(graphql)
        self.tenants = Tenants(graphql, self._runs, server_backend=server_backend)
        agents = AgentRegistry(graphql, name=agent_name, config_id=agent_config_id, clock=clock)
        writes = Writes(self._runs, Fence(graphql, self._runs), agents.any_id, clock, self._now, between)
        self.presence: PresenceApi = self.tenants
        self.backlog: BacklogApi = Backlog(
            self._runs, agents, self.tenants, deploy=deploy, noted=writes.note, now=self._now
        )
        self.claims: ClaimApi = writes
        self.ends: EndApi = writes
        self.orders: OrderApi = Orders(self._runs, writes, self.tenants)
        self.life: LifeApi = Life(self._runs)
        engine = EngineSettings(
            server_backend=server_backend, labels=labels, log_level=log_level, cloud_logs=cloud_logs
        )
        self.jobs: JobApi = Jobs(graphql=graphql, writes=writes, engine=engine, deploy=deploy)

    def probe(self) -> ServerInfo:
        # the question that Prefect 1's own agent asks before it begins
        self._runs.ask_first("query { hello }", "hello")
        return ServerInfo(backend=self.backend, version="1.x", skew_seconds=self.session.skew_seconds)

    def agent_config(self, config_id: str) -> dict[str, Any]:
        """The settings that the API keeps for agents under this id."""
        answer = self._runs.select("agent_config", {"id": {"_eq": config_id}}, "settings", tries=ASKED_TRIES)
        with reading("for an agent config"):
            found = [dict(row["settings"] or {}) for row in rows(answer)]
        if not found:
            api = self.session.address.api
            raise ApiRejected(f"{api} has no agent config {config_id}: correct --agent-config-id")
        return found[0]

    def unfinished(self, mark: Mark) -> list[UnfinishedRun]:
        # runs whose last claim was this fleet's, and late retries whose task runs are Submitted by this fleet
        found: list[UnfinishedRun] = []
        last = ""
        while True:
            where: dict[str, Any] = {
                "tenant_id": {"_in": self.tenants.all()},
                "state": {"_in": [SUBMITTED, "Running", "Cancelling"]},
            }
            if last:
                where["id"] = {"_gt": last}
            claim = literal({"state": {"_eq": SUBMITTED}})
            # Running tasks first: one of them says that the run's process has come
            tasks = literal({"state": {"_in": [SUBMITTED, "Running"]}})
            extra = (
                f"task_runs(where: {tasks}, order_by: {{state: asc}}, limit: 20) "
                "{ id version state serialized_state } "
                f"states(where: {claim}, order_by: {{version: desc}}, limit: 1) {{ serialized_state }}"
            )
            page = self._runs.where(where, extra, order="{id: asc}", limit=_PAGE)
            found += [item for item in (self._unfinished(run, mark) for run in page) if item is not None]
            if len(page) < _PAGE:
                return found
            last = page[-1].run_id

    def _unfinished(self, run: Run, mark: Mark) -> UnfinishedRun | None:
        claims = [Stamp.read(row.get("serialized_state") or {}) for row in run.row.get("states") or ()]
        stamp = run.stamp or next(iter(claims), None)
        if stamp is None or stamp.fleet != mark.fleet:
            return None
        state = run.to_state()
        if run.state == "Running" and state.kind is StateType.PENDING and not self._silent(run):
            # a late retry whose process may be at other tasks: only its heartbeat tells
            state = replace(state, kind=StateType.RUNNING, name=run.state)
        return UnfinishedRun(state=state, route=self.tenants.route(run), due=run.start_time or run.scheduled)

    def _silent(self, run: Run) -> bool:
        return run.heartbeat is not None and self._now() - run.heartbeat > HEARTBEAT_GONE

    def log(self, lines: Sequence[LogLine]) -> None:
        if not lines:
            return
        logs = [
            {
                "flow_run_id": line.run_id,
                "name": self._agent_name,
                "timestamp": iso(line.at),
                "level": next(name for number, name in _LEVELS if line.level >= number),
                "message": plain(line.message),
            }
            for line in lines
        ]
        document = "mutation($input: write_run_logs_input!) { write_run_logs(input: $input) { success } }"
        reply = self.graphql.ask(document, {"input": {"logs": logs}})
        error = reply.error_of("write_run_logs")
        if error is not None:
            raise ApiRejected(f"{self.session.address.api} takes no log lines: {error.message}")
