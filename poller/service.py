"""Service: one poller, built from its parts, from the first election to its last log line."""

import ctypes
import gc
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.api.client import ApiClient, Mark
from flowfleet.api.transport.contact import Contact
from flowfleet.errors import FleetError, LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.ledger import Ledger
from flowfleet.ledger.api_troubles import LEADER, TroubleTeller
from flowfleet.ledger.ledger_id import new_call
from flowfleet.monitor.metrics import LedgerCollector
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.page.startup import StartupPage
from flowfleet.retry import RetrySchedule
from flowfleet.settings.classes import PollerSettings
from poller import banner
from poller.cancellation import Cancellation, CancellationThread, quiet_outage
from poller.capacity import OfferFilter
from poller.claiming import Claimer
from poller.departure import Departure
from poller.hints_inbox import HintsInbox
from poller.leader import Leadership, LeadershipThread
from poller.lister import Lister
from poller.listing import Clock
from poller.loop import Loop
from poller.lost import LostRuns
from poller.lost_reports import LostReports
from poller.metrics import PollerMetrics
from poller.pace import Pace
from poller.page import PollerHealth, handlers
from poller.presence import Presence
from poller.progress import Progress
from poller.rebuild import Gatekeeper, Sweep
from poller.reconcile import Reconciler
from poller.reinstate import Reinstater
from poller.restore import Restorer
from poller.silence import SilenceWatch
from poller.unfit import UnfitRuns

logger = logging.getLogger(__name__)

CLOCK = Clock(monotonic=time.monotonic, wall=time.time)


