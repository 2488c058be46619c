"""OneServer: a local Prefect 1 API and our client of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from flowfleet.api.client import Mark, Verdict
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import FlowRun, Offer
from tests.prefect1_api import Faults, Prefect1Api

MARK = Mark(fleet="test")


def ago(seconds: float) -> datetime:
    """So long ago, or ahead of now."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


class OneServer:
    """With one flow; `strict` has Cloud's locks, else it is as Server is."""

    def __init__(self, *, strict: bool) -> None:
        self.api = Prefect1Api(faults=Faults() if strict else Faults.like_server()).start()
        self.client = self.another_client()
        self.flow = self.api.add_flow()

    def another_client(self) -> Prefect1:
        session = Session(Address(url=self.api.url), flavour=PREFECT1, pause=lambda _seconds: None)
        return Prefect1(GraphQL(session))

    def offer(self, *labels: str, deploy: str = "process") -> Offer:
        return self.client.presence.resolve(Offer(backend="prefect1", labels=labels, deploy=deploy), create=False)

    def scheduled(self, labels: Sequence[str] = ("x",), *, late: float = 1.0, **given: object) -> str:
        """A run that is due since so many seconds."""
        return self.api.add_run(self.flow, labels=labels, start=ago(late), **given)

    def due(self, *labels: str, deploy: str = "process") -> list[FlowRun]:
        found = self.client.backlog.due([self.offer(*labels, deploy=deploy)], within_seconds=60, limit=100)
        return [run for each in found for run in each.runs]

    def listed(self, run_id: str, *labels: str) -> FlowRun:
        """This run out of a listing."""
        return next(run for run in self.due(*(labels or ("x",))) if run.run_id == run_id)

    def claimed(self, run: FlowRun) -> str:
        """Claimed as the leader does; the call id."""
        call = str(uuid.uuid4())
        answer = self.client.claims.claim([run], call, MARK)[run.run_id]
        assert answer.verdict is Verdict.ACCEPTED, answer
        return call
