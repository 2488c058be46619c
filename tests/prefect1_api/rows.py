"""Rows: what tests make, write and look at directly, without a client."""

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tests.prefect1_api.clock import Clock
from tests.prefect1_api.faults import Faults
from tests.prefect1_api.flows import Flows
from tests.prefect1_api.runs import Runs
from tests.prefect1_api.states import States
from tests.prefect1_api.store import Row, Store

LOCAL = {"type": "Local", "path": "/nowhere.py", "stored_as_script": True, "flows": {}, "secrets": []}
LOCAL_RUN = {"type": "LocalRun", "env": None, "working_dir": None, "labels": []}


class Rows:
    """The half of `Prefect1Api` that tests hold; each call takes the lock."""

    def __init__(self, faults: Faults) -> None:
        self.clock, self.lock, self.faults = Clock(), threading.RLock(), faults
        self.store = Store(self.clock)
        self.writer = States(self.store, faults, self.clock)
        self.flows = Flows(self.store)
        self.runs = Runs(self.store, self.writer, self.flows, faults, self.clock)
        self.tenant = self.add_tenant("default")

    def add_tenant(self, name: str, slug: str = "") -> str:
        with self.lock:
            return self.store.insert("tenant", name=name, slug=slug or name, settings={})

    def add_flow(
        self,
        name: str = "flow",
        *,
        storage: Mapping[str, Any] | None = LOCAL,
        run_config: Mapping[str, Any] | None = LOCAL_RUN,
        tasks: Sequence[str] = ("task",),
        core_version: str = "1.4.1",
        tenant: str = "",
        project: str = "project",
        **fields: Any,
    ) -> str:
        """A flow with tasks of these slugs; one of a known name is its next version."""
        with self.lock:
            tenant = tenant or self.tenant
            known = self.store.where("project", name=project, tenant_id=tenant)
            project_id = known[0]["id"] if known else self.flows.create_project(project, tenant)
            flow = {"name": name, "storage": storage, "run_config": run_config, "__version__": core_version, **fields}
            flow.setdefault("tasks", [{"slug": slug, "name": slug} for slug in tasks])
            return self.flows.create(project_id, flow, {"set_schedule_active": False})

    def add_run(
        self, flow_id: str, *, labels: Sequence[str] | None = None, start: datetime | None = None, **given: Any
    ) -> str:
        """A Scheduled run, due now or at `start`; `given` as in create_flow_run."""
        with self.lock:
            wanted = None if labels is None else list(labels)
            return self.runs.create(flow_id, {"labels": wanted, "scheduled_start_time": start, **given})

    def add_agent_config(self, settings: Mapping[str, Any], name: str = "config") -> str:
        with self.lock:
            return self.store.insert("agent_config", tenant_id=self.tenant, name=name, settings=dict(settings))

    def write(self, run_id: str, kind: str, message: str = "", **fields: Any) -> None:
        """A flow run's state, as an engine or a user writes it, with no rule in its way."""
        with self.lock:
            self.writer.put("flow_run", run_id, {"type": kind, "message": message, "context": {}, **fields})

    def tie(self, run_id: str, kind: str, message: str = "", **fields: Any) -> None:
        """A state of another who read the run when the standing one's writer did: kept in the history only.

        Server reads the version, then inserts the next one; the second of two equal versions changes no run [srv].
        """
        with self.lock:
            self.writer.tie(run_id, {"type": kind, "message": message, "context": {}, **fields})

    def write_task(self, run_id: str, kind: str, message: str = "", *, slug: str = "task", **fields: Any) -> None:
        """The same for the run's task of this slug."""
        with self.lock:
            [task_run] = [each for each in self.task_runs(run_id) if each["slug"] == slug and each["map_index"] == -1]
            self.writer.put("task_run", task_run["id"], {"type": kind, "message": message, "context": {}, **fields})

    def cancel(self, run_id: str) -> str:
        """As a user does; the answer is the state that it led to."""
        with self.lock:
            return self.runs.cancel(run_id)

    def delete(self, run_id: str) -> None:
        """Somebody deletes the run."""
        with self.lock:
            self.store.delete("flow_run", run_id)

    def heartbeat(self, run_id: str, seconds_ago: float = 0.0) -> None:
        """The run's last sign of life."""
        with self.lock:
            self.store.update("flow_run", run_id, heartbeat=self.clock() - timedelta(seconds=seconds_ago))

    def rows(self, table: str, order: str = "rowid", **values: Any) -> list[Row]:
        """All rows in which these columns have these values."""
        with self.lock:
            return self.store.where(table, order, **values)

    def run(self, run_id: str) -> Row:
        """All columns of the run."""
        with self.lock:
            return self.runs.get(run_id)

    def state(self, run_id: str) -> str:
        """The type of the state that stands."""
        return str(self.run(run_id)["state"])

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """All states that were written, whole, in their order."""
        return [row["serialized_state"] for row in self.rows("flow_run_state", "version", flow_run_id=run_id)]

    def history(self, run_id: str) -> list[str]:
        """The types of all states that were written."""
        return [state["type"] for state in self.states(run_id)]

    def task_runs(self, run_id: str) -> list[Row]:
        """The run's task runs, each with the slug of its task."""
        slugs = {task["id"]: task["slug"] for task in self.rows("task")}
        rows = self.rows("task_run", "map_index, rowid", flow_run_id=run_id)
        return [{**row, "slug": slugs.get(row["task_id"])} for row in rows]

    def task_history(self, task_run_id: str) -> list[str]:
        return [row["state"] for row in self.rows("task_run_state", "version", task_run_id=task_run_id)]

    def logs(self, run_id: str) -> list[Row]:
        """The run's log entries, as they came."""
        return self.rows("log", flow_run_id=run_id)

    def agents(self) -> list[Row]:
        return self.rows("agent")