@dataclass(kw_only=True)
class PollerService:
    """The whole poller, put together from what its command or a test has made; `run` blocks until its loop ends."""

    settings: PollerSettings
    api: ApiClient
    ledger: Ledger
    inbox: HintsInbox
    api_outage: RetrySchedule
    publish: Callable[[Message], None]
    failpoints: Failpoints
    metrics: PollerMetrics
    #: that of the client's session
    contact: Contact = field(default_factory=Contact)
    #: whether this is the poller inside `flowfleet leave`
    substitute: bool = False
    #: see `Loop`
    awaits_workers: bool = False

    def __post_init__(self) -> None:
        settings, ledger = self.settings, self.ledger
        self._mark = Mark(fleet=settings.fleet)
        self._progress = Progress(CLOCK.monotonic)
        self._offer_filter = OfferFilter(pools=settings.pools, work_queues=settings.work_queues, labels=settings.labels)
        self.leadership = Leadership(
            ledger.gate,
            name=settings.own_name,
            host=settings.host,
            nonce=uuid.uuid4().hex,
            lease=settings.lease,
            leader_seconds=settings.leader_seconds,
            clock=CLOCK.monotonic,
        )
        self.presence = Presence(
            self.api, ledger.roster, fleet=settings.fleet, offer_filter=self._offer_filter, clock=CLOCK.monotonic
        )
        tell = TroubleTeller(store=self.ledger.store, part=LEADER).tell
        self._silence_watch = SilenceWatch(
            lambda: self.contact.trouble if self.leadership.term is not None else None, tell
        )
        self.loop = self._loop(tell)
        self.health = PollerHealth(self.loop, self.leadership, self._progress)
        self._leadership_thread = LeadershipThread(
            self.leadership,
            outage=self.loop.redis_outage,
            changed=lambda: self.inbox.put("term"),
            working=self.health.alive,
        )
        self._cancellation = CancellationThread(
            Cancellation(
                self.api.orders,
                self.api.ends,
                ledger.claims,
                traits=self.api.traits,
                failpoints=self.failpoints,
                clock=CLOCK.monotonic,
            ),
            leads=lambda: self.leadership.term is not None,
            outages=(quiet_outage("the Prefect API"), quiet_outage("Redis")),
        )

    def _loop(self, tell_api: Callable[[FleetError | None], None]) -> Loop:
        settings, api, ledger = self.settings, self.api, self.ledger
        claimer, reconciler = self._claimer_and_reconciler()
        sweep, gatekeeper = self._sweep_and_gatekeeper()
        return Loop(
            backend=api.backend,
            claims=ledger.claims,
            roster=ledger.roster,
            leadership=self.leadership,
            claimer=claimer,
            reconciler=reconciler,
            lost=self._lost_runs(),
            sweep=sweep,
            gatekeeper=gatekeeper,
            restorer=self._restorer(),
            presence=self.presence,
            lister=Lister(api.backlog, self.presence, clock=CLOCK, metrics=self.metrics),
            reinstater=Reinstater(
                api,
                ledger.claims,
                mark=self._mark,
                metrics=self.metrics,
                clock=CLOCK.monotonic,
                progressed=self._progress.note,
            ),
            unfit=UnfitRuns(
                api, clock=CLOCK, cloud_logs=settings.cloud_logs, skew_seconds=lambda: self.presence.skew_seconds
            ),
            departure=Departure(
                gate=ledger.gate,
                claims=ledger.claims,
                roster=ledger.roster,
                leadership=self.leadership,
                reconciler=reconciler,
                sweep=sweep,
                progress=self._progress,
                failpoints=self.failpoints,
                clock=CLOCK.monotonic,
                substitute=self.substitute,
            ),
            inbox=self.inbox,
            clock=CLOCK,
            metrics=self.metrics,
            offer_filter=self._offer_filter,
            redis_outage=RetrySchedule("Redis", CLOCK.monotonic, longest_seconds=5.0),
            api_outage=self.api_outage,
            progress=self._progress,
            pace=Pace.of(api.traits, idle_seconds=settings.idle_seconds),
            max_polls=settings.max_polls,
            awaits_workers=self.awaits_workers,
            tidy=return_free_memory,
            tell_api=tell_api,
        )

    def _claimer_and_reconciler(self) -> tuple[Claimer, Reconciler]:
        """The parts that move claims."""
        settings, ledger = self.settings, self.ledger
        claimer = Claimer(
            self.api.claims,
            ledger.claims,
            self.publish,
            mark=self._mark,
            policy=settings.on_lost_run,
            max_attempts=settings.max_attempts,
            traits=self.api.traits,
            failpoints=self.failpoints,
            metrics=self.metrics,
            new_call=lambda: new_call(self.leadership.ledger),
            progressed=self._progress.note,
        )
        reconciler = Reconciler(
            self.api.ends,
            ledger.claims,
            ledger.roster,
            claimer,
            mark=self._mark,
            failpoints=self.failpoints,
            traits=self.api.traits,
            metrics=self.metrics,
            clock=CLOCK.monotonic,
            progressed=self._progress.note,
            queued_seconds=settings.queued_seconds,
            ttl_seconds=settings.lease.ttl_seconds,
        )
        return claimer, reconciler

    def _restorer(self) -> Restorer:
        """The part that makes claims again that Redis has lost."""
        api, ledger = self.api, self.ledger
        return Restorer(
            api.life,
            api.ends,
            ledger.claims,
            ledger.gate,
            fleet=self.settings.fleet,
            metrics=self.metrics,
            progressed=self._progress.note,
        )

    def _lost_runs(self) -> LostRuns:
        """The part that watches what has started."""
        api, claims = self.api, self.ledger.claims
        reports = LostReports(
            api.ends,
            claims,
            self.ledger.gate,
            mark=self._mark,
            traits=api.traits,
            failpoints=self.failpoints,
            metrics=self.metrics,
            clock=CLOCK.monotonic,
            ttl_seconds=self.settings.lease.ttl_seconds,
            progressed=self._progress.note,
        )
        return LostRuns(
            claims,
            api.life,
            reports,
            fleet=self.settings.fleet,
            failpoints=self.failpoints,
            clock=CLOCK.monotonic,
            wall=CLOCK.wall,
            lease=self.settings.lease,
            runs_beat=api.traits.runs_beat,
        )

    def _sweep_and_gatekeeper(self) -> tuple[Sweep, Gatekeeper]:
        """The parts that compare the ledger with the API."""
        lease = self.settings.lease
        sweep = Sweep(
            self.api,
            self.ledger.claims,
            mark=self._mark,
            failpoints=self.failpoints,
            metrics=self.metrics,
            clock=CLOCK.monotonic,
        )
        gatekeeper = Gatekeeper(
            self.ledger.gate,
            sweep,
            failpoints=self.failpoints,
            clock=CLOCK.monotonic,
            wait_seconds=lease.ttl_seconds + lease.renew_seconds,
        )
        return sweep, gatekeeper

    def poke(self) -> None:
        """Poll now; the hint also goes to the fleet, so that the leader polls if this poller does not lead."""
        self._heard("poke")
        try:
            self.ledger.hints.publish("poke", "")
        except LedgerError as exc:
            logger.debug("poke not passed on", extra={"error": str(exc)})

    def _heard(self, kind: str) -> None:
        """Act on a hint: the loop looks for what is due, and the other thread for what is to be cancelled."""
        if kind != "cancel":
            self.inbox.put(kind)
        if kind in ("cancel", "poke"):
            self._cancellation.hurry()

    def run(self, startup_page: StartupPage) -> None:
        """Show the page and work until the end."""
        settings = self.settings
        self.metrics.registry.register(
            LedgerCollector(lambda: take_snapshot(self.ledger), lambda: self.leadership.term is not None)
        )
        startup_page.show(handlers(self.health, self.metrics, self.poke))
        return_free_memory()
        names = {"identity": settings.identity, "fleet": settings.fleet, "pid": os.getpid()}
        logger.info("poller started", extra=names)
        if self.api.traits.greets:
            banner.greet(settings.identity, settings.labels)
        try:
            self.work()
        finally:
            startup_page.close()
        ended = {"identity": settings.identity, "polls": self.loop.polls, **self.loop.departure.left()}
        logger.log(logging.WARNING if "not_given_back" in ended else logging.INFO, "poller ended", extra=ended)

    def work(self) -> None:
        """Listen to hints, tend the lead, and make rounds until the loop ends."""
        subscription = self.ledger.hints.listen(lambda kind, _: self._heard(kind))
        self._leadership_thread.start()
        self._cancellation.start()
        self._silence_watch.start()
        try:
            self.loop.run()
        finally:
            self._silence_watch.stop()
            self._cancellation.stop()
            self._leadership_thread.stop()
            subscription.close()


def return_free_memory() -> None:
    """Collect, and let the C library return free memory: a third of the imports' memory is only freed, not returned.

    Where the C library has no such call (macOS, musl) this is a plain collection.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
