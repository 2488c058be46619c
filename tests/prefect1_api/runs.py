"""Runs: how they are made, queued, cancelled, and how their task runs come to be."""

import itertools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from tests.prefect1_api.errors import Refusal
from tests.prefect1_api.faults import Faults
from tests.prefect1_api.flows import Flows
from tests.prefect1_api.rules import FINISHED, SCHEDULED
from tests.prefect1_api.states import States
from tests.prefect1_api.store import Row, Store, text_of

#: runs that somebody may take: due by their own state, or Running with a task whose time has come [srv]
_DUE = """
tenant_id = ? and (
    (state in ({scheduled}) and state_start_time <= ?)
    or (state = 'Running' and exists (
        select 1 from task_run where task_run.flow_run_id = flow_run.id
        and task_run.state in ({scheduled}) and task_run.state_start_time <= ?))
)""".format(scheduled=", ".join(f"'{name}'" for name in sorted(SCHEDULED)))

_EMPTY = {"context": {}, "cached_inputs": {}}
_PENDING = {"type": "Pending", "message": "Task run created", **_EMPTY, "__version__": "1.4.1"}

_ADJECTIVES = ("brave", "calm", "eager", "gentle", "lucky", "quiet", "swift", "wise")
_ANIMALS = ("badger", "crane", "ferret", "heron", "lynx", "otter", "raven", "stoat")


class Runs:
    """Flow runs and their task runs."""

    def __init__(self, store: Store, states: States, flows: Flows, faults: Faults, now: Callable[[], datetime]) -> None:
        self._store, self._states, self._flows, self._faults, self._now = store, states, flows, faults, now
        self._numbers = itertools.count()

    def create(self, flow_id: str, given: Mapping[str, Any]) -> str:
        """A Scheduled run with a Pending task run for each task; a known idempotency key gives the old run."""
        flow = self._flows.get(flow_id)
        key = given.get("idempotency_key")
        if key and (old := self._store.where("flow_run", flow_id=flow_id, idempotency_key=key)):
            return str(old[0]["id"])
        group = self._store.get("flow_group", flow["flow_group_id"]) or {}
        start = given.get("scheduled_start_time") or self._now()
        run_id = self._store.insert(
            "flow_run",
            tenant_id=flow["tenant_id"],
            flow_id=flow_id,
            name=given.get("flow_run_name") or self._name(),
            version=0,
            parameters=_parameters(flow, group, given.get("parameters") or {}),
            context=given.get("context") or {},
            labels=_labels(flow, group, given),
            run_config=given.get("run_config") or group.get("run_config") or flow["run_config"],
            scheduled_start_time=start,
            idempotency_key=key,
            auto_scheduled=False,
            times_resurrected=0,
        )
        state = {"type": "Scheduled", "message": "Flow run scheduled.", "start_time": text_of(start)}
        self._states.put("flow_run", run_id, {**state, **_EMPTY, "__version__": "1.4.1"})
        for task in self._store.where("task", flow_id=flow_id):
            task_run = self._task_run(flow["tenant_id"], run_id, task, -1)
            self._states.put("task_run", task_run, _PENDING)
        return run_id

    def _name(self) -> str:
        again, pair = divmod(next(self._numbers), len(_ADJECTIVES) * len(_ANIMALS))
        first, second = divmod(pair, len(_ANIMALS))
        return f"{_ADJECTIVES[first]}-{_ANIMALS[second]}" + (f"-{again}" if again else "")

    def _task_run(self, tenant_id: str, run_id: str, task: Row, map_index: int) -> str:
        whose = {"tenant_id": tenant_id, "flow_run_id": run_id, "task_id": task["id"], "map_index": map_index}
        return self._store.insert("task_run", **whose, cache_key=task["cache_key"], version=0, run_count=0)

    def task_run_of(self, run_id: str, task_id: str, map_index: int) -> Row:
        """The task run, made if it is a mapped child that is not there yet: it begins with version 0 [run]."""
        found = self._store.where("task_run", flow_run_id=run_id, task_id=task_id, map_index=map_index)
        if found:
            return found[0]
        run, task = self.get(run_id), self._store.get("task", task_id)
        if task is None:
            raise Refusal(f"no task {task_id}")
        made = self._task_run(run["tenant_id"], run_id, task, map_index)
        self._store.update("task_run", made, version=-1)
        return self._states.put("task_run", made, _PENDING)

    def queue(self, tenant_id: str, labels: list[str], before: datetime | str) -> list[str]:
        """Ids of runs that an agent with these labels may take, the longest due first [srv]."""
        due = text_of(before)
        window = self._faults.queue_window
        page = f"limit {window}" if window is not None else ""
        rows = self._store.select("flow_run", _DUE, (tenant_id, due, due), "state_start_time, rowid", page)
        offered = set(labels)
        ids = [row["id"] for row in rows if _fits(row["labels"] or [], offered)]
        return ids if self._faults.queue_ids is None else ids[: self._faults.queue_ids]

    def cancel(self, run_id: str) -> str:
        """Finished: nothing; Running (or already on its way out): Cancelling; else Cancelled at once [srv]."""
        run = self.get(run_id)
        if run["state"] in FINISHED or run["state"] == "Cancelling":
            return str(run["state"])
        kind = "Cancelling" if run["state"] == "Running" else "Cancelled"
        state = {"type": kind, "message": f"Flow run is {kind.lower()}.", **_EMPTY}
        return str(self._states.put("flow_run", run_id, state)["state"])

    def get(self, run_id: str) -> Row:
        run = self._store.get("flow_run", run_id) if run_id else None
        if run is None:
            raise Refusal(f"no flow run {run_id}")
        return run


def _fits(wanted: list[str], offered: set[str]) -> bool:
    """A subset; and a run without labels is for agents without labels only [srv, run]."""
    return set(wanted) <= offered if wanted else not offered


def _labels(flow: Row, group: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """The first of these that is not null [srv]."""
    told = (given, given.get("run_config"), group, group.get("run_config"), flow["run_config"], flow["environment"])
    found = [each["labels"] for each in told if each and each.get("labels") is not None]
    return sorted(found[0]) if found else []


def _parameters(flow: Row, group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    known = flow["parameters"] or []
    defaults = {each["name"]: each.get("default") for each in known if not each.get("required")}
    values = {**defaults, **(group.get("default_parameters") or {}), **given}
    if absent := {each["name"] for each in known if each.get("required")} - set(values):
        raise Refusal(f"parameters without a value: {', '.join(sorted(absent))}")
    return values
