"""Backlog: the due runs of a Prefect 1 API, by route, and the other agents that would take them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flowfleet.api.backlog import DueRuns, Place, Rival, UnfitRun
from flowfleet.api.prefect1.agents import WINDOW, AgentRegistry, RegisteredAgent
from flowfleet.api.prefect1.jobs import JOB_FIELDS, unfit
from flowfleet.api.prefect1.runs import Runs, claimable, late_tasks
from flowfleet.api.prefect1.states import Run
from flowfleet.api.prefect1.tenants import Tenants
from flowfleet.api.transport.reading import instant, reading, rows
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.settings.values import fitting

#: how long a due task is left to its run's own process, which waits for the same moment (source: prefect 1.4.1)
LATE_SECONDS = 3.0
#: how long a run must be due before it counts as one that nobody takes
UNSERVED_SECONDS = 60.0
#: an agent that has not asked for runs for so long does not count
SEEN_SECONDS = 120.0
_MOST = 50
#: the most runs that one count reads
_COUNTED = 200
_TYPES = {"process": "LocalAgent", "docker": "DockerAgent"}


def agent_of(offer: Offer) -> RegisteredAgent:
    """The entry of workers with this offer in the server's list of agents."""
    return RegisteredAgent(labels=tuple(sorted(offer.labels)), type=_TYPES.get(offer.deploy, "LocalAgent"))


@dataclass(frozen=True)
class Backlog:
    """The due runs of a Prefect 1 API.

    A poll is one request for the run ids of all label sets, and one more for the facts of these runs, if there are any.
    """

    runs: Runs
    agents: AgentRegistry
    tenants: Tenants
    #: how our worker starts runs
    deploy: str
    #: gets the rows of listed runs
    noted: Callable[[Sequence[Run]], None]
    #: the server's time
    now: Callable[[], datetime]

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        # the server sets the limit: it lists at most 25 runs for each label set
        del limit
        within = timedelta(seconds=within_seconds)
        by_tenant = self.tenants.by_tenant(offers)
        return [due for tenant, own in by_tenant.items() for due in self._due(tenant, own, within)]

    def _due(self, tenant: str, offers: Sequence[Offer], within: timedelta) -> list[DueRuns]:
        """List what the API would hand out, by route (the labels of the runs), the earliest first."""
        now = self.now()
        queues = self.agents.ready(tenant, sorted({agent_of(offer) for offer in offers}), now + within)
        ids = {run_id for queue in queues.values() for run_id in queue}
        if not ids:
            return []
        late = now - timedelta(seconds=LATE_SECONDS)
        runs = self.runs.where(claimable(ids, late), late_tasks(late) + JOB_FIELDS)
        self.noted(runs)
        found = []
        for route, waiting in _by_route(tenant, runs).items():
            serving = [offer for offer in offers if offer.serves(route)]
            full = any(len(queues[agent]) >= WINDOW for offer in serving if (agent := agent_of(offer)) in queues)
            found.append(_due_runs(route, waiting, serving, now, at_least=full))
        return found

    def count_due(self, offers: Sequence[Offer], *, within_seconds: float = 0.0) -> list[DueRuns]:
        # counted without asking as an agent: what nobody serves must not look served
        within = timedelta(seconds=within_seconds)
        by_tenant = self.tenants.by_tenant(offers)
        return [due for tenant, own in by_tenant.items() for due in self._count(tenant, own, within)]

    def _count(self, tenant: str, offers: Sequence[Offer], within: timedelta) -> list[DueRuns]:
        now = self.now()
        waiting = self._waiting(tenant, now + within, limit=_COUNTED)
        found = []
        for route, runs in _by_route(tenant, waiting).items():
            if any(offer.serves(route) for offer in offers):
                ready = [moment for run in runs if (moment := run.start_time or run.scheduled or now) <= now]
                oldest = min(ready, default=None)
                full = len(waiting) >= _COUNTED
                found.append(DueRuns(route=route, runs=(), due=len(ready), at_least=full, oldest=oldest))
        return found

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        return [one for tenant in self.tenants.by_tenant(offers) for one in self._unserved(tenant)]

    def _unserved(self, tenant: str) -> list[UnfitRun]:
        """Runs that have been due for UNSERVED_SECONDS and whose labels no agent has that asks for runs."""
        runs = self._waiting(tenant, self.now() - timedelta(seconds=UNSERVED_SECONDS), limit=_MOST)
        if not runs:
            return []
        offers = [
            Offer(backend="prefect1", tenant=tenant, labels=tuple(agent.labels)) for _, agent in self._asking(tenant)
        ]
        return [
            UnfitRun(run_id=run.run_id, name=run.name, reason=_nobody(run))
            for run in runs
            if not any(offer.serves(Route.of_labels(tenant, run.labels)) for offer in offers)
        ]

    def rivals(self, offers: Sequence[Offer]) -> list[Rival]:
        # only agents that have asked for runs lately count
        return [one for tenant, own in self.tenants.by_tenant(offers).items() for one in self._rivals(tenant, own)]

    def _rivals(self, tenant: str, offers: Sequence[Offer]) -> list[Rival]:
        """Agents that would take runs of these offers and are not ours: they have another name, type or label set."""
        ours, known = {agent_of(offer) for offer in offers}, fitting(self.agents.name)
        return [
            agent
            for agent_id, agent in self._asking(tenant)
            if agent_id not in self.agents.ids()
            and not (known == fitting(agent.name) and RegisteredAgent(labels=agent.labels, type=agent.type) in ours)
            and any(_meet(agent.labels, offer.labels) for offer in offers)
        ]

    def place(self, run_id: str) -> Place | None:
        # the run's labels decide, and whether a worker like ours can start the run at all
        run = self.runs.many([run_id], JOB_FIELDS).get(run_id)
        if run is None:
            return None
        why = unfit(run.row, self.deploy)
        limit = None if why is None else f"no worker here can start it: {why[:1].lower()}{why[1:]}"
        return Place(route=self.tenants.route(run), pool="", limit=limit)

    def _waiting(self, tenant: str, before: datetime, *, limit: int) -> list[Run]:
        where = {
            "tenant_id": {"_eq": tenant},
            "state": {"_eq": "Scheduled"},
            "state_start_time": {"_lte": before},
        }
        return self.runs.where(where, JOB_FIELDS, order="{state_start_time: asc}", limit=limit)

    def _asking(self, tenant: str) -> list[tuple[str, Rival]]:
        since = self.now() - timedelta(seconds=SEEN_SECONDS)
        where: dict[str, Any] = {"tenant_id": {"_eq": tenant}, "last_queried": {"_gte": since}}
        answer = self.runs.select("agent", where, "id name type labels last_queried")
        with reading("for its agents"):
            return [
                (
                    str(row["id"]),
                    Rival(
                        name=str(row.get("name") or "agent"),
                        type=str(row.get("type") or "Agent"),
                        labels=tuple(sorted(map(str, row.get("labels") or ()))),
                        seen=instant(row.get("last_queried")),
                    ),
                )
                for row in rows(answer)
            ]


