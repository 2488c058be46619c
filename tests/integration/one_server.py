"""OneServer: a local Prefect 1 API and our client of it."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from flowfleet.api.client import Answer, Mark, StateType, Verdict
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import FlowRun, Offer
from tests.integration.claiming import ago
from tests.prefect1_api import Prefect1Api

MARK = Mark(fleet="test")


def since(seconds: float) -> dict[str, str]:
    """Of a state that is to begin again: the time for it came so long ago."""
    return {"start_time": ago(seconds).isoformat()}


class OneServer:
    """With one flow."""

    def __init__(self, api: Prefect1Api) -> None:
        self.api = api
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

    def taken(self) -> tuple[FlowRun, str]:
        """A run that we have claimed, and the call."""
        run = self.listed(self.scheduled())
        return run, self.claimed(run)

    def retrying(self, seconds_ago: float) -> str:
        """A Running run whose task is to be tried again since so long."""
        run_id = self.scheduled()
        self.api.write(run_id, "Running")
        self.api.write_task(run_id, "Retrying", **since(seconds_ago))
        return run_id

    def two_tasks(self, *seconds_ago: float) -> str:
        """A Running run of two tasks, of which the first are to be tried again since so long."""
        flow = self.api.add_flow("two", tasks=("task", "other"))
        run_id = self.api.add_run(flow, labels=["x"], start=ago(60))
        self.api.write(run_id, "Running")
        for slug, late in zip(("task", "other"), seconds_ago, strict=False):
            self.api.write_task(run_id, "Retrying", slug=slug, **since(late))
        return run_id

    def put_off(self, run_id: str) -> datetime:
        """Somebody schedules the run for an hour later."""
        later = ago(-3600)
        self.api.write(run_id, "Scheduled", start_time=later.isoformat())
        return later

    def hand_back(self, run: FlowRun, call: str) -> Answer:
        return self.client.ends.hand_back(run.run_id, call, run.due, MARK, "test")

    def report(self, run: FlowRun) -> Answer:
        """The end of a run whose process was killed."""
        return self.client.ends.report(run.run_id, StateType.FAILED, "It was killed.", MARK)

    def meanwhile(self, field: str, step: Callable[[], object], *, after: bool = False) -> None:
        """Do this once, right before the next request with this field is sent, or right after it was answered."""
        ask, done = self.client.graphql.ask, []

        def asked(document: str, *rest: Any, **how: Any) -> Any:
            mine = field in document and not done
            if mine:
                done.append(True)
            if mine and not after:
                step()
            reply = ask(document, *rest, **how)
            if mine and after:
                step()
            return reply

        self.client.graphql.ask = asked
