"""Demo: example flows registered as deployments, their runs, and how each is meant to end."""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowfleet.api.client import StateType
from flowfleet.api.prefect3.access import find_address
from flowfleet.api.prefect3.pools import pool_path
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiUnavailable, LedgerUnavailable
from flowfleet.ledger import Ledger
from flowfleet.settings.classes import UpSettings

TAG = "flowfleet-demo"
_POOL_SECONDS = 30.0
_LIMIT = 200


@dataclass(frozen=True, kw_only=True)
class Example:
    """One flow file of the wheel, and one run of its flow."""

    flow: str  # the flow's, the file's and the deployment's name
    title: str
    meant: StateType
    tasks: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)


EXAMPLES = (
    Example(flow="longer", title="step by step", meant=StateType.COMPLETED, tasks=8),
    Example(flow="orders", title="tasks, one tried again", meant=StateType.COMPLETED, tasks=5),
    Example(
        flow="greeting", title="with parameters", meant=StateType.COMPLETED, parameters={"name": "Ada", "times": 3}
    ),
    Example(flow="failing", title="its code raises", meant=StateType.FAILED),
    Example(flow="killed", title="killed by a signal", meant=StateType.CRASHED),
    Example(flow="orders", title="more of them", meant=StateType.COMPLETED, tasks=7, parameters={"count": 6}),
    Example(flow="greeting", title="by default", meant=StateType.COMPLETED),
)


@dataclass(frozen=True, kw_only=True)
class DemoRun:
    """A run of an example, as the API and the ledger show it now."""

    run_id: str
    name: str
    example: Example
    state: str = "Scheduled"
    kind: StateType = StateType.SCHEDULED
    tasks_done: int = 0
    worker: str | None = None
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.kind.terminal

    @property
    def as_meant(self) -> bool:
        """Whether the run reached the state that its flow is meant to reach."""
        return self.kind == self.example.meant

    def seconds(self, now: datetime) -> float | None:
        """The seconds that the run took until its end or until `now`; None when it has not started."""
        return None if self.started is None else max(0.0, ((self.ended or now) - self.started).total_seconds())


def flows_folder() -> Path:
    """The installed folder of the example files."""
    return Path(str(files("flowfleet.up") / "flows"))


def session_of(settings: UpSettings, environ: Mapping[str, str], folder: Path) -> Session:
    """The HTTP session with the API of this `up`.

    An API that is not our own server gets the user's credentials, looked for as Prefect does in `folder`.
    """
    if "api" not in settings.origins:
        ours = {name: value for name, value in environ.items() if not name.startswith("PREFECT_")}
        return Session(find_address(settings, ours, {}))
    found = prefect_settings(environ, folder, Path(environ.get("HOME") or Path.home()))
    return Session(find_address(settings, environ, found))


class Demo:
    """Registers the examples, creates their runs, and reads how they go."""

    def __init__(self, session: Session, pool: str, ledger: Ledger) -> None:
        self._session = session
        self._pool = pool
        self._ledger = ledger
        self.runs: tuple[DemoRun, ...] = ()

    def begin(self, examples: Sequence[Example] = EXAMPLES, pause: Callable[[float], None] = time.sleep) -> None:
        """Register the deployments, and create one run of each example."""
        self._await_pool(pause)
        deployments = {flow: self._deploy(flow) for flow in dict.fromkeys(example.flow for example in examples)}
        self.runs = tuple(self._create(deployments[example.flow], example) for example in examples)

    def look(self) -> tuple[DemoRun, ...]:
        """Read all runs again; where the API or the ledger does not answer, the facts stay as they were."""
        ids = [run.run_id for run in self.runs]
        wanted = {"flow_runs": {"id": {"any_": ids}}, "limit": _LIMIT}
        try:
            states = self._session.post("/flow_runs/filter", wanted)
            tasks = self._session.post("/task_runs/filter", wanted)
        except ApiUnavailable:
            return self.runs
        known = {str(state["id"]): state for state in states}
        done = [str(task["flow_run_id"]) for task in tasks if task.get("state_type") == StateType.COMPLETED]
        workers = self._workers(set(ids))
        self.runs = tuple(_updated(run, known.get(run.run_id), done, workers) for run in self.runs)
        return self.runs

    def _workers(self, ids: set[str]) -> dict[str, str]:
        """Run id → worker, from live claims and from the records of those that are gone."""
        try:
            gone = [record for record in self._ledger.claims.records(limit=_LIMIT) if record.get("run_id") in ids]
            found = {str(record["run_id"]): str(record["worker"]) for record in gone if record.get("worker")}
            live = {claim.run_id: claim.worker for claim in self._ledger.claims.live() if claim.worker}
        except LedgerUnavailable:
            return {}
        return found | live

    def _await_pool(self, pause: Callable[[float], None]) -> None:
        """Wait for the pool, which the worker makes when it starts."""
        until = time.monotonic() + _POOL_SECONDS
        while True:
            try:
                self._session.get(pool_path(self._pool))
                return
            except ResponseRefused:
                if time.monotonic() > until:
                    raise
            pause(0.2)

    def _deploy(self, flow: str) -> str:
        folder = str(flows_folder())
        flow_id = self._session.post("/flows/", {"name": flow})["id"]
        body = {
            "name": "demo",
            "flow_id": flow_id,
            "entrypoint": f"{flow}.py:{flow}",
            "path": folder,
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
            "work_pool_name": self._pool,
            "parameter_openapi_schema": {"type": "object", "properties": {}},
            "enforce_parameter_schema": False,
            "tags": [TAG],
            "description": "An example of flowfleet up --demo.",
        }
        return str(self._session.post("/deployments/", body)["id"])

    def _create(self, deployment: str, example: Example) -> DemoRun:
        body = {
            "parameters": dict(example.parameters),
            "state": {"type": "SCHEDULED"},
            "tags": [TAG],
            "idempotency_key": str(uuid.uuid4()),  # a try whose answer was lost may have made it
        }
        run = self._session.post(f"/deployments/{deployment}/create_flow_run", body)
        return DemoRun(run_id=str(run["id"]), name=str(run["name"]), example=example)


def _updated(run: DemoRun, facts: Mapping[str, Any] | None, done: Sequence[str], workers: Mapping[str, str]) -> DemoRun:
    if facts is None:
        return run
    return replace(
        run,
        state=str(facts.get("state_name") or run.state),
        kind=StateType(facts.get("state_type") or run.kind),
        tasks_done=done.count(run.run_id),
        worker=workers.get(run.run_id, run.worker),
        started=_moment(facts.get("start_time")),
        ended=_moment(facts.get("end_time")),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
