"""States: how they are written to runs, with their history."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from tests.prefect1_api import rules
from tests.prefect1_api.errors import Refusal
from tests.prefect1_api.faults import Faults
from tests.prefect1_api.store import Row, Store


class States:
    """`write` obeys the rules, `put` obeys nobody."""

    def __init__(self, store: Store, faults: Faults, now: Callable[[], datetime]) -> None:
        self._store, self._faults, self._now = store, faults, now
        #: Server's memory of who was submitted when [srv]
        self._submitted: dict[str, datetime] = {}

    def forget_submitted(self) -> None:
        """Another replica, or a restarted one: the 30 s memory is one process's own [srv]."""
        self._submitted.clear()

    def write_flow(self, run_id: str, state: Any, version: int | None, agent_id: str | None) -> Row:
        """A state from a client; the answer is the run as it is then."""
        run = self._run("flow_run", run_id)
        kept = rules.whole(state)
        if kept["type"] == "Submitted":  # before the version: agents look for the text of this refusal
            rules.check_submitted(run, self._submitted.get(run_id), self._now(), self._faults)
        rules.check_version(run, version, self._faults)
        if kept["type"] == "Submitted":
            self._submitted[run_id] = self._now()
            if agent_id:
                self._store.update("flow_run", run_id, agent_id=agent_id)
        return self.put("flow_run", run_id, kept)

    def write_task(self, run_id: str, state: Any, version: int | None) -> Row:
        """The same for a task run."""
        run = self._run("task_run", run_id)
        kept = rules.whole(state)
        rules.check_version(run, version, self._faults)
        if kept["type"] == "Running":
            rules.check_task_running(run, self._run("flow_run", run["flow_run_id"]))
        return self.put("task_run", run_id, kept)

    def put(self, table: str, run_id: str, state: Mapping[str, Any]) -> Row:
        """Version + 1, the newest state in the run's own row, and one row more of history."""
        run = self._run(table, run_id)
        kind, version = state["type"], run["version"] + 1
        facts = self._facts(state)
        state_id = self._remember(table, run, version, state, facts)
        row: dict[str, Any] = {f"state_{name}": value for name, value in facts.items()}
        row |= {"state_id": state_id, "state": kind, "version": version, "serialized_state": dict(state)}
        self._store.update(table, run_id, **row, **self._stamps(table, run, kind))
        if table == "flow_run" and kind == "Cancelled":
            self._cancel_tasks(run_id)
        return self._run(table, run_id)

    def tie(self, run_id: str, state: Mapping[str, Any]) -> None:
        """One row of history with the version that stands already."""
        run = self._run("flow_run", run_id)
        self._remember("flow_run", run, run["version"], state, self._facts(state))

    def _facts(self, state: Mapping[str, Any]) -> dict[str, Any]:
        told = {"message": state.get("message"), "result": state.get("_result"), "start_time": state.get("start_time")}
        return {**told, "timestamp": self._now()}

    def _remember(self, table: str, run: Row, version: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """One row of history; its id."""
        whose = {f"{table}_id": run["id"], "tenant_id": run["tenant_id"], "version": version}
        what = {"state": state["type"], "serialized_state": dict(state)}
        return self._store.insert(f"{table}_state", **whose, **what, **facts)

    def _stamps(self, table: str, run: Row, kind: str) -> dict[str, Any]:
        now = self._now()
        stamps: dict[str, Any] = {}
        if kind in ("Running", "Submitted"):
            stamps["heartbeat"] = now
        if kind == "Running":
            stamps["start_time"] = run["start_time"] or now
            stamps["end_time"] = None
        if kind in rules.FINISHED:
            stamps["end_time"] = now
        if table == "task_run" and kind == "Running":
            stamps["run_count"] = (run["run_count"] or 0) + 1
        return stamps

    def _cancel_tasks(self, run_id: str) -> None:
        for task_run in self._store.where("task_run", flow_run_id=run_id):
            if task_run["state"] not in rules.FINISHED:
                self.put("task_run", task_run["id"], {"type": "Cancelled", "message": "The flow run was cancelled."})

    def _run(self, table: str, run_id: str) -> Row:
        run = self._store.get(table, run_id) if run_id else None
        if run is None:
            raise Refusal(f"State update failed: no {table} {run_id}.")
        return run
