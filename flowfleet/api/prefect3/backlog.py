"""Backlog: the due runs of a Prefect 3 API, listed for claiming or only counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from flowfleet.api.backlog import DueRuns, Place, Rival, UnfitRun
from flowfleet.api.client import StateType
from flowfleet.api.prefect3.life import online_workers
from flowfleet.api.prefect3.pools import Pools, pool_path
from flowfleet.api.prefect3.tally import LIST_LIMIT, MOST_QUEUES, Tally
from flowfleet.api.transport.reading import Json, instant, iso, reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.flow_run import FlowRun, Offer, Route

logger = logging.getLogger(__name__)

#: for so long a queue that a worker names and that does not exist is not looked for again
MISSING_SECONDS = 60.0
#: how far ahead of its time a poller may claim a run: where a limit leaves room for a few, no later run may take their
#: place
NEAR_SECONDS = 5.0

#: runs in these states use up the limits of pools and queues
_BUSY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


def wanted_queues(offers: Sequence[Offer]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The queues that the offers take, by (pool name, pool id); an empty tuple means all queues of the pool."""
    wanted: dict[tuple[str, str], set[str] | None] = {}
    for offer in offers:
        for pool in zip(offer.pools, offer.pool_ids, strict=True):
            before = wanted.get(pool, set())
            wanted[pool] = None if before is None or not offer.work_queues else before | set(offer.work_queues)
    return {pool: tuple(sorted(queues or ())) for pool, queues in wanted.items()}


@dataclass
class Backlog:
    """The due runs of a Prefect 3 API.

    A poll is one request per pool, and more only when that cannot list everything; queue names are cached.
    """

    session: Session
    pools: Pools
    #: the time by the server's clock, as far as the skew is known
    now: Callable[[], datetime]
    #: where to go on next time when there are more hidden queues than are asked for at a time
    _turn: int = field(default=0, init=False)

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        limit = max(1, min(limit, LIST_LIMIT))
        now = self.now()
        body = {"scheduled_before": iso(now + timedelta(seconds=within_seconds)), "limit": limit}
        return self._each(offers, lambda pool, pool_id, queues: self._list(pool, pool_id, queues, body, now))

    def count_due(self, offers: Sequence[Offer], *, within_seconds: float = 0.0) -> list[DueRuns]:
        # all queues of the pools: what waits in one that no worker takes is seen by nothing else
        now, tally = self.now(), Tally(self.session, self.pools)
        until = now + timedelta(seconds=within_seconds)
        with reading("for what waits"):
            if not tally.any_in([pool for pool, _ in wanted_queues(offers)], until):
                return []
        return self._each(offers, lambda pool, pool_id, _: tally.of_pool(pool, pool_id, now, until))

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        # none: a run names its own pool, and `status` shows what waits there
        del offers
        return []

    def rivals(self, offers: Sequence[Offer]) -> list[Rival]:
        pools = sorted({pool for offer in offers for pool in offer.pools})
        return [rival for pool in pools for rival in online_workers(self.session, pool)]

    def place(self, run_id: str) -> Place | None:
        # The run's pool and queue, with their pauses and limits; None also when one of these does not exist. A person
        # asks for one run, so nothing is cached.
        with reading("for where a run waits"), suppress(NotFound):
            return self._place(run_id)
        return None

    def _place(self, run_id: str) -> Place | None:
        run = self.session.get(f"/flow_runs/{quote(run_id, safe='')}", tries=ASKED_TRIES)
        pool_name, queue_name = run.get("work_pool_name"), run.get("work_queue_name")
        if not pool_name or not queue_name:
            return None
        pool = self.session.get(pool_path(pool_name))
        queue = self.session.get(pool_path(pool_name, "queues", queue_name))
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
        return int(self.session.post("/flow_runs/count", {**where, **states}))

    def _each(self, offers: Sequence[Offer], ask: Callable[[str, str, Sequence[str]], list[DueRuns]]) -> list[DueRuns]:
        """The answers for all pools; a pool that was deleted under way does not hold up the others."""
        found: list[DueRuns] = []
        with reading("for what is due"):
            for (pool, pool_id), queues in sorted(wanted_queues(offers).items()):
                try:
                    found += ask(pool, pool_id, queues)
                except NotFound:
                    self.pools.forget(pool)
                    logger.warning("pool or queue is gone: nothing is due there", extra={"pool": pool})
        return found

    def _list(
        self, pool: str, pool_id: str, queues: Sequence[str], body: Mapping[str, Any], now: datetime
    ) -> list[DueRuns]:
        """List one pool's due runs by one request, and by more where its answer may hide what a free worker could run.

        An answer hides runs when it is full, and when the pool has a limit: the server cuts the answer to the room that
        is left, by the queues' priority and over all that is due within the asked time.
        """
        if queues:
            names = self._existing(pool, queues)
            if not names:
                return []
            body = {**body, "work_queue_names": names}
        found = self._ask(pool, pool_id, body)
        order = self._by_priority(pool) if found.runs else {}
        wanted = [name for name in order if not queues or name in queues]
        limited = len(wanted) > 1 and self.pools.limited(pool)
        if len(wanted) < 2 or not (found.full or limited):
            return found.by_route(now)
        if limited:
            near = now + timedelta(seconds=NEAR_SECONDS)
            body = {**body, "scheduled_before": iso(near)}
        answers = [found]
        if limited and any(run.due > near for run in found.runs):
            answers.insert(0, self._ask(pool, pool_id, body))
        answers += [
            self._ask(pool, pool_id, {**body, "work_queue_names": [name]}) for name in self._hidden(wanted, answers[0])
        ]
        return _joined(answers, order, body["limit"], now, limited=limited)

    def _ask(self, pool: str, pool_id: str, body: Mapping[str, Any]) -> _Listed:
        entries = rows(self.session.post(pool_path(pool, "get_scheduled_flow_runs"), body))
        runs = [self._flow_run(pool, pool_id, entry["flow_run"], str(entry["work_queue_id"])) for entry in entries]
        return _Listed(
            runs=tuple(run for run in runs if run is not None), room=len(entries), full=len(entries) >= body["limit"]
        )

    def _hidden(self, wanted: Sequence[str], shown: _Listed) -> Sequence[str]:
        """The queues that are to be asked for one by one, since their workers may be idle.

        A queue that filled the answer alone is left out, since it would show the same; there are none when the answer
        lists no run.
        """
        if not shown.runs:
            return []
        by_queue = Counter(run.route.name for run in shown.runs)
        hidden = [name for name in wanted if by_queue[name] < shown.room]
        start = self._turn % max(1, len(hidden))
        self._turn += MOST_QUEUES
        return (hidden[start:] + hidden[:start])[:MOST_QUEUES]

    def _by_priority(self, pool: str) -> dict[str, int]:
        """The names of the pool's queues with their ranks, in the order in which the server serves them."""
        queues = sorted(
            self.pools.queues(pool).values(), key=lambda queue: (queue.get("priority") or 0, str(queue["name"]))
        )
        return {str(queue["name"]): rank for rank, queue in enumerate(queues)}

    def _existing(self, pool: str, names: Sequence[str]) -> list[str]:
        """The queues that exist among the named: the server answers 404 for all when one queue is unknown."""
        there = self.pools.queue_names(pool)
        if not there.issuperset(names):
            # nobody may ever make it: the polls of an idle fleet are to stay few
            there = self.pools.queue_names(pool, seconds=MISSING_SECONDS)
        return [name for name in names if name in there]

    def _flow_run(self, pool: str, pool_id: str, run: Json, queue_id: str) -> FlowRun | None:
        due = instant(run.get("next_scheduled_start_time") or run.get("expected_start_time"))
        queue = self.pools.queue_name(pool, queue_id)
        if due is None or queue is None:
            return None  # deleted or rescheduled between the two answers
        route = Route("prefect3", pool_id, queue)
        return FlowRun(run_id=str(run["id"]), name=str(run.get("name") or run["id"]), route=route, due=due)


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """One answer of the API that lists due runs."""

    runs: tuple[FlowRun, ...]
    room: int  # how many the answer lists: pool and queues have room for so many
    full: bool  # True when the answer may be cut off at the limit of our request

    def by_route(self, now: datetime) -> list[DueRuns]:
        """The runs by queue, in the order of the answer."""
        by_route: dict[Route, list[FlowRun]] = {}
        for run in self.runs:
            by_route.setdefault(run.route, []).append(run)
        return [_due_runs(route, runs, now, truncated=self.full) for route, runs in by_route.items()]


