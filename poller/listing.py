"""Listing: what the API says is due, what of it can be claimed now, and when the next run falls due."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flowfleet.api import traits
from flowfleet.api.backlog import BacklogApi, DueRuns, UnfitRun
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import NOTHING_HELD, FlowRun, Held, Offer, Route
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
        self._most = 0
        self._counted: tuple[DueRuns, ...] = ()
        self._counted_at = float("-inf")
        self._served: tuple[Offer, ...] = ()
        self._gone: set[str] = set()
        #: claimed since the count, by route; whether a listed run has vanished since without a claim of ours
        self._taken: Counter[Route] = Counter()
        self._vanished = False
        self._shunned: dict[str, float] = {}

    @property
    def age_seconds(self) -> float:
        """Age of the listing; infinite when there is none."""
        return float("inf") if self._at is None else self._clock.monotonic() - self._at

    @property
    def quiet(self) -> bool:
        """Whether nothing was due, coming or counted when the API was asked last."""
        return self._at is not None and not self._counted and not any(each.runs or each.due for each in self._listed)

    @property
    def full(self) -> bool:
        """Whether the API has listed no more than it does at most, so that more may wait."""
        return any(each.at_least for each in self._listed)

    @property
    def doubtful(self) -> bool:
        """Whether more may wait than is known: the API listed no more, or a run has vanished without a claim of ours.

        Then somebody else has it, or something holds it back.
        """
        return self._vanished or self.full

    @property
    def hides(self) -> bool:
        """Whether the last count has seen what no listing shows: runs that are held back, or that nobody takes."""
        return any(
            each.held != NOTHING_HELD or not any(offer.serves(each.route) for offer in self._served)
            for each in self._counted
        )

    def renew(self, found: Iterable[DueRuns], at: float, most: int = 0) -> None:
        """Replace the listing; `at` is when it arrived: a slow API must not make each listing too old to act on.

        That its content may be older is no danger: the claim names the state that it expects. `most` is how many runs
        one answer lists (0: not known).
        """
        before = {run.run_id for each in self._listed for run in each.runs} - self._gone
        self._listed, self._most = tuple(found), most
        self._at = at
        self._gone.clear()
        self._vanished |= not before.issubset(run.run_id for each in self._listed for run in each.runs)

    @property
    def count_age_seconds(self) -> float:
        """Seconds since the API was asked for counts; infinite when it never was."""
        return self._clock.monotonic() - self._counted_at

    def tally(self, found: Iterable[DueRuns], at: float | None = None, served: Sequence[Offer] = ()) -> None:
        """Replace the counts of what waits; `at` is when they came, None = not asked for.

        Of a route that is `served` the listing knows what the API hands out, and the count what it holds back.
        """
        self._counted, self._served = tuple(found), tuple(served)
        self._counted_at = self._counted_at if at is None else at
        self._taken.clear()
        self._vanished = self._vanished and at is None

    def forget(self) -> None:
        """Forget the listing and the counts."""
        self._at, self._counted_at = None, float("-inf")
        self._listed = self._counted = ()
        self._vanished = False

    def gone(self, run_ids: Collection[str]) -> None:
        """Note that these runs are no longer due: they are claimed, or somebody else's."""
        new = set(run_ids) - self._gone
        listed = {run.run_id: run.route for each in self._listed for run in each.runs if run.run_id in new}
        self._taken.update(listed.values())
        self._gone |= new

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
        rows = {found.route: self._as_listed(found, server_now) for found in self._listed}
        for counted in self._counted:
            rows[counted.route] = self._as_counted(counted, rows.get(counted.route), server_now)
        return list(rows.values())

    def _as_listed(self, found: DueRuns, server_now: float) -> RouteDue:
        claimed = [run for run in found.runs if run.run_id in self._gone and run.due.timestamp() <= server_now]
        left = [run.due for run in found.runs if run.run_id not in self._gone and run.due.timestamp() <= server_now]
        due = max(len(left), found.due - len(claimed))
        return RouteDue(
            route=found.route,
            due=due,
            at_least=found.at_least,
            oldest=_unix(min(left, default=found.oldest if not claimed else None)),
            at=server_now,
            held=Held(unserved=min(due, len(found.unfit))),
        )

    def _as_counted(self, counted: DueRuns, listed: RouteDue | None, server_now: float) -> RouteDue:
        """The row of a route that was counted: as it is where nobody takes it, else beside what was listed there."""
        route, total = counted.route, max(0, counted.due - self._taken[counted.route])
        alone = RouteDue(
            route=route,
            due=total,
            at_least=counted.at_least,
            oldest=_unix(counted.oldest),
            at=server_now,
            held=counted.held,
        )
        if not any(offer.serves(route) for offer in self._served):
            return alone
        listed = listed or replace(alone, due=0, at_least=False, oldest=None, held=NOTHING_HELD)
        more = max(0, total - listed.due)
        paused = 0 if listed.due else counted.held.paused  # what is listed again is paused no longer
        held = replace(counted.held, paused=paused, unserved=listed.held.unserved)
        full = self._full(route.scope)
        if counted.limited and not full:
            # the API lists what pool and queue have room for, and the rest waits for their limits
            return replace(listed, at_least=counted.at_least, held=replace(held, limit=held.limit + more))
        if listed.at_least or full:
            return replace(listed, due=listed.due + more, at_least=counted.at_least, held=held)
        return replace(listed, held=held)

    def _full(self, scope: str) -> bool:
        """Whether the API listed no more of a pool than one answer holds."""
        return 0 < self._most <= sum(len(each.runs) for each in self._listed if each.route.scope == scope)


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.astimezone(UTC).timestamp()


