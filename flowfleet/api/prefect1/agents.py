"""Agents: the fleet's entries in a Prefect 1 server's list of agents, and the runs that the server gives to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flowfleet.api.transport.reading import reading, rows
from flowfleet.errors import ApiRejected

if TYPE_CHECKING:
    from flowfleet.api.prefect1.graphql import GraphQL, Reply

logger = logging.getLogger(__name__)

#: the server lists at most so many runs to one agent: then more may wait (source: Prefect Server)
WINDOW = 25
#: an agent signs a request at least this often: one that has not asked for a minute counts as gone in the UI, and a
#: request can be signed by one agent only
STAMP_SECONDS = 45.0
#: the most agents whose runs are asked for in one request
_MOST = 20


@dataclass(frozen=True, order=True)
class RegisteredAgent:
    """One entry in the server's list of agents: a label set of live workers, and the type, by how these start runs."""

    labels: tuple[str, ...]
    type: str = "LocalAgent"


@dataclass
class AgentRegistry:
    """The fleet's agents at the server: each label set is registered once, and one request asks for the runs of all."""

    graphql: GraphQL
    name: str
    config_id: str | None = None
    clock: Callable[[], float] = time.monotonic
    _ids: dict[tuple[str, RegisteredAgent], str] = field(default_factory=dict, init=False)
    _stamped: dict[RegisteredAgent, float] = field(default_factory=dict, init=False)

    def ids(self) -> frozenset[str]:
        """The server's ids of our agents."""
        return frozenset(self._ids.values())

    def any_id(self) -> str | None:
        """The id of any of our agents, to sign a claim with: the server notes who has a run. None without agents."""
        return next(iter(self._ids.values()), None)

    def ready(
        self, tenant: str, agents: Sequence[RegisteredAgent], before: datetime
    ) -> dict[RegisteredAgent, tuple[str, ...]]:
        """The ids of the runs that are due before the given time, by agent.

        An agent whose runs the server refuses to list is left out, with a line in our log. Raises `ApiRejected` when
        the server lists the runs of no agent in a request, or refuses to register an agent.
        """
        ids = {agent: self._registered(tenant, agent) for agent in agents}
        found: dict[RegisteredAgent, tuple[str, ...]] = {}
        waiting = sorted(ids, key=lambda agent: self._stamped.get(agent, float("-inf")))
        while waiting:
            # the agent that was silent for longest signs the request; the others sign one of their own only when they
            # would count as gone
            found |= self._ask(tenant, waiting[:_MOST], ids[waiting[0]], before)
            self._stamped[waiting[0]] = now = self.clock()
            waiting = [
                agent
                for place, agent in enumerate(waiting)
                if place >= _MOST or (place > 0 and now - self._stamped.get(agent, float("-inf")) >= STAMP_SECONDS)
            ]
        return found

    def _ask(
        self, tenant: str, agents: Sequence[RegisteredAgent], signed: str, before: datetime
    ) -> dict[RegisteredAgent, tuple[str, ...]]:
        names = [f"q{number}" for number in range(len(agents))]
        head = ", ".join(f"${name}: get_runs_in_queue_input!" for name in names)
        body = " ".join(f"{name}: get_runs_in_queue(input: ${name}) {{ flow_run_ids }}" for name in names)
        inputs = {
            name: {"before": before.isoformat(), "labels": list(agent.labels), "tenant_id": tenant}
            for name, agent in zip(names, agents, strict=True)
        }
        reply = self.graphql.ask(f"mutation({head}) {{ {body} }}", inputs, agent=signed)
        queues = {agent: self._queue(reply, name, agent) for name, agent in zip(names, agents, strict=True)}
        found = {agent: queue for agent, queue in queues.items() if queue is not None}
        if not found:
            why = next((error.message for error in reply.errors), "no reason given")
            raise ApiRejected(f"{self.graphql.session.address.api} lists no runs: {why}")
        return found

    def _queue(self, reply: Reply, name: str, agent: RegisteredAgent) -> tuple[str, ...] | None:
        error = reply.error_of(name)
        if error is not None:
            logger.warning("due runs cannot be listed", extra={"labels": list(agent.labels), "error": error.message})
            return None
        with reading("for due runs"):
            return tuple(map(str, rows(reply.data[name]["flow_run_ids"])))

    def _registered(self, tenant: str, agent: RegisteredAgent) -> str:
        known = self._ids.get((tenant, agent))
        if known is not None:
            return known
        logger.info(
            "Registering agent...",
            extra={"agent": self.name, "type": agent.type, "labels": list(agent.labels), "config_id": self.config_id},
        )
        document = "mutation($input: register_agent_input!) { register_agent(input: $input) { id } }"
        described: dict[str, Any] = {
            "type": agent.type,
            "name": self.name,
            "labels": list(agent.labels),
            "tenant_id": tenant,
            "agent_config_id": self.config_id,
        }
        reply = self.graphql.ask(document, {"input": described})
        error = reply.error_of("register_agent")
        refusal = f"{self.graphql.session.address.api} registers no agent {self.name!r} for us"
        if error is not None:
            raise ApiRejected(f"{refusal}: {error.message}")
        with reading("for an agent"):
            found = str(reply.data["register_agent"]["id"] or "")
        if not found:
            raise ApiRejected(f"{refusal}: it gives no id")
        logger.info("Registration successful!", extra={"agent": self.name, "agent_id": found})
        self._ids[tenant, agent] = found
        return found