def _joined(
    answers: Sequence[_Listed], order: Mapping[str, int], limit: int, now: datetime, *, limited: bool
) -> list[DueRuns]:
    """Join the answers into one, by the queues' priority: all of the first, and at most `limit` runs of the others.

    Together the answers may list more than the pool has room for, since each is cut by itself: `room` says how many
    runs the pool has room for.
    """
    first, *others = answers
    share = max(1, limit // max(1, len(others)))
    room = max(answer.room for answer in answers)
    parts: dict[Route, dict[str, FlowRun]] = {}
    counts: dict[Route, DueRuns] = {}
    for answer in answers:
        for each in answer.by_route(now):
            before = counts.get(each.route)
            if before is None or each.due >= before.due:
                counts[each.route] = each
            taken = each.runs if answer is first else each.runs[:share]
            parts.setdefault(each.route, {}).update((run.run_id, run) for run in taken)
    joined = [
        # within a queue the server goes by time
        replace(
            counts[route],
            runs=tuple(sorted(runs.values(), key=lambda run: run.due)),
            at_least=counts[route].at_least or (limited and len(counts[route].runs) >= room),
            room=room if limited else None,
        )
        for route, runs in parts.items()
    ]
    return sorted(joined, key=lambda each: order.get(each.route.name, len(order)))


def _due_runs(route: Route, runs: Sequence[FlowRun], now: datetime, *, truncated: bool) -> DueRuns:
    ready = [run.due for run in runs if run.due <= now]
    return DueRuns(
        route=route,
        runs=tuple(runs),
        due=len(ready),
        at_least=truncated,
        oldest=min(ready, default=None),
    )
