"""Capacity: how many runs may be claimed now, for which routes, and for whose due runs the poller asks.

The claim script counts the slots again and has the last word; this view only keeps the poller from proposing what would
be refused anyway.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from flowfleet.api import traits
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.ledger.claims import Claim, State, Tomb
from flowfleet.ledger.roster import WorkerRow

#: claims that wait for a worker: they will need a slot that no worker counts as its own yet
WAITING = frozenset({State.CLAIMING, State.QUEUED})
#: claims that use no slot any more: their process group is gone, or no worker ever had them
SLOTLESS = frozenset({State.ENDED})


@dataclass(frozen=True, kw_only=True)
class OfferFilter:
    """The poller's own `--pool`, `--work-queue` and `--label`: they only narrow what workers offer."""

    pools: tuple[str, ...] = ()
    work_queues: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def admits(self, route: Route) -> bool:
        """Whether the route is not one of a queue that `--work-queue` leaves out."""
        return not self.work_queues or traits.of(route.backend).by_labels or route.name in self.work_queues

    def apply(self, offer: Offer) -> Offer | None:
        """The part of the offer that passes the filter; None when nothing is left."""
        pairs = [
            (pool, pool_id)
            for pool, pool_id in zip(offer.pools, offer.pool_ids, strict=False)
            if not self.pools or pool in self.pools
        ]
        queues = tuple(
            queue
            for queue in offer.work_queues or self.work_queues
            if not self.work_queues or queue in self.work_queues
        )
        if not traits.of(offer.backend).by_labels:
            if not pairs or (offer.work_queues and not queues):
                return None
            return replace(
                offer,
                pools=tuple(pool for pool, _ in pairs),
                pool_ids=tuple(pool_id for _, pool_id in pairs),
                work_queues=queues,
            )
        if self.labels and not set(self.labels) <= set(offer.labels):
            return None
        return offer


@dataclass(frozen=True, kw_only=True)
class ListingPlan:
    """The offers whose due runs are listed or only counted, and the pools that are shown as online."""

    #: offers of live, active workers: their due runs are listed
    offers: tuple[Offer, ...]
    #: pools that a live worker offers: the fleet shows as online there
    online: frozenset[str]
    #: offers of workers that are away: what is due for them is only counted
    idle: tuple[Offer, ...]


def whole_pools(offer: Offer) -> list[Offer]:
    """An offer of all queues for each pool that the offer names, however it is served."""
    pairs = zip(offer.pools, offer.pool_ids, strict=False)
    return [Offer(backend=offer.backend, pools=(pool,), pool_ids=(pool_id,)) for pool, pool_id in pairs]


def left_over(offer: Offer, taken: Sequence[Offer]) -> list[Offer]:
    """The parts of the offer that none of the `taken` offers covers, by pool and queue.

    Where the `taken` offers name some queues of a pool and the offer takes all of them, the pool is left whole: nobody
    has the names of the other queues.
    """
    if traits.of(offer.backend).by_labels:
        return [] if any(_covers(other, offer) for other in taken) else [offer]
    whole: list[tuple[str, str]] = []
    parts: list[Offer] = []
    for pool, pool_id in zip(offer.pools, offer.pool_ids, strict=False):
        named = [other.work_queues for other in taken if pool in other.pools]
        rest = tuple(queue for queue in offer.work_queues if not any(queue in queues for queues in named))
        if not named:
            whole.append((pool, pool_id))
        elif all(named) and (rest or not offer.work_queues):
            parts.append(replace(offer, pools=(pool,), pool_ids=(pool_id,), work_queues=rest))
    if whole:
        names, ids = zip(*whole, strict=True)
        parts.insert(0, replace(offer, pools=names, pool_ids=ids))
    return parts


def _covers(other: Offer, offer: Offer) -> bool:
    """Whether the other offer takes every run that the offer takes (Prefect 1: same tenant, all of its labels)."""
    fewer = bool(offer.labels) and set(offer.labels) <= set(other.labels)
    return other.tenant == offer.tenant and (fewer or offer.labels == other.labels)


def listing_plan(rows: Iterable[WorkerRow], backend: str, offer_filter: OfferFilter) -> ListingPlan:
    """Plan a listing from the rows of the roster: what to list, what to count, where to show as online."""
    active: list[Offer] = []
    other: list[Offer] = []
    online: set[str] = set()
    for row in rows:
        offer = offer_filter.apply(row.offer) if row.offer.is_for(backend) else None
        if offer is None:
            continue
        if row.live:
            online.update(offer.pools)
        (active if row.takes_runs else other).append(offer)
    idle = [left for offer in other for left in left_over(offer, active)]
    return ListingPlan(offers=tuple(dict.fromkeys(active)), online=frozenset(online), idle=tuple(dict.fromkeys(idle)))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Free slots by worker, the routes that each worker consumes, and the routes of claims that wait for a worker."""

    free: dict[str, int]
    routes: dict[str, frozenset[Route]]
    waiting: tuple[Route, ...]

    def choose(self, runs: Sequence[FlowRun], rooms: Mapping[str, int] = MappingProxyType({})) -> list[FlowRun]:
        """The runs, in order, for which a slot is free; claims that already wait for a worker get theirs first.

        `rooms` says for how many more runs the API has room, by the scope of their route; a scope that is not in it has
        room for all.
        """
        free = dict(self.free)
        for route in self.waiting:
            self._give(free, route)
        left = dict(rooms)
        chosen = []
        for run in runs:
            scope = run.route.scope
            if left.get(scope, 1) > 0 and self._give(free, run.route):
                chosen.append(run)
                if scope in left:
                    left[scope] -= 1
        return chosen

    def _give(self, free: dict[str, int], route: Route) -> bool:
        able = [worker for worker, slots in free.items() if slots > 0 and route in self.routes[worker]]
        if not able:
            return False
        # the worker with the fewest routes gives its slot first: it can do the least else
        chosen = min(able, key=lambda worker: (len(self.routes[worker]), -free[worker]))
        free[chosen] -= 1
        return True


def free_capacity(rows: Iterable[WorkerRow], claims: Sequence[Claim], tombs: Sequence[Tomb] = ()) -> Capacity:
    """Count the free slots of live, active workers as the claim script does: what is buried may live there."""
    held = dict(Counter(tomb.worker for tomb in tombs))
    for claim in claims:
        if claim.worker is not None and claim.state not in SLOTLESS:
            held[claim.worker] = held.get(claim.worker, 0) + 1
    takers = [row for row in rows if row.takes_runs]
    return Capacity(
        free={row.worker: max(0, row.slots - held.get(row.worker, 0)) for row in takers},
        routes={row.worker: frozenset(row.routes) for row in takers},
        waiting=tuple(claim.route for claim in claims if claim.state in WAITING),
    )
