"""Command: `poller start` joins the poller's parts and runs them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import click

import flowfleet.api
import flowfleet.ledger
from flowfleet.api.client import ApiClient, Mark
from flowfleet.commands import Group, run
from flowfleet.errors import ApiUnavailable, LedgerError, LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Message
from flowfleet.hangup import Hangup
from flowfleet.monitor.metrics import LedgerCollector
from flowfleet.monitor.page import serve
from flowfleet.monitor.snapshot import take
from flowfleet.secret_files import SecretFiles
from flowfleet.settings import PollerSettings, options
from poller.bell import Bell
from poller.claim import Claimer
from poller.credit import Narrowing
from poller.know import Clock
from poller.leader import Leadership, Tender
from poller.lister import Lister
from poller.loop import Loop, Pace
from poller.memory import give_back
from poller.meters import Meters
from poller.outage import Outage
from poller.presence import Presence
from poller.reconcile import Reconciler
from poller.serve import Vitals, handlers
from poller.sweep import Gatekeeper, Sweep

if TYPE_CHECKING:
    from flowfleet.broker import Publisher
    from flowfleet.ledger import Ledger
    from flowfleet.login import Login

logger = logging.getLogger(__name__)

#: how long an orderly end waits for an answer of the API, and for that to a claim
STOP_SECONDS = 5.0
STOP_CLAIM_SECONDS = 60.0
CLOCK = Clock(monotonic=time.monotonic, wall=time.time)


class Stop:
    """SIGTERM and SIGINT: the first asks for an orderly end, the second cuts it short."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._then: list[Callable[[], None]] = []
        self.asked = False
        self._event = threading.Event()
        #: an end that takes too long asks this whether it may be cut short now, and does the other last
        self.busy: Callable[[], bool] = lambda: False
        self.last: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Take both signals, whatever a shell has set for them: a job in the background starts with SIGINT ignored."""
        threading.Thread(target=self._cut_short, name="stop", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def then(self, action: Callable[[], None]) -> None:
        """Do this when the end is asked for."""
        self._then.append(action)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        for action in self._then:
            action()
        self._bell.ring("stop")
        self._event.set()

    def _cut_short(self) -> None:
        """An API that hangs must not keep an orderly end waiting: what is left undone the next leader does."""
        self._event.wait()
        asked_at = time.monotonic()
        while (took := time.monotonic() - asked_at) < STOP_SECONDS or (self.busy() and took < STOP_CLAIM_SECONDS):
            time.sleep(0.1)
        logger.warning("ended without waiting for an answer any longer", extra={"waited_seconds": round(took, 1)})
        try:
            self.last()
        except LedgerError as exc:
            logger.warning("could not resign, a standby will notice", extra={"error": str(exc)})
        logging.shutdown()
        os._exit(0)


def publisher(settings: PollerSettings, login: Login) -> Publisher:
    """The way into the queues."""
    from flowfleet import broker  # noqa: PLC0415 - Celery is heavy, and `poller --help` needs none of it

    broker.take_off_celery_variables(os.environ)
    return broker.Publisher(broker.make_app(settings.redis, fleet=settings.fleet, login=login))


def build(
    settings: PollerSettings,
    *,
    api: ApiClient,
    ledger: Ledger,
    bell: Bell,
    publish: Callable[[Message], None],
    failpoints: Failpoints,
    meters: Meters,
) -> tuple[Loop, Leadership, Presence]:
    """Join the parts."""
    mark = Mark(fleet=settings.fleet)
    monotonic = CLOCK.monotonic
    lease = settings.lease
    narrowing = Narrowing(pools=settings.pools, work_queues=settings.work_queues, labels=settings.labels)
    leadership = Leadership(
        ledger.gate,
        name=settings.name,
        host=settings.host,
        nonce=uuid.uuid4().hex,
        lease=lease,
        patience_seconds=settings.leader_seconds,
        clock=monotonic,
    )
    claimer = Claimer(
        api,
        ledger.claims,
        publish,
        mark=mark,
        policy=settings.on_lost_run,
        failpoints=failpoints,
        meters=meters,
    )
    reconciler = Reconciler(
        api,
        ledger.claims,
        ledger.roster,
        claimer,
        mark=mark,
        failpoints=failpoints,
        meters=meters,
        clock=monotonic,
        queued_seconds=settings.queued_seconds,
        ttl_seconds=lease.ttl_seconds,
    )
    sweep = Sweep(api, ledger.claims, mark=mark, failpoints=failpoints, meters=meters)
    gatekeeper = Gatekeeper(
        ledger.gate,
        sweep,
        failpoints=failpoints,
        clock=monotonic,
        wait_seconds=lease.ttl_seconds + lease.renew_seconds,
    )
    presence = Presence(api, ledger.roster, fleet=settings.fleet, narrowing=narrowing, clock=monotonic)
    loop = Loop(
        api=api,
        claims=ledger.claims,
        roster=ledger.roster,
        leadership=leadership,
        claimer=claimer,
        reconciler=reconciler,
        sweep=sweep,
        gatekeeper=gatekeeper,
        presence=presence,
        lister=Lister(api, presence, clock=CLOCK, meters=meters),
        bell=bell,
        clock=CLOCK,
        meters=meters,
        narrowing=narrowing,
        redis_outage=Outage("Redis", monotonic),
        pace=Pace(idle_seconds=settings.idle_seconds),
        max_polls=settings.max_polls,
        tidy=give_back,
    )
    return loop, leadership, presence


def wait_for_api(api: ApiClient, presence: Presence, bell: Bell, stop: Stop, *, required: bool) -> bool:
    """Ask who answers until somebody does; False when the end was asked for first.

    Raises `ApiRejected` for what waiting cannot cure, and with `required` also `ApiUnavailable`.
    """
    outage = Outage("the Prefect API", CLOCK.monotonic)
    while not stop.asked:
        try:
            info = api.probe()
        except ApiUnavailable as exc:
            if required:
                raise
            outage.failed(exc)
            bell.wait(outage.wait_seconds())
            continue
        outage.over()
        presence.note_clock(info.skew_seconds)
        logger.info("API found", extra={"backend": info.backend, "version": info.version})
        return True
    return False


def wait_for_redis(settings: PollerSettings, login: Login, bell: Bell, stop: Stop) -> Ledger | None:
    """Connect until Redis answers; None when the end was asked for first. Raises `LedgerUnusable`."""
    outage = Outage("Redis", CLOCK.monotonic)
    while not stop.asked:
        try:
            ledger = flowfleet.ledger.connect(settings.redis, settings.fleet, login=login)
            ledger.check()
        except LedgerUnavailable as exc:
            outage.failed(exc)
            bell.wait(outage.wait_seconds())
            continue
        outage.over()
        return ledger
    return None


def poll(settings: PollerSettings) -> int:
    """Run a poller until it is told to end; its exit code."""
    failpoints = Failpoints.from_environment(os.environ)
    bell = Bell()
    stop = Stop(bell)
    stop.install()
    hangup = Hangup()
    hangup.install()
    meters = Meters()
    secrets = SecretFiles(settings)
    ledger = wait_for_redis(settings, secrets.login, bell, stop)
    if ledger is None:
        return 0
    api = flowfleet.api.connect(settings, os.environ)
    loop, leadership, presence = build(
        settings,
        api=api,
        ledger=ledger,
        bell=bell,
        publish=publisher(settings, secrets.login).publish,
        failpoints=failpoints,
        meters=meters,
    )
    stop.then(loop.stop)
    stop.busy = lambda: loop.claim_in_hand
    stop.last = leadership.resign

    def new_key() -> None:
        loop.hurry()
        bell.ring("poke")

    hangup.then = new_key
    hangup.serve(api, secrets)
    if not wait_for_api(api, presence, bell, stop, required=settings.require_api):
        return 0
    vitals = Vitals(loop, leadership, CLOCK.monotonic)
    meters.registry.register(LedgerCollector(lambda: take(ledger), lambda: leadership.term is not None))
    tender = Tender(leadership, outage=loop.redis_outage, changed=lambda: bell.ring("term"), working=vitals.working)

    def poke() -> None:
        bell.ring("poke")
        try:
            ledger.hints.publish("poke", "")  # whoever leads hears it, if this one does not
        except LedgerError as exc:
            logger.debug("poke not passed on", extra={"error": str(exc)})

    page = None
    if settings.agent_address:
        page = serve(settings.agent_address, handlers(vitals, meters, poke), secrets.page_token)
    listening = ledger.hints.listen(lambda kind, _: bell.ring(kind))
    tender.start()
    give_back()
    logger.info("poller started", extra={"identity": settings.identity, "fleet": settings.fleet, "pid": os.getpid()})
    try:
        loop.run()
    finally:
        tender.stop()
        listening.close()
        if page is not None:
            page.close()
    logger.info("poller ended", extra={"identity": settings.identity, "polls": loop.polls})
    return 0


@click.group(cls=Group)
@click.version_option(package_name="flowfleet", prog_name="poller")
def program() -> None:
    """Claim flow runs from the Prefect API and queue them in Redis.

    \b
    poller start                    for all pools that live workers offer
    poller start --help             its options
    """  # noqa: D301 - click reads the escape


@program.command()
@options(PollerSettings, command="poller")
def start(settings: PollerSettings) -> int:
    """Start a poller: one leads the fleet, further ones stand by.

    \b
    poller start
    poller start --api http://HOST:4200/api --redis redis://HOST:6379/0
    poller start --agent-address http://127.0.0.1:8080
    """  # noqa: D301 - click reads the escape
    return poll(settings)


def main() -> None:
    """The `poller` command."""
    sys.exit(run(program, name="poller"))
