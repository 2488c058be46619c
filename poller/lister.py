"""Lister: asks the Prefect API what is due, and counts what no listing shows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowfleet.api import traits
from flowfleet.api.backlog import BacklogApi, DueRuns
from flowfleet.errors import ApiRejected, ApiUnavailable
from flowfleet.flow_run import Offer
from flowfleet.retry import backoff
from poller.capacity import ListingPlan
from poller.listing import Clock, Listing
from poller.metrics import PollerMetrics
from poller.presence import Presence

logger = logging.getLogger(__name__)

#: the longest pause between two counts, where the API cannot be asked for them
LONGEST_PAUSE_SECONDS = 600.0


@dataclass(frozen=True)
class Lister:
    """Lists runs of pools that a live worker serves, and counts what waits, also where nobody serves it.

    A count sees what no listing shows: what a pause or a limit holds back, and what waits where no worker takes it. An
    API that cannot count is no outage while it lists: the last counts stand, and it is asked for them less often.
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
        listing.renew(found, self.clock.monotonic(), self.limit, plan.offers)
        self.metrics.last_poll.set(self.clock.wall())
        self.presence.listed({due.route for due in found})

    def count(self, plan: ListingPlan, listing: Listing) -> None:
        """Count what no listing shows, where it is time to. It comes after the claims, which it must not hold up.

        Raises `ApiUnavailable` where nothing can be listed, and the API gives no answer at all.
        """
        idle = self.presence.idle_offers(plan)
        # labels are neither paused nor limited: there only a full answer hides something
        offers = (*plan.offers, *idle) if not self._by_labels or listing.full else idle
        if not offers:
            listing.tally(())
        elif listing.count_age_seconds >= self._pause(plan, idle, listing):
            self._tally(offers, plan, listing)

    def _pause(self, plan: ListingPlan, idle: Sequence[Offer], listing: Listing) -> float:
        """How many seconds after a count the next one comes."""
        if listing.uncounted:
            return backoff(listing.uncounted, first=self.count_seconds, most=LONGEST_PAUSE_SECONDS)
        if not plan.offers or not (listing.counts_fit or self._by_labels):
            return 0.0
        if listing.doubtful:
            return self.doubt_seconds
        return self.count_seconds if idle or listing.hides or listing.full else 2 * self.count_seconds

    def _nothing_waits(self, plan: ListingPlan, listing: Listing) -> bool:
        """Whether a count says that a listing would be empty; it takes the place of one, so that no more is asked."""
        if self._by_labels or not listing.quiet or listing.uncounted:
            return False
        if listing.count_age_seconds < self.count_seconds:
            return False
        return self._tally((*plan.offers, *self.presence.idle_offers(plan)), plan, listing)

    def _tally(self, offers: Sequence[Offer], plan: ListingPlan, listing: Listing) -> bool:
        """Count what waits; returns whether the API has said that nothing does."""
        until = self.clock.wall() + self.presence.skew_seconds
        try:
            counts = self._count(offers)
        except ApiUnavailable as exc:
            if not (plan.offers or exc.answered or exc.timed_out):
                raise  # nothing else asks the API in this round
            listing.miscounted(self.clock.monotonic())
            extra = {"error": str(exc), "next_try_seconds": round(self._pause(plan, (), listing))}
            logger.warning("what waits cannot be counted, the last counts stand", extra=extra)
            return False
        found = [due for due in counts or () if self.presence.offer_filter.admits(due.route)]
        listing.tally(found, self.clock.monotonic(), until)
        self.presence.listed({due.route for due in found})
        return counts == []

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

    def _count(self, offers: Sequence[Offer]) -> Sequence[DueRuns] | None:
        """What waits; None where the API refuses to say. It is asked pool by pool where it refuses all at once."""
        try:
            return self.api.count_due(offers, within_seconds=self.within_seconds)
        except ApiRejected as exc:
            if len(offers) == 1 and len(offers[0].pools) <= 1:
                logger.info("due runs cannot be counted", extra={**_names(offers[0]), "error": str(exc)})
                return None
        parts = [self._count([part]) for offer in offers for part in _by_pool(offer)]
        counted = [due for part in parts for due in part or ()]
        return counted if counted or None not in parts else None


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
