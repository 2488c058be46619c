"""Backlog: what is due at a Prefect 3 API, listed for claiming or only counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flowfleet.api.answers import Json, instant, iso, state_of
from flowfleet.api.client import DueRuns, Kind
from flowfleet.api.pools import Pools
from flowfleet.api.session import Refused, Session
from flowfleet.flow_run import FlowRun, Offer, Route

logger = logging.getLogger(__name__)

#: the most runs that one request lists
LIST_LIMIT = 200
#: queues that are asked for one by one, at most, when an answer did not list everything
MOST_QUEUES = 20


def wanted_queues(offers: Sequence[Offer]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(pool name, pool id) → the queues that any offer takes there; none named = all of them."""
    wanted: dict[tuple[str, str], set[str] | None] = {}
    for offer in offers:
        for pool in zip(offer.pools, offer.pool_ids, strict=True):
            before = wanted.get(pool, set())
            wanted[pool] = None if before is None or not offer.work_queues else before | set(offer.work_queues)
    return {pool: tuple(sorted(queues or ())) for pool, queues in wanted.items()}


class Backlog:
    """One request per pool and poll, and more only when that cannot list everything; queue names are known before."""

    def __init__(self, session: Session, pools: Pools, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._session = session
        self._pools = pools
        self._now = now
        #: where to go on when there are more hidden queues than are asked for at a time
        self._turn = 0

    def server_now(self) -> datetime:
        """The time by the server's clock, as far as it is known."""
        return self._now() + timedelta(seconds=self._session.skew_seconds)

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        """The runs that the API would hand out, in its own order; limits, pauses and priorities are the server's."""
        limit = max(1, min(limit, LIST_LIMIT))
        now = self.server_now()
        body = {"scheduled_before": iso(now + timedelta(seconds=within_seconds)), "limit": limit}
        return self._each(offers, lambda pool, pool_id, queues: self._list(pool, pool_id, queues, body, now))

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        """Count by queries that leave the queues' status alone."""
        now = self.server_now()
        return self._each(offers, lambda pool, pool_id, queues: self._count(pool, pool_id, queues, now))

    def _each(self, offers: Sequence[Offer], ask: Callable[[str, str, Sequence[str]], list[DueRuns]]) -> list[DueRuns]:
        """The answers for all pools; one that was deleted under way holds up no other."""
        found: list[DueRuns] = []
        for (pool, pool_id), queues in sorted(wanted_queues(offers).items()):
            try:
                found += ask(pool, pool_id, queues)
            except Refused as refused:
                if refused.status != HTTPStatus.NOT_FOUND:
                    raise
                self._pools.forget(pool)
                logger.warning("pool or queue is gone, nothing is due there", extra={"pool": pool})
        return found

    def _list(
        self, pool: str, pool_id: str, queues: Sequence[str], body: Mapping[str, Any], now: datetime
    ) -> list[DueRuns]:
        if queues:
            names = self._existing(pool, queues)
            if not names:
                return []
            body = {**body, "work_queue_names": names}
        found = self._ask(pool, pool_id, body, now)
        if not any(each.at_least for each in found):
            return found

        def alone(queue: str) -> list[DueRuns]:
            return self._ask(pool, pool_id, {**body, "work_queue_names": [queue]}, now)

        return self._uncover(self._by_priority(pool), queues, found, body["limit"], alone)

    def _ask(self, pool: str, pool_id: str, body: Mapping[str, Any], now: datetime) -> list[DueRuns]:
        entries = self._session.post(f"/work_pools/{quote(pool, safe='')}/get_scheduled_flow_runs", body)
        by_route: dict[Route, list[FlowRun]] = {}
        for entry in entries:
            run = self._flow_run(pool, pool_id, entry["flow_run"], str(entry["work_queue_id"]))
            if run is not None:
                by_route.setdefault(run.route, []).append(run)
        truncated = len(entries) >= body["limit"]
        return [_due_runs(route, runs, now, truncated=truncated) for route, runs in by_route.items()]

    def _uncover(
        self,
        order: Mapping[str, int],
        wanted: Sequence[str],
        found: Sequence[DueRuns],
        limit: int,
        ask: Callable[[str], list[DueRuns]],
    ) -> list[DueRuns]:
        """Ask for each queue by itself that a full answer may have hidden: its workers may be idle.

        A full answer shows that pool and queues have room for as many runs as it lists, not for more, so no more than
        that are proposed in all; each queue has its share, and the first answer the rest.
        """
        shown = {each.route.name: each for each in found}
        hidden = [
            name
            for name in order
            if (not wanted or name in wanted)
            and (name not in shown or len(shown[name].runs) < limit)  # else it would show the same by itself
        ]
        start = self._turn % max(1, len(hidden))
        self._turn += MOST_QUEUES
        asked = (hidden[start:] + hidden[:start])[:MOST_QUEUES]
        alone = {each.route.name: each for name in asked for each in ask(name)}
        share = max(1, limit // (len(alone) + 1))
        parts = {name: replace(each, runs=each.runs[:share]) for name, each in alone.items()}
        left = limit - sum(len(each.runs) for each in parts.values())
        for name, each in shown.items():
            if name not in parts:
                parts[name] = replace(each, runs=each.runs[: max(0, left)])
                left -= len(parts[name].runs)
        return sorted(parts.values(), key=lambda each: order.get(each.route.name, len(order)))

    def _by_priority(self, pool: str) -> dict[str, int]:
        """The names of the pool's queues with their ranks, in the order in which the server serves them."""
        queues = sorted(
            self._pools.queues(pool).values(), key=lambda queue: (queue.get("priority") or 0, str(queue["name"]))
        )
        return {str(queue["name"]): rank for rank, queue in enumerate(queues)}

    def _count(self, pool: str, pool_id: str, queues: Sequence[str], now: datetime) -> list[DueRuns]:
        if self._pools.read(pool).get("is_paused"):
            return []  # a paused pool hands out nothing
        query: dict[str, Any] = {
            "work_pools": {"name": {"any_": [pool]}},
            "flow_runs": {
                "state": {"type": {"any_": [Kind.SCHEDULED.value]}},
                "next_scheduled_start_time": {"before_": iso(now)},
            },
        }
        if queues:
            query["work_pool_queues"] = {"name": {"any_": list(queues)}}
        total = int(self._session.post("/flow_runs/count", query))
        return self._counted(pool, pool_id, query, total) if total else []

    def _counted(self, pool: str, pool_id: str, query: Json, total: int) -> list[DueRuns]:
        known = self._pools.queues(pool, anew=True)  # also for whether they are paused
        body = {**query, "sort": "NEXT_SCHEDULED_START_TIME_ASC", "limit": LIST_LIMIT}
        by_route: dict[Route, list[FlowRun]] = {}
        for item in self._session.post("/flow_runs/filter", body):
            queue_id = str(item["work_queue_id"])
            run = self._flow_run(pool, pool_id, item, queue_id)
            if run is None or known.get(queue_id, {}).get("is_paused") or state_of(item).held:
                continue
            by_route.setdefault(run.route, []).append(run)
        counted = [
            DueRuns(route=route, runs=(), due=len(runs), at_least=total > LIST_LIMIT, oldest=min(r.due for r in runs))
            for route, runs in by_route.items()
        ]
        if len(counted) == 1 and total > LIST_LIMIT and len(known) == 1:
            # one queue only, so the whole count is its own
            return [replace(counted[0], due=total, at_least=False)]
        return counted

    def _existing(self, pool: str, names: Sequence[str]) -> list[str]:
        """The server answers 404 for all when one queue is unknown, so only those that exist are asked for."""
        if not names:
            return []
        there = {str(queue["name"]) for queue in self._pools.queues(pool).values()}
        if not set(names) <= there:
            there = {str(queue["name"]) for queue in self._pools.queues(pool, anew=True).values()}
        return [name for name in names if name in there]

    def _flow_run(self, pool: str, pool_id: str, run: Json, queue_id: str) -> FlowRun | None:
        due = instant(run.get("next_scheduled_start_time") or run.get("expected_start_time"))
        queue = self._pools.queue_name(pool, queue_id)
        if due is None or queue is None:
            return None  # deleted or rescheduled under our eyes
        route = Route("prefect3", pool_id, queue)
        return FlowRun(run_id=str(run["id"]), name=str(run.get("name") or run["id"]), route=route, due=due)


def _due_runs(route: Route, runs: Sequence[FlowRun], now: datetime, *, truncated: bool) -> DueRuns:
    ready = [run.due for run in runs if run.due <= now]
    return DueRuns(
        route=route,
        runs=tuple(runs),
        due=len(ready),
        at_least=truncated,
        oldest=min(ready, default=None),
    )
