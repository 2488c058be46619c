"""Tally: what waits in the pools of a Prefect 3 API, counted by queue, with what the API hands to nobody now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowfleet.api.backlog import DueRuns
from flowfleet.api.client import StateType
from flowfleet.api.prefect3.pools import Pools
from flowfleet.api.prefect3.states import state_of
from flowfleet.api.transport.reading import Json, instant, iso, rows
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import Held, Route

#: the most runs that one request lists
LIST_LIMIT = 200
#: the most queues that are asked for one by one when an answer did not list everything
MOST_QUEUES = 20
#: so long one of these requests may take: what waits is counted between claims, and these wait for the answer
COUNT_SECONDS = 10.0
#: and so long the queues are counted one by one; those that are left are at least what has been seen of them
SINGLY_SECONDS = 3.0
#: the state of a run that waits for a slot of its deployment's limit; the server puts its time off by 30 s each time
#: (source: prefect 3.9.1). Limits of tags hold tasks back, and no run
AWAITS_SLOT = "AwaitingConcurrencySlot"


@dataclass(frozen=True)
class Tally:
    """The runs that wait in pools, counted by queries that change no status of pools and queues."""

    session: Session
    pools: Pools

    def any_in(self, pools: Sequence[str], until: datetime) -> bool:
        """Whether a run of these pools is due by then; one request for all of them."""
        return bool(pools) and self._number(_scheduled(pools, until)) > 0

    def of_pool(self, pool: str, pool_id: str, now: datetime, until: datetime) -> list[DueRuns]:
        """What waits in the queues of the pool, and what falls due until then; raises `NotFound` for a deleted one."""
        body = {**_scheduled([pool], until), "sort": "NEXT_SCHEDULED_START_TIME_ASC", "limit": LIST_LIMIT}
        by_queue: dict[str, list[Json]] = {}
        items = rows(self.session.post("/flow_runs/filter", body, tries=1, seconds=COUNT_SECONDS))
        for item in items:
            if not state_of(item).held:
                by_queue.setdefault(str(item["work_queue_id"]), []).append(item)
        if not by_queue:
            return []
        # anew, to know what is paused or limited now
        owner, known = self.pools.read(pool, anew=True), self.pools.queues(pool, anew=True)
        full = len(items) >= LIST_LIMIT
        seen = [queue_id for queue_id in (*by_queue, *(known if full else ())) if queue_id in known]
        found, began = [], self.session.clock()
        for place, queue_id in enumerate(dict.fromkeys(seen)):
            queue, number = known[queue_id], None
            if full and place < MOST_QUEUES and self.session.clock() - began < SINGLY_SECONDS:
                number = self._in_queue(pool, str(queue["name"]), now)
            if number == 0 and queue_id not in by_queue:
                continue
            found.append(_counted(pool_id, owner, queue, by_queue.get(queue_id, ()), now, full=full, number=number))
        return found

    def _in_queue(self, pool: str, queue: str, now: datetime) -> int:
        return self._number({**_scheduled([pool], now), "work_pool_queues": {"name": {"any_": [queue]}}})

    def _number(self, query: Mapping[str, Any]) -> int:
        return int(self.session.post("/flow_runs/count", query, tries=1, seconds=COUNT_SECONDS))


def _scheduled(pools: Sequence[str], until: datetime) -> dict[str, Any]:
    return {
        "work_pools": {"name": {"any_": list(pools)}},
        "flow_runs": {
            "state": {"type": {"any_": [StateType.SCHEDULED.value]}},
            "next_scheduled_start_time": {"before_": iso(until)},
        },
    }


def _counted(
    pool_id: str,
    pool: Mapping[str, Any],
    queue: Mapping[str, Any],
    items: Sequence[Json],
    now: datetime,
    *,
    full: bool,
    number: int | None,
) -> DueRuns:
    """What waits in one queue: these runs, and where the answer was `full` so many as were counted, if they were."""
    moments = [(instant(item.get("next_scheduled_start_time")), state_of(item).name) for item in items]
    ready = [moment for moment, _ in moments if moment is not None and moment <= now]
    awaiting = sum(name == AWAITS_SLOT for moment, name in moments if moment is None or moment > now)
    total = max(len(ready), number or 0)
    paused = bool(pool.get("is_paused") or queue.get("is_paused"))
    return DueRuns(
        route=Route("prefect3", pool_id, str(queue["name"])),
        runs=(),
        due=0 if paused else total,
        at_least=full and number is None,
        oldest=None if paused else min(ready, default=None),
        held=Held(paused=total if paused else 0, limit=awaiting),
        limited=any(owner.get("concurrency_limit") is not None for owner in (pool, queue)),
    )
