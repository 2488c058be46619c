"""Presence: what the API shows of the fleet, the routes that the fleet learns there, and the server's clock."""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from flowfleet.api import traits
from flowfleet.api.client import ApiClient
from flowfleet.api.life import shown_name
from flowfleet.errors import ApiRejected, SettingsError
from flowfleet.flow_run import Offer, Route
from flowfleet.ledger.roster import Roster
from poller.capacity import ListingPlan, OfferFilter, left_over, whole_pools

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 60.0
#: how often the queues of a pool are asked for; where runs wait, other answers show a new or a missing one sooner
LEARN_SECONDS = 120.0
#: the shortest time between two such questions
LEARN_GAP_SECONDS = 5.0
#: how often labels that no run has any more are looked for
TIDY_SECONDS = 600.0
#: labels of runs that were not seen for so long are unlearned: nothing but runs tells which label sets there are
UNSEEN_SECONDS = 3600.0
#: after a longer pause between two listings nobody knows which runs came and went in it
GAP_SECONDS = 300.0
#: the Date header has whole seconds only: a smaller skew says nothing
SKEW_NOISE_SECONDS = 1.5
SKEW_WARN_SECONDS = 5.0


@dataclass
class Presence:
    """Shows the fleet as online, learns routes, and knows how far the server's clock is from ours."""

    api: ApiClient
    roster: Roster
    fleet: str
    offer_filter: OfferFilter
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._name = shown_name(self.fleet)
        self.skew_seconds = 0.0
        self._shown: dict[str, float] = {}
        self._learned: dict[Offer, float] = {}
        self._routes: set[Route] = set()
        #: when each route was listed last, where only runs tell of it; since when listings have come without a gap, and
        #: the last of them
        self._seen: dict[Route, float] = {}
        self._watching_since, self._listed_at = float("inf"), float("-inf")
        self._tidied = 0.0
        self._own: Offer | None = None
        self._own_at: float | None = None

    def new_term(self) -> None:
        """Show and learn everything anew: what was shown and seen under other leaders is not known here."""
        self._shown.clear()
        self._learned.clear()
        self._routes.clear()
        self._seen.clear()
        self._watching_since, self._listed_at = float("inf"), float("-inf")

    def note_clock(self, skew_seconds: float) -> None:
        """Take over the skew of the API's clock that an answer has shown; warn when it is large and new."""
        skew = skew_seconds if abs(skew_seconds) > SKEW_NOISE_SECONDS else 0.0
        if abs(skew) >= SKEW_WARN_SECONDS and abs(skew - self.skew_seconds) >= SKEW_WARN_SECONDS:
            logger.warning(
                "the clock of the Prefect API differs from this machine's: the API's is used",
                extra={"skew_seconds": round(skew, 1)},
            )
        self.skew_seconds = skew

    def check_clock(self) -> None:
        """Probe the API again for the skew of its clock."""
        try:
            self.note_clock(self.api.probe().skew_seconds)
        except ApiRejected as exc:
            logger.warning("the Prefect API cannot be used as it is now", extra={"error": str(exc)})

    def show(self, online: Collection[str]) -> None:
        """Show the fleet, each minute, as online in pools that a live worker offers, offline where none does any more.

        A worker that only restarts is back before the minute is over, and no automation of the user sees it.
        """
        now = self.clock()
        for pool in online:
            if now >= self._shown.get(pool, 0.0):
                try:
                    self.api.presence.online(pool, self._name, HEARTBEAT_SECONDS)
                except ApiRejected as exc:
                    logger.warning("pool takes no heartbeat", extra={"pool": pool, "error": str(exc)})
                self._shown[pool] = now + HEARTBEAT_SECONDS
        for pool in [pool for pool, until in self._shown.items() if pool not in online and now >= until]:
            try:
                self.api.presence.offline(pool, self._name)
            except ApiRejected as exc:
                logger.info("pool could not be told that no worker is left", extra={"pool": pool, "error": str(exc)})
            del self._shown[pool]

    def learn(self, offers: Iterable[Offer]) -> None:
        """Learn, every two minutes, which work queues the offered pools have, and which they have no longer.

        That is all queues of a pool: one that no worker takes is shown, too.
        """
        if not self.api.traits.routes_from_runs:
            for pool in dict.fromkeys(pool for offer in offers for pool in whole_pools(offer)):
                self._learn(pool)
        self._unlearn_labels()

    def _learn(self, pool: Offer) -> None:
        now, learned = self.clock(), self._learned.get(pool, float("-inf"))
        if now - learned < (LEARN_GAP_SECONDS if self.api.presence.changed(pool) else LEARN_SECONDS):
            return
        try:
            routes = [route for route in self.api.presence.routes(pool) if self.offer_filter.admits(route)]
            self.know(routes)
            self._unlearn(pool, routes)
        except ApiRejected as exc:
            logger.warning("routes of a pool cannot be read", extra={"pools": pool.pools, "error": str(exc)})
        self._learned[pool] = now

    def listed(self, routes: Collection[Route]) -> None:
        """Learn the routes of one listing, and note when they were seen."""
        now = self.clock()
        if now - self._listed_at > GAP_SECONDS:
            self._watching_since = now
        self._listed_at = now
        if self.api.traits.routes_from_runs:
            self._seen.update(dict.fromkeys(routes, now))
        self.know(routes)

    def _unlearn_labels(self) -> None:
        """Unlearn label sets that no run has had for an hour; one with a claim stays, any comes back with a run."""
        now = self.clock()
        if not self.api.traits.routes_from_runs or now - self._tidied < TIDY_SECONDS:
            return
        self._tidied = now
        gone = [
            route
            for route in self.roster.routes()
            if traits.of(route.backend).routes_from_runs
            and now - max(self._seen.get(route, 0.0), self._watching_since) >= UNSEEN_SECONDS
        ]
        self.roster.unlearn(gone)
        self._routes.difference_update(gone)
        for route in gone:
            self._seen.pop(route, None)

    def know(self, routes: Iterable[Route]) -> None:
        """Write routes into the ledger that were not known, so that workers begin to serve them."""
        new = set(routes) - self._routes
        if new:
            self.roster.know(sorted(new))
            self._routes |= new

    def _unlearn(self, pool: Offer, there: Collection[Route]) -> None:
        """Unlearn the pool's routes that the API has no longer; else those of each queue ever made would stay."""
        gone = [route for route in self.roster.routes() if pool.serves(route) and route not in there]
        if gone:
            self.roster.unlearn(gone)
            self._routes.difference_update(gone)

    def idle_offers(self, plan: ListingPlan) -> tuple[Offer, ...]:
        """The offers to count only: those of workers that are away, and our own `--pool` when nobody offers it."""
        own = self._own_offer()
        if own is None:
            return plan.idle
        return (*plan.idle, *left_over(own, (*plan.offers, *plan.idle)))

    def _own_offer(self) -> Offer | None:
        if not self.offer_filter.pools or self.api.traits.by_labels:
            return None
        now = self.clock()
        if self._own is None and (self._own_at is None or now - self._own_at >= HEARTBEAT_SECONDS):
            self._own_at = now
            named = Offer(
                backend=self.api.backend, pools=self.offer_filter.pools, work_queues=self.offer_filter.work_queues
            )
            try:
                self._own = self.api.presence.resolve(named, create=False)
            except (ApiRejected, SettingsError) as exc:
                # a pool that does not exist yet, or is of a type that we cannot serve: it may be another tomorrow
                logger.warning("pool of --pool cannot be found yet", extra={"pools": named.pools, "error": str(exc)})
        return self._own