@dataclass(frozen=True)
class Lister:
    """Lists runs of pools that a live worker serves, and counts what waits, also where nobody serves it.

    A count sees what no listing shows: what a pause or a limit holds back, and what waits where no worker takes it.
    """

    api: BacklogApi
    presence: Presence
    clock: Clock
    metrics: PollerMetrics
    within_seconds: float = 60.0
    count_seconds: float = 30.0
    #: how soon after a count the next one comes while more may wait than is known
    doubt_seconds: float = 10.0
    limit: int = 200

    def list(self, plan: ListingPlan, listing: Listing) -> None:
        """Ask the API what is due, and put its answer into the listing. Raises `ApiUnavailable`."""
        found: Sequence[DueRuns] = ()
        with self.metrics.poll_seconds.time():
            if plan.offers and not self._nothing_waits(plan, listing):
                found = self._due(plan.offers)
        listing.renew(found, self.clock.monotonic(), self.limit)
        self.metrics.last_poll.set(self.clock.wall())
        self.presence.listed({due.route for due in found})

    def count(self, plan: ListingPlan, listing: Listing) -> None:
        """Count what no listing shows, where it is time to. It comes after the claims, which it must not hold up."""
        idle = self.presence.idle_offers(plan)
        # labels are neither paused nor limited: there only a full answer hides something
        offers = (*plan.offers, *idle) if not self._by_labels or listing.full else idle
        seconds = self.count_seconds if idle or listing.hides else 2 * self.count_seconds
        if not offers:
            listing.tally(())
        elif not plan.offers or listing.count_age_seconds >= (self.doubt_seconds if listing.doubtful else seconds):
            self._tally(offers, plan, listing)

    def _nothing_waits(self, plan: ListingPlan, listing: Listing) -> bool:
        """Whether a count says that a listing would be empty; it takes the place of one, so that no more is asked."""
        if self._by_labels or not listing.quiet or listing.count_age_seconds < self.count_seconds:
            return False
        return not self._tally((*plan.offers, *self.presence.idle_offers(plan)), plan, listing)

    def _tally(self, offers: Sequence[Offer], plan: ListingPlan, listing: Listing) -> Sequence[DueRuns]:
        counted = self._count(offers)
        listing.tally(counted, self.clock.monotonic(), served=plan.offers)
        self.presence.listed({due.route for due in counted})
        return counted

    @property
    def _by_labels(self) -> bool:
        return self.presence.api.traits.by_labels

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
        try:
            counted = self.api.count_due(offers, within_seconds=self.within_seconds)
        except ApiRejected as exc:
            if len(offers) == 1 and len(offers[0].pools) <= 1:
                logger.info("due runs cannot be counted", extra={**_names(offers[0]), "error": str(exc)})
                return []
        else:
            return [due for due in counted if self.presence.offer_filter.admits(due.route)]
        return [due for offer in offers for part in _by_pool(offer) for due in self._count([part])]


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
