"""Listing: what the API says is due, what of it can be claimed now, and when the next run falls due."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flowfleet.api import traits
from flowfleet.api.backlog import BacklogApi, DueRuns, UnfitRun
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.ledger.roster import RouteDue
from poller.capacity import ListingPlan
from poller.metrics import PollerMetrics
from poller.presence import Presence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The two clocks of the poller: one for durations, one for the time of day."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


class Listing:
    """The due runs that the API listed last, less those that have been claimed since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: float | None = None
        self._listed: tuple[DueRuns, ...] = ()
        self._counted: tuple[DueRuns, ...] = ()
        self._counted_at = float("-inf")
        self._gone: set[str] = set()
        self._shunned: dict[str, float] = {}

    @property
    def age_seconds(self) -> float:
        """Age of the listing; infinite when there is none."""
        return float("inf") if self._at is None else self._clock.monotonic() - self._at

    def renew(self, found: Iterable[DueRuns], at: float) -> None:
        """Replace the listing; `at` is when it arrived: a slow API must not make each listing too old to act on.

        That its content may be older is no danger: the claim names the state that it expects.
        """
        self._listed = tuple(found)
        self._at = at
        self._gone.clear()

    @property
    def count_age_seconds(self) -> float:
        """Seconds since the API was asked for counts; infinite when it never was."""
        return self._clock.monotonic() - self._counted_at

    def tally(self, found: Iterable[DueRuns], at: float | None = None) -> None:
        """Replace the counts of what is due for workers that are away; `at` is when they came, None = not asked for."""
        self._counted = tuple(found)
        self._counted_at = self._counted_at if at is None else at

    def forget(self) -> None:
        """Forget the listing and the counts."""
        self._at, self._counted_at = None, float("-inf")
        self._listed = self._counted = ()

    def gone(self, run_ids: Collection[str]) -> None:
        """Note that these runs are no longer due: they are claimed, or somebody else's."""
        self._gone.update(run_ids)

    def take_out(self, run_ids: Collection[str]) -> list[FlowRun]:
        """Return those of these runs that are listed, and count them as gone from now on."""
        found = {run.run_id: run for due in self._listed for run in due.runs if run.run_id in run_ids}
        self.gone(found)
        return list(found.values())

    def unfit(self) -> list[UnfitRun]:
        """The listed runs that nobody here can take."""
        return [each for due in self._listed for each in due.unfit]

    def put_off(self, run_ids: Collection[str], seconds: float) -> None:
        """Do not propose these runs for so many seconds: they were refused just now."""
        now = self._clock.monotonic()
        self._shunned = {run_id: until for run_id, until in self._shunned.items() if until > now}
        self._shunned.update(dict.fromkeys(run_ids, now + seconds))

    def runs(self) -> Sequence[FlowRun]:
        """All listed runs that are neither gone nor shunned, each once, in the server's order within its route."""
        now = self._clock.monotonic()
        runs: dict[str, FlowRun] = {}
        for due in self._listed:
            for run in due.runs:
                if run.run_id not in self._gone and self._shunned.get(run.run_id, 0.0) <= now:
                    runs.setdefault(run.run_id, run)
        return list(runs.values())

    def claimable(self, server_now: float, lead_seconds: float) -> list[FlowRun]:
        """The runs that are due, then those that will be within the lead; pools take turns by the age of their heads.

        Within a pool (at Prefect 1: a label set) the order is the server's. That the listing has one pool before
        another says nothing, and a worker that serves both would come to the second only when the first is empty.
        """
        near = [run for run in self.runs() if run.due.timestamp() <= server_now + lead_seconds]
        near.sort(key=lambda run: run.due.timestamp() > server_now)
        reached: dict[str | Route, tuple[bool, datetime]] = {}
        turns: list[tuple[tuple[bool, datetime], FlowRun]] = []
        for run in near:
            own = (run.due.timestamp() > server_now, run.due)
            # a run never comes before one that stands in front of it in its own pool
            pool = run.route if traits.of(run.route.backend).by_labels else run.route.scope
            turn = reached[pool] = max(own, reached.get(pool, own))
            turns.append((turn, run))
        return [run for _, run in sorted(turns, key=lambda item: item[0])]

    def rooms(self) -> dict[str, int]:
        """How many runs may still be claimed, by id of the pool or tenant; one that names no limit is left out."""
        rooms = {found.route.scope: found.room for found in self._listed if found.room is not None}
        claimed = {run.run_id: run.route.scope for found in self._listed for run in found.runs} if rooms else {}
        for run_id in self._gone:
            if claimed.get(run_id) in rooms:
                rooms[claimed[run_id]] -= 1
        return rooms

    def next_due(self, server_now: float, lead_seconds: float) -> float | None:
        """Seconds until the next run comes within the lead; None when no listed run is still to come."""
        waits = [wait for run in self.runs() if (wait := run.due.timestamp() - lead_seconds - server_now) > 0]
        return min(waits, default=None)

    def due(self, server_now: float) -> list[RouteDue]:
        """The rows for the ledger: what waits at the API, per route."""
        rows: dict[Route, RouteDue] = {}
        for found in (*self._counted, *self._listed):
            claimed = [run for run in found.runs if run.run_id in self._gone and run.due.timestamp() <= server_now]
            left = [run.due for run in found.runs if run.run_id not in self._gone and run.due.timestamp() <= server_now]
            oldest: datetime | None = min(left, default=found.oldest if not claimed else None)
            rows[found.route] = RouteDue(
                route=found.route,
                due=max(len(left), found.due - len(claimed)),
                at_least=found.at_least,
                oldest=None if oldest is None else oldest.astimezone(UTC).timestamp(),
                at=server_now,
            )
        return list(rows.values())


