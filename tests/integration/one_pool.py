"""OnePool: a fresh work pool at a real Prefect 3 server, seen by our client and by plain REST."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from flowfleet.api.client import Mark
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import FlowRun, Offer
from tests.integration.claiming import ago
from tests.rest import Rest

MARK = Mark(fleet="test", worker="worker@here")


class OnePool(Rest):
    """`client` is the ApiClient under test; what it inherits speaks plain REST."""

    def __init__(self, api_url: str) -> None:
        super().__init__(api_url)
        self.client = self.another_client()
        self.name = f"pool-{uuid.uuid4().hex[:8]}"
        self.offer = Offer(backend="prefect3")

    def another_client(self, **options: Any) -> Prefect3:
        return Prefect3(Session(Address(url=self.api_url)), **options)

    def open(self, *, work_queues: tuple[str, ...] = (), **fields: Any) -> OnePool:
        """Make the pool: as our client makes it, or with the given fields."""
        if fields:
            self.call("POST", "/work_pools/", {"name": self.name, **fields})
        offer = Offer(backend="prefect3", pools=(self.name,), work_queues=work_queues)
        self.offer = self.client.presence.resolve(offer, create=True)
        for queue in {*work_queues} - {"default"}:
            self.make_queue(self.name, queue)
        return self

    def deployment(self, **facts: Any) -> str:
        return self.deploy(f"flow-{uuid.uuid4().hex[:6]}", self.name, "flow.py:flow", "/tmp", **facts)

    def scheduled(self, deployment: str, due: datetime, **facts: Any) -> str:
        """A run with an exact due time."""
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        return str(self.call("POST", f"/deployments/{deployment}/create_flow_run", {"state": state, **facts})["id"])

    def set_state(self, run_id: str, kind: str, name: str | None = None, **details: Any) -> dict[str, Any]:
        """What an engine or a user writes."""
        state = {"type": kind, "name": name, "state_details": details}
        return dict(self.call("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": False}))

    def due(self, within: float = 10, limit: int = 200) -> list[FlowRun]:
        found = self.client.backlog.due([self.offer], within_seconds=within, limit=limit)
        return [run for each in found for run in each.runs]

    def taken(self, deployment: str) -> tuple[str, str]:
        """A run that we have claimed, and the call."""
        run_id = self.scheduled(deployment, ago(2))
        return run_id, self.claimed(run_id)

    def claimed(self, run_id: str) -> str:
        """Claim the run; gives the id of the call."""
        call = str(uuid.uuid4())
        (run,) = [run for run in self.due(within=100_000) if run.run_id == run_id]
        answer = self.client.claims.claim([run], call, MARK)[run_id]
        assert answer.verdict == "accepted", answer
        return call
