"""Client: the `ApiClient` of a Prefect 1 API (Prefect Server, or Cloud of that time), over GraphQL."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

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
)
from flowfleet.api.prefect1.agents import AgentRegistry
from flowfleet.api.prefect1.backlog import Backlog
from flowfleet.api.prefect1.engine import EngineSettings, engine_command
from flowfleet.api.prefect1.graphql import GraphQL, QueryRejected
from flowfleet.api.prefect1.jobs import JOB_FIELDS, job_of, unfit
from flowfleet.api.prefect1.runs import Runs, literal
from flowfleet.api.prefect1.states import SUBMITTED, Run, Stamp, plain
from flowfleet.api.prefect1.writes import Writes
from flowfleet.api.transport.reading import iso, reading, rows
from flowfleet.api.transport.session import ASKED_TRIES
from flowfleet.errors import ApiRejected, ApiUnavailable
from flowfleet.flow_run import FlowRun, Offer, Route

logger = logging.getLogger(__name__)

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
    ) -> None:
        """`labels`, `deploy`, `log_level` and `cloud_logs` are what a worker gives to its engines."""
        self.graphql = graphql
        self.address = graphql.address.shown
        #: the tenants of the offers that this client has listed runs for
        self._tenants: set[str] = set()
        self._server_backend = server_backend
        self._deploy = deploy
        self._agent_name = agent_name
        self._engine = EngineSettings(
            server_backend=server_backend,
            labels=labels,
            log_level=log_level,
            cloud_logs=cloud_logs,
        )

        def server_now() -> datetime:
            return now() + timedelta(seconds=graphql.skew_seconds)

        self._now = server_now
        self._runs = Runs(graphql)
        self._agents = AgentRegistry(graphql, name=agent_name, config_id=agent_config_id, clock=clock)
        self._backlog = Backlog(self._runs, self._agents, server_now)
        self._writes = Writes(graphql, self._runs, clock, server_now)

    # who answers

    @property
    def key_refused(self) -> bool:
        return self.graphql.key_refused

    def renew(self) -> bool:
        return self.graphql.renew()

    def probe(self) -> ServerInfo:
        # the question that Prefect 1's own agent asks before it begins
        self._asked("query { hello }", "hello")
        return ServerInfo(backend=self.backend, version="1.x", skew_seconds=self.graphql.skew_seconds)

    def _asked(self, document: str, field: str) -> Any:
        """The answer to a question at the start; an error in it may pass, so it raises `ApiUnavailable`: ask again."""
        try:
            reply = self.graphql.ask(document, tries=ASKED_TRIES)
        except QueryRejected as rejected:
            raise ApiUnavailable(str(rejected), answered=True) from rejected
        error = reply.error_of(field)
        if error is not None or field not in reply.data:
            why = error.message if error else "nothing"
            raise ApiUnavailable(f"the Prefect API at {self.address} answers {field} with: {why}", answered=True)
        return reply.data[field]

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        # only the tenant has to be filled in
        del create
        return Offer(
            backend=self.backend, labels=tuple(sorted(set(offer.labels))), tenant=self._tenant_id(), deploy=offer.deploy
        )

    def _tenant_id(self) -> str:
        return self.graphql.tenant_id(self._own_tenant if self._server_backend == "cloud" else self._first_tenant)

    def _own_tenant(self) -> str:
        answer = self._runs.ask("query { auth_info { tenant_id } }", "auth_info", tries=ASKED_TRIES)
        tenant = answer.get("tenant_id") if isinstance(answer, Mapping) else None
        if not tenant:
            raise ApiRejected(f"the Prefect API at {self.address} tells no tenant for our key, give it by --tenant-id")
        return str(tenant)

    def _first_tenant(self) -> str:
        answer = self._runs.ask("query { tenant { id } }", "tenant", tries=ASKED_TRIES)
        with reading("for its tenants"):
            found = [str(row["id"]) for row in rows(answer)]
        if not found:
            raise ApiRejected(
                f"the Prefect Server at {self.address} has no tenant, create one by `prefect server create-tenant`"
            )
        return found[0]

    def check_tenant(self) -> None:
        """Raises `ApiRejected` when the tenant that was given does not exist."""
        tenant = self._tenant_id()
        where = literal({"id": {"_eq": tenant}})
        if not self._asked(f"query {{ tenant(where: {where}) {{ id }} }}", "tenant"):
            raise ApiRejected(f"the Prefect API at {self.address} has no tenant {tenant}, correct --tenant-id")

    def agent_config(self, config_id: str) -> dict[str, Any]:
        """The settings that the API keeps for agents under this id."""
        where = literal({"id": {"_eq": config_id}})
        answer = self._runs.ask(
            f"query {{ agent_config(where: {where}) {{ settings }} }}", "agent_config", tries=ASKED_TRIES
        )
        with reading("for an agent config"):
            found = [dict(row["settings"] or {}) for row in rows(answer)]
        if not found:
            raise ApiRejected(
                f"the Prefect API at {self.address} has no agent config {config_id}, correct --agent-config-id"
            )
        return found[0]

    def routes(self, offer: Offer) -> list[Route]:
        # none beforehand: only the listed runs tell which label sets there are, and the poller keeps those
        del offer
        return []

    # listing and claiming

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        # the server sets the limit: it lists at most 25 runs for each label set
        del limit
        found: list[DueRuns] = []
        for tenant, own in self._by_tenant(offers).items():
            found += self._backlog.due(tenant, own, within_seconds=within_seconds, noted=self._writes.note)
        return found

    def _by_tenant(self, offers: Sequence[Offer]) -> dict[str, list[Offer]]:
        """The offers by their workers' tenants: a server that was set up anew has another for workers started since."""
        found: dict[str, list[Offer]] = {}
        for offer in offers:
            found.setdefault(offer.tenant or self._tenant_id(), []).append(offer)
        self._tenants.update(found)
        return found

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        # counted without asking as an agent: what nobody serves must not look served
        return [due for tenant, own in self._by_tenant(offers).items() for due in self._backlog.count(tenant, own)]

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        return [one for tenant in self._by_tenant(offers) for one in self._backlog.unserved(tenant)]

    def rivals(self, offers: Sequence[Offer], mark: Mark) -> list[Rival]:
        # only agents that have asked for runs lately count
        del mark
        return [one for tenant, own in self._by_tenant(offers).items() for one in self._backlog.rivals(tenant, own)]

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> dict[str, Answer]:
        return self._writes.claim(runs, call, mark, self._agents.any_id())

    def settle(self, run_id: str, call: str) -> Answer:
        return self._writes.settle(run_id, call)

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        # there is no Launching: a run that its engine has begun is Running and stays
        del never_began
        return self._writes.hand_back(run_id, call, due, mark, reason)

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        return self._writes.reinstate(run_id, claim, mark)

    def unfinished(self, mark: Mark) -> list[UnfinishedRun]:
        # runs whose last claim was this fleet's, and late retries whose task runs are Submitted by this fleet
        found: list[UnfinishedRun] = []
        last = ""
        while True:
            where: dict[str, Any] = {
                "tenant_id": {"_in": sorted({*self._tenants, self._tenant_id()})},
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
            state = run.as_running()
        return UnfinishedRun(state=state, route=self._route(run), due=run.start_time or run.scheduled)

    def _silent(self, run: Run) -> bool:
        return run.heartbeat is not None and self._now() - run.heartbeat > HEARTBEAT_GONE

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        # nothing to do: an agent shows as alive by asking for runs
        pass

    def offline(self, pool: str, name: str) -> None:
        # nothing to do: an agent that no longer asks counts as gone after a minute
        pass

    # taking and ending

    def job(self, run_id: str) -> Job:
        run = self._writes.read(run_id, JOB_FIELDS)
        with reading("for what a run is"):
            job = job_of(run, self._deploy)
        self._writes.note([run])
        return self.equip(job)

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        # there is no Launching: only ask whether the run is still Submitted by our call
        del claim, mark
        return self._writes.launching(run_id, call)

    def started(self, run_id: str, mark: Mark, pid: int) -> None:
        # nothing to do: only the line on the run's log page tells, and the worker writes that
        pass

    def started_line(self, mark: Mark, pid: int) -> str:
        # the words of Prefect 1's own agent
        del mark
        return f"Submitted for execution: PID: {pid}"

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        return {run_id: run.to_state() for run_id, run in self._runs.many(run_ids).items()}

    def place(self, run_id: str) -> Place | None:
        # the run's labels decide, and whether a worker like ours can start the run at all
        run = self._runs.one(run_id, JOB_FIELDS)
        why = unfit(run.row, self._deploy)
        limit = None if why is None else f"no worker here can start it: {why[:1].lower()}{why[1:]}"
        return Place(route=self._route(run), pool="", limit=limit)

    def _route(self, run: Run) -> Route:
        return Route.of_labels(str(run.row.get("tenant_id") or self._tenant_id()), run.labels)

    def report(self, run_id: str, kind: StateType, message: str, mark: Mark) -> Answer:
        return self._writes.report(run_id, kind, message, mark)

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
            raise ApiRejected(f"the Prefect API at {self.address} takes no log lines: {error.message}")

    # the engine: the child process of a run

    def engine_command(self, python: str, job: Job, prefect: str) -> tuple[str, ...]:
        # `prefect execute flow-run`
        return engine_command(python, job, prefect)

    def equip(self, job: Job) -> Job:
        return self._engine.equip(job, url=self.graphql.engine_url, key=self.graphql.key, tenant=self.graphql.tenant)