@dataclass(frozen=True)
class Lister:
    """Lists runs of pools that a live worker serves, only counts those of others: listing marks a pool as served."""

    api: BacklogApi
    presence: Presence
    clock: Clock
    metrics: PollerMetrics
    within_seconds: float = 60.0
    count_seconds: float = 30.0
    limit: int = 200

    def list(self, plan: ListingPlan, listing: Listing) -> None:
        """Ask the API what is due, and put its answer into the listing. Raises `ApiUnavailable`."""
        with self.metrics.poll_seconds.time():
            found = self._due(plan.offers) if plan.offers else []
            now = self.clock.monotonic()
            listing.renew(found, now)
            there = {due.route for due in found}
            idle = self.presence.idle_offers(plan)
            if not idle:
                listing.tally(())
            elif not plan.offers or listing.count_age_seconds >= self.count_seconds:
                counted = self._count(idle)
                there |= {due.route for due in counted}
                # of a route that is listed the listing knows more than the count, also when the queue is empty
                unlisted = [due for due in counted if not any(offer.serves(due.route) for offer in plan.offers)]
                listing.tally(unlisted, now)
        self.metrics.last_poll.set(self.clock.wall())
        self.presence.listed(there)

    def _due(self, offers: Sequence[Offer]) -> Sequence[DueRuns]:
        try:
            return self.api.due(offers, within_seconds=self.within_seconds, limit=self.limit)
        except ApiRejected as exc:
            if len(offers) == 1 and len(offers[0].pools) <= 1:
                logger.warning("due runs cannot be listed", extra={**_names(offers[0]), "error": str(exc)})
                return []
        # one pool that was deleted must not keep the others waiting: ask for each pool by itself
        return [due for offer in offers for part in _by_pool(offer) for due in self._due([part])]

    def _count(self, offers: Sequence[Offer]) -> Sequence[DueRuns]:
        found: list[DueRuns] = []
        for part in [part for offer in offers for part in _by_pool(offer)]:
            try:
                found += self.api.count_due([part])
            except ApiRejected as exc:
                logger.info("due runs cannot be counted", extra={**_names(part), "error": str(exc)})
        return found


def _names(offer: Offer) -> dict[str, object]:
    return {"labels": list(offer.labels)} if traits.of(offer.backend).by_labels else {"pools": offer.pools}


def _by_pool(offer: Offer) -> Sequence[Offer]:
    """The offer split into one offer per pool."""
    if len(offer.pools) <= 1:
        return [offer]
    return [
        replace(offer, pools=(pool,), pool_ids=(pool_id,))
        for pool, pool_id in zip(offer.pools, offer.pool_ids, strict=True)
    ]
