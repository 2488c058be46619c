"""Lister: asks the API what is due, for whom it is worth asking."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from flowfleet.api.client import ApiClient, DueRuns
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import Offer
from poller.capacity import Wanted
from poller.listing import Clock, Known
from poller.metrics import Meters
from poller.presence import Presence

logger = logging.getLogger(__name__)


class Lister:
    """Lists for pools that a live worker serves, and only counts for the others: listing marks a pool as served."""

    def __init__(
        self,
        api: ApiClient,
        presence: Presence,
        *,
        clock: Clock,
        meters: Meters,
        within_seconds: float = 60.0,
        count_seconds: float = 30.0,
        limit: int = 200,
    ) -> None:
        self._api = api
        self._presence = presence
        self._clock = clock
        self._meters = meters
        self._within_seconds = within_seconds
        self._count_seconds = count_seconds
        self._limit = limit
        self._next_count = 0.0

    def count_anew(self) -> None:
        """Count with the next listing."""
        self._next_count = 0.0

    def list(self, want: Wanted, known: Known) -> None:
        """Ask, and put the answer into what is known. Raises `ApiUnavailable`."""
        with self._meters.poll_seconds.time():
            found = self._due(want.offers) if want.offers else []
            now = self._clock.monotonic()
            known.renew(found, now)
            there = {due.route for due in found}
            idle = self._presence.idle_offers(want)
            if not idle:
                known.tally(())
            elif not want.offers or now >= self._next_count:
                counted = self._count(idle)
                there |= {due.route for due in counted}
                # a queue that is listed is known better from there, also when it is empty
                known.tally(due for due in counted if not any(offer.serves(due.route) for offer in want.offers))
                self._next_count = now + self._count_seconds
        self._meters.last_poll.set(self._clock.wall())
        self._presence.listed(there)

    def _due(self, offers: Sequence[Offer]) -> Sequence[DueRuns]:
        try:
            return self._api.due(offers, within_seconds=self._within_seconds, limit=self._limit)
        except ApiRejected as exc:
            if len(offers) == 1 and len(offers[0].pools) <= 1:
                logger.warning("due runs cannot be listed", extra={**_names(offers[0]), "error": str(exc)})
                return []
        # one pool that was deleted must not keep the others waiting: each by itself
        return [due for offer in offers for part in _by_pool(offer) for due in self._due([part])]

    def _count(self, offers: Sequence[Offer]) -> Sequence[DueRuns]:
        found: list[DueRuns] = []
        for part in [part for offer in offers for part in _by_pool(offer)]:
            try:
                found += self._api.count_due([part])
            except ApiRejected as exc:
                logger.info("due runs cannot be counted", extra={**_names(part), "error": str(exc)})
        return found


def _names(offer: Offer) -> dict[str, object]:
    return {"pools": offer.pools} if offer.backend == "prefect3" else {"labels": list(offer.labels)}


def _by_pool(offer: Offer) -> Sequence[Offer]:
    """The offer, pool by pool."""
    if len(offer.pools) <= 1:
        return [offer]
    return [
        replace(offer, pools=(pool,), pool_ids=(pool_id,))
        for pool, pool_id in zip(offer.pools, offer.pool_ids, strict=True)
    ]
