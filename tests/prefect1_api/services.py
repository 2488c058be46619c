"""Services: what the server does on its own by the clock, here one step at a call [srv]."""

import threading
from datetime import datetime, timedelta
from typing import Any

from tests.prefect1_api.clock import Clock
from tests.prefect1_api.rules import SCHEDULED
from tests.prefect1_api.states import States
from tests.prefect1_api.store import Row, Store, moment, text_of

#: a heartbeat older than this is none
STALE = timedelta(minutes=10)
#: Lazarus brings a run back so many times
LIVES = 3


class Services:
    """`lazarus()` (the server's every 10 min) and `zombie_killer()` (every 2 min); each answers whom it touched."""

    def __init__(self, store: Store, states: States, clock: Clock, lock: threading.RLock) -> None:
        self._store, self._states, self._clock, self._lock = store, states, clock, lock

    def lazarus(self) -> list[str]:
        """Submitted or Running, no heartbeat, and no task that runs or is to run: Scheduled again, or Failed."""
        with self._lock:
            touched = [
                run
                for kind in ("Submitted", "Running")
                for run in self._store.where("flow_run", state=kind)
                if self._stale(run["heartbeat"]) and not self._busy(run) and self._enabled(run, "lazarus_enabled")
            ]
            for run in touched:
                self._resurrect(run)
            return [run["id"] for run in touched]

    def _resurrect(self, run: Row) -> None:
        lives = (run["times_resurrected"] or 0) + 1
        if lives > LIVES:
            self._put("flow_run", run, "Failed", f"Not started again after {LIVES} attempts of Lazarus.")
            return
        self._store.update("flow_run", run["id"], times_resurrected=lives)
        self._put("flow_run", run, "Scheduled", "Rescheduled by a Lazarus process.", start_time=text_of(self._clock()))

    def zombie_killer(self) -> list[str]:
        """Running tasks of runs without a heartbeat: Retrying or Failed; Cancelling runs without one: Failed."""
        with self._lock:
            touched = []
            for task_run in self._store.where("task_run", state="Running"):
                run = self._store.get("flow_run", task_run["flow_run_id"])
                if run and self._stale(run["heartbeat"]) and self._enabled(run, "heartbeat_enabled"):
                    self._end(task_run)
                    touched.append(task_run["id"])
            for run in self._store.where("flow_run", state="Cancelling"):
                if self._stale(run["heartbeat"]):
                    self._put("flow_run", run, "Failed", "No heartbeat while it was cancelling.")
                    touched.append(run["id"])
            return touched

    def _end(self, task_run: Row) -> None:
        task = self._store.get("task", task_run["task_id"]) or {}
        if (task_run["run_count"] or 0) <= (task.get("max_retries") or 0):
            again = self._clock() + timedelta(seconds=task.get("retry_delay") or 0)
            facts = {"start_time": text_of(again), "run_count": task_run["run_count"]}
            self._put("task_run", task_run, "Retrying", "No heartbeat; retried.", **facts)
            return
        self._put("task_run", task_run, "Failed", "No heartbeat from the task run.")

    def _put(self, table: str, run: Row, kind: str, message: str, **fields: Any) -> None:
        state = {"type": kind, "message": message, "context": {}, "cached_inputs": {}, "__version__": "1.4.1"}
        self._states.put(table, run["id"], {**state, **fields})

    def _stale(self, heartbeat: datetime | str | None) -> bool:
        return heartbeat is not None and moment(heartbeat) < self._clock() - STALE

    def _busy(self, run: Row) -> bool:
        task_runs = self._store.where("task_run", flow_run_id=run["id"])
        return any(each["state"] == "Running" or each["state"] in SCHEDULED for each in task_runs)

    def _enabled(self, run: Row, setting: str) -> bool:
        flow = self._store.get("flow", run["flow_id"]) or {}
        group = self._store.get("flow_group", flow.get("flow_group_id") or "") or {}
        return bool((group.get("settings") or {}).get(setting, True))
