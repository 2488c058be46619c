"""Runs: what the bench creates at the Prefect server, and the timeline that the server kept of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests

FLOWS = """\
import time
from prefect import flow

@flow
def trivial():
    return 1

@flow
def hold(seconds: float = 60.0):
    time.sleep(seconds)
"""
ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


@dataclass(frozen=True)
class Timeline:
    """The moments of one run, as the server wrote them; seconds since the epoch."""

    run_id: str
    scheduled: float
    pending: float | None
    running: float | None
    ended: float | None
    final: str


class TooLong(Exception):
    """Something did not happen within its time."""


def wait(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.25) -> Any:
    """Ask until the answer is true; `TooLong` names what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TooLong(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)


class Api:
    """The bench's own way to the server: past the proxy, so that it is not counted."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request, repeated while SQLite is busy (503)."""
        for attempt in range(30):
            answer = self._session.request(method, self._url + path, json=body, timeout=60)
            if answer.status_code != 503:
                break
            time.sleep(0.1 * (attempt + 1))
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def copy_pool(self, source: str, target: str) -> None:
        """A second pool with the very template and type of the first, so that both sides run the same."""
        pool = self.call("GET", f"/work_pools/{source}")
        self.call(
            "POST",
            "/work_pools/",
            {"name": target, "type": pool["type"], "base_job_template": pool["base_job_template"]},
        )

    def deploy(self, flow: str, pool: str, folder: Path, engine_api: str) -> str:
        """A deployment of one of our two flows to the pool; its engines are told to use another address."""
        (folder / "bench_flows.py").write_text(FLOWS)
        flow_id = self.call("POST", "/flows/", {"name": flow})["id"]
        body = {
            "name": f"{flow}-{pool}",
            "flow_id": flow_id,
            "work_pool_name": pool,
            "entrypoint": f"bench_flows.py:{flow}",
            "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
            "job_variables": {"env": {"PREFECT_API_URL": engine_api}},
            "enforce_parameter_schema": False,
        }
        return str(self.call("POST", "/deployments/", body)["id"])

    def create(self, deployment: str, *, at: datetime | None = None, parameters: dict[str, Any] | None = None) -> str:
        """One run, due now or at a time."""
        state: dict[str, Any] = {"type": "SCHEDULED", "name": "Scheduled"}
        if at is not None:
            state["state_details"] = {"scheduled_time": at.isoformat()}
        body = {"state": state, "parameters": parameters or {}}
        return str(self.call("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def count(self, run_ids: Sequence[str], states: Sequence[str]) -> int:
        """How many of these runs are in one of these states."""
        body = {"flow_runs": {"id": {"any_": list(run_ids)}, "state": {"type": {"any_": list(states)}}}}
        return int(self.call("POST", "/flow_runs/count", body))

    def wait_ended(self, run_ids: Sequence[str], seconds: float) -> None:
        wait(lambda: self.count(run_ids, ENDED) == len(run_ids), seconds, f"{len(run_ids)} runs to end", pause=0.5)

    def wait_running(self, run_ids: Sequence[str], seconds: float) -> None:
        wait(lambda: self.count(run_ids, ["RUNNING"]) == len(run_ids), seconds, f"{len(run_ids)} runs to run")

    def timeline(self, run_id: str) -> Timeline:
        """Read the history of one run."""
        states = self.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        first: dict[str, dict[str, Any]] = {}
        for state in sorted(states, key=lambda state: state["timestamp"]):
            first.setdefault(state["type"], state)
        last = max(states, key=lambda state: state["timestamp"])
        origin = first["SCHEDULED"]
        due = max(_seconds(origin["timestamp"]), _seconds(origin["state_details"]["scheduled_time"]))
        return Timeline(
            run_id,
            due,
            _seconds(first["PENDING"]["timestamp"]) if "PENDING" in first else None,
            _seconds(first["RUNNING"]["timestamp"]) if "RUNNING" in first else None,
            _seconds(last["timestamp"]) if last["type"] in ENDED else None,
            last["type"],
        )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def after(seconds: float) -> datetime:
    """A time from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)