def _by_route(tenant: str, runs: Sequence[Run]) -> dict[Route, list[Run]]:
    by_route: dict[Route, list[Run]] = defaultdict(list)
    for run in runs:
        by_route[Route.of_labels(tenant, run.labels)].append(run)
    return by_route


def _due_runs(
    route: Route, waiting: Sequence[Run], serving: Sequence[Offer], now: datetime, *, at_least: bool
) -> DueRuns:
    able: list[FlowRun] = []
    not_able: list[UnfitRun] = []
    moments = {run.run_id: run.start_time or run.scheduled or now for run in waiting}
    for run in sorted(waiting, key=lambda run: moments[run.run_id]):
        reasons = [unfit(run.row, offer.deploy) for offer in serving]
        if reasons and all(reasons):
            not_able.append(UnfitRun(run_id=run.run_id, name=run.name, reason=str(reasons[0])))
        else:
            able.append(
                FlowRun(run_id=run.run_id, name=run.name, route=route, due=moments[run.run_id], state=run.state)
            )
    ready = [moment for moment in moments.values() if moment <= now]
    return DueRuns(
        route=route,
        runs=tuple(able),
        due=len(ready),
        at_least=at_least,
        oldest=min(ready, default=None),
        unfit=tuple(not_able),
    )


def _nobody(run: Run) -> str:
    if run.labels:
        return f"No agent that asks for runs has the labels {', '.join(run.labels)}, so nobody takes this run"
    return "This run has no labels, and every agent that asks for runs has some, so nobody takes it"


def _meet(one: Sequence[str], other: Sequence[str]) -> bool:
    return bool(set(one) & set(other)) or (not one and not other)
