"""Rest: the calls that users make at a Prefect 3 API (flows, deployments, pools, runs), with patience for SQLite."""

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import requests

from tests.waiting import SCALE, until

#: "database is locked" of SQLite comes as a sudden 503
LATER = (408, 429, 500, 502, 503)
#: the types of states that are ends
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Rest:
    """One API, as its users see it."""

    def __init__(self, api_url: str) -> None:
        self.api_url = api_url
        self.session = requests.Session()
        self.session.trust_env = False

    def call(self, method: str, path: str, body: Any = None, *, ok: Sequence[int] = ()) -> Any:
        """The answer as JSON (None for 204); other codes than 2xx and `ok` fail, sudden 503s are asked again.

        So is what met a connection that the server closes after 5 idle seconds.
        """
        # a server on SQLite was seen to refuse writes for two minutes, while it marked many runs as late
        deadline = time.monotonic() + 180 * SCALE
        while True:
            try:
                answer = self.session.request(method, f"{self.api_url}{path}", json=body, timeout=60)
            except requests.ConnectionError:
                if time.monotonic() > deadline:
                    raise
            else:
                if answer.status_code not in LATER or time.monotonic() > deadline:
                    break
            time.sleep(0.1)
        assert answer.ok or answer.status_code in ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    # pools

    def pool(self, name: str) -> dict[str, Any] | None:
        """The pool, or None when there is none of this name."""
        answer = self.call("GET", f"/work_pools/{name}", ok=(404,))
        return answer if "id" in answer else None

    def change_pool(self, name: str, **change: Any) -> None:
        """Pause it, limit it, …"""
        self.call("PATCH", f"/work_pools/{name}", change)

    def make_queue(self, pool: str, name: str, **facts: Any) -> dict[str, Any]:
        """A work queue of a pool."""
        return dict(self.call("POST", f"/work_pools/{pool}/queues", {"name": name, **facts}))

    def change_queue(self, pool: str, name: str, **change: Any) -> None:
        """Pause it, limit it, …"""
        self.call("PATCH", f"/work_pools/{pool}/queues/{name}", change)

    # deployments and runs

    def deploy(self, name: str, pool: str, entrypoint: str, folder: str, **facts: Any) -> str:
        """Create flow and deployment; the engine fetches nothing, it steps into the folder."""
        flow = self.call("POST", "/flows/", {"name": name})
        deployment = {
            "name": name,
            "flow_id": flow["id"],
            "work_pool_name": pool,
            "entrypoint": entrypoint,
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
            "enforce_parameter_schema": False,
            **facts,
        }
        return str(self.call("POST", "/deployments/", deployment)["id"])

    def create_run(
        self, deployment: str, parameters: Mapping[str, Any] | None = None, *, in_seconds: float = 0, **facts: Any
    ) -> str:
        """A run, scheduled for now or later; its id."""
        due = datetime.now(UTC) + timedelta(seconds=in_seconds)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        # a second try is to give the same run
        key = str(uuid.uuid4())
        body = {"parameters": dict(parameters or {}), "state": state, "idempotency_key": key, **facts}
        return str(self.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """The run as the API shows it."""
        return dict(self.call("GET", f"/flow_runs/{run_id}"))

    def state(self, run_id: str) -> dict[str, Any]:
        """Its state: type, name, message."""
        return self.run(run_id).get("state") or {"type": "", "name": "", "message": ""}

    def history(self, run_id: str) -> list[str]:
        """The names of its states in order."""
        states = self.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def logs(self, run_id: str) -> list[str]:
        """The lines of the run's log page."""
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [line["message"] for line in self.call("POST", "/logs/filter", body)]

    def wait_state(self, run_id: str, *names: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until the run's state has one of these names; another end than these fails at once."""

        def reached() -> dict[str, Any] | None:
            state = self.state(run_id)
            if state["name"] in names:
                return state
            said = f"{state['name']}: {state.get('message')}"
            assert state["type"] not in TERMINAL, f"run {run_id} became {said!r} instead of {' or '.join(names)}"
            return None

        # a question costs the server 10 ms of a core, which the runs of other tests want
        return until(reached, seconds, f"run {run_id} to be {' or '.join(names)}", pause=0.25)
