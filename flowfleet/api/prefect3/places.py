"""Places: the pool and queue in which a run waits at Prefect 3, and the pause or limit that holds it back there."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flowfleet.api.client import Place, StateType
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.flow_run import Route

#: runs in these states use up the limits of pools and queues
_BUSY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


class Places:
    """The reader of places. A person asks for one run, so nothing is cached."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def place(self, run_id: str) -> Place | None:
        """The run's pool and queue; None when the run, pool or queue does not exist, or the run never had a pool."""
        try:
            run = self._session.get(f"/flow_runs/{quote(run_id, safe='')}", tries=ASKED_TRIES)
            pool_name, queue_name = run.get("work_pool_name"), run.get("work_queue_name")
            if not pool_name or not queue_name:
                return None
            pool = self._session.get(f"/work_pools/{quote(pool_name, safe='')}")
            queue = self._session.get(f"/work_pools/{quote(pool_name, safe='')}/queues/{quote(queue_name, safe='')}")
        except ResponseRefused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        paused = "pool" if pool.get("is_paused") else "queue" if queue.get("is_paused") else None
        return Place(
            route=Route("prefect3", str(pool["id"]), str(queue_name)),
            pool=str(pool_name),
            paused=paused,
            limit=self._reached(pool, queue),
        )

    def _reached(self, pool: Mapping[str, Any], queue: Mapping[str, Any]) -> str | None:
        """The limit that leaves no room now, in words."""
        in_pool = {"work_pools": {"name": {"any_": [pool["name"]]}}}
        in_queue = {**in_pool, "work_pool_queues": {"name": {"any_": [queue["name"]]}}}
        for what, owner, where in (("pool", pool, in_pool), ("queue", queue, in_queue)):
            limit = owner.get("concurrency_limit")
            if limit is not None and self._busy(where) >= limit:
                return f"the {what} {owner['name']} is at its limit of {limit}"
        return None

    def _busy(self, where: Mapping[str, Any]) -> int:
        states = {"flow_runs": {"state": {"type": {"any_": [kind.value for kind in _BUSY]}}}}
        return int(self._session.post("/flow_runs/count", {**where, **states}))
