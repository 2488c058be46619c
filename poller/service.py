"""Service: one poller, built from its parts, from the first election to its last log line."""

import ctypes
import gc
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from flowfleet.api.client import ApiClient, Mark
from flowfleet.errors import LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.ledger import Ledger
from flowfleet.monitor.metrics import LedgerCollector
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.page.startup import StartupPage
from flowfleet.retry import RetrySchedule
from flowfleet.settings.classes import PollerSettings
from poller import banner
from poller.capacity import OfferFilter
from poller.claiming import Claimer
from poller.hints_inbox import HintsInbox
from poller.leader import Leadership, LeadershipThread
from poller.listing import Clock, Lister
from poller.loop import Loop
from poller.metrics import PollerMetrics
from poller.pace import Pace
from poller.page import PollerHealth, handlers
from poller.presence import Presence
from poller.progress import Progress
from poller.rebuild import Gatekeeper, Sweep
from poller.reconcile import Reconciler
from poller.reinstate import Reinstater
from poller.unfit import UnfitRuns

logger = logging.getLogger(__name__)

CLOCK = Clock(monotonic=time.monotonic, wall=time.time)


@dataclass(frozen=True, kw_only=True)
class PollerParts:
    """The parts of a poller, as its command or a test has made them."""

    settings: PollerSettings
    api: ApiClient
    ledger: Ledger
    inbox: HintsInbox
    api_outage: RetrySchedule
    publish: Callable[[Message], None]
    failpoints: Failpoints
    metrics: PollerMetrics


class PollerService:
    """The whole poller; `run` blocks until its loop has ended."""

    def __init__(self, parts: PollerParts) -> None:
        self._parts = parts
        settings, ledger = parts.settings, parts.ledger
        self._mark = Mark(fleet=settings.fleet)
        self._progress = Progress(CLOCK.monotonic)
        self._offer_filter = OfferFilter(pools=settings.pools, work_queues=settings.work_queues, labels=settings.labels)
        self.leadership = Leadership(
            ledger.gate,
            name=settings.name,
            host=settings.host,
            nonce=uuid.uuid4().hex,
            lease=settings.lease,
            leader_seconds=settings.leader_seconds,
            clock=CLOCK.monotonic,
        )
        self.presence = Presence(
            parts.api, ledger.roster, fleet=settings.fleet, offer_filter=self._offer_filter, clock=CLOCK.monotonic
        )
        self.loop = self._loop()
        self.health = PollerHealth(self.loop, self.leadership, self._progress)
        self._leadership_thread = LeadershipThread(
            self.leadership,
            outage=self.loop.redis_outage,
            changed=lambda: parts.inbox.put("term"),
            working=self.health.alive,
        )

    def _loop(self) -> Loop:
        parts = self._parts
        settings, api, ledger = parts.settings, parts.api, parts.ledger
        claimer, reconciler = self._claimer_and_reconciler()
        sweep, gatekeeper = self._sweep_and_gatekeeper()
        return Loop(
            backend=api.backend,
            claims=ledger.claims,
            roster=ledger.roster,
            leadership=self.leadership,
            claimer=claimer,
            reconciler=reconciler,
            sweep=sweep,
            gatekeeper=gatekeeper,
            presence=self.presence,
            lister=Lister(api.backlog, self.presence, clock=CLOCK, metrics=parts.metrics),
            reinstater=Reinstater(
                api,
                ledger.claims,
                mark=self._mark,
                metrics=parts.metrics,
                clock=CLOCK.monotonic,
                progressed=self._progress.note,
            ),
            unfit=UnfitRuns(
                api, clock=CLOCK, cloud_logs=settings.cloud_logs, skew_seconds=lambda: self.presence.skew_seconds
            ),
            inbox=parts.inbox,
            clock=CLOCK,
            metrics=parts.metrics,
            offer_filter=self._offer_filter,
            redis_outage=RetrySchedule("Redis", CLOCK.monotonic),
            api_outage=parts.api_outage,
            progress=self._progress,
            pace=Pace.of(api.traits, idle_seconds=settings.idle_seconds),
            max_polls=settings.max_polls,
            tidy=return_free_memory,
        )

    def _claimer_and_reconciler(self) -> tuple[Claimer, Reconciler]:
        """The parts that move claims."""
        parts = self._parts
        settings, ledger = parts.settings, parts.ledger
        claimer = Claimer(
            parts.api.claims,
            ledger.claims,
            parts.publish,
            mark=self._mark,
            policy=settings.on_lost_run,
            traits=parts.api.traits,
            failpoints=parts.failpoints,
            metrics=parts.metrics,
            progressed=self._progress.note,
        )
        reconciler = Reconciler(
            parts.api.ends,
            ledger.claims,
            ledger.roster,
            claimer,
            mark=self._mark,
            failpoints=parts.failpoints,
            traits=parts.api.traits,
            metrics=parts.metrics,
            clock=CLOCK.monotonic,
            progressed=self._progress.note,
            queued_seconds=settings.queued_seconds,
            ttl_seconds=settings.lease.ttl_seconds,
        )
        return claimer, reconciler

    def _sweep_and_gatekeeper(self) -> tuple[Sweep, Gatekeeper]:
        """The parts that compare the ledger with the API."""
        parts = self._parts
        lease = parts.settings.lease
        sweep = Sweep(
            parts.api,
            parts.ledger.claims,
            mark=self._mark,
            failpoints=parts.failpoints,
            metrics=parts.metrics,
            clock=CLOCK.monotonic,
        )
        gatekeeper = Gatekeeper(
            parts.ledger.gate,
            sweep,
            failpoints=parts.failpoints,
            clock=CLOCK.monotonic,
            wait_seconds=lease.ttl_seconds + lease.renew_seconds,
        )
        return sweep, gatekeeper

    def poke(self) -> None:
        """Poll now; the hint also goes to the fleet, so that the leader polls if this poller does not lead."""
        self._parts.inbox.put("poke")
        try:
            self._parts.ledger.hints.publish("poke", "")
        except LedgerError as exc:
            logger.debug("poke not passed on", extra={"error": str(exc)})

    def run(self, startup_page: StartupPage) -> None:
        """Show the page, tend the lead, and make rounds until the loop ends."""
        parts, settings = self._parts, self._parts.settings
        parts.metrics.registry.register(
            LedgerCollector(lambda: take_snapshot(parts.ledger), lambda: self.leadership.term is not None)
        )
        startup_page.show(handlers(self.health, parts.metrics, self.poke))
        subscription = parts.ledger.hints.listen(lambda kind, _: parts.inbox.put(kind))
        self._leadership_thread.start()
        return_free_memory()
        names = {"identity": settings.identity, "fleet": settings.fleet, "pid": os.getpid()}
        logger.info("poller started", extra=names)
        if parts.api.traits.greets:
            banner.greet(settings.identity, settings.labels)
        try:
            self.loop.run()
        finally:
            self._leadership_thread.stop()
            subscription.close()
            startup_page.close()
        logger.info("poller ended", extra={"identity": settings.identity, "polls": self.loop.polls})


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
