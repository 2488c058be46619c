"""Command line: `poller start` waits for Redis and the API, and runs a poller."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from flowfleet import ledger as ledgers
from flowfleet import logs
from flowfleet.api.client import ApiClient
from flowfleet.api.connect import Connector
from flowfleet.api.prefect1 import agent_config
from flowfleet.api.transport.contact import Contact
from flowfleet.api.unused import tell_unused
from flowfleet.commands.install import command as install_command
from flowfleet.commands.program import Group, run
from flowfleet.errors import ApiUnavailable, LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.api_troubles import STARTING, TroubleTeller
from flowfleet.local import lifeline
from flowfleet.page.startup import StartupPage
from flowfleet.retry import Retry, RetrySchedule
from flowfleet.settings.classes import PollerSettings
from flowfleet.settings.click_options import SettingsCommand, options
from flowfleet.settings.secret_files import SecretFiles
from flowfleet.signals import ReloadOnSighup
from poller.hints_inbox import HintsInbox
from poller.metrics import PollerMetrics
from poller.service import PollerService
from poller.shutdown import PollerShutdown
from poller.silence import SilenceWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowfleet.broker import Publisher
    from flowfleet.ledger.login import Login
    from flowfleet.ledger.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ConnectedApi:
    """An API that has answered: its client, its clock's skew, and our settings with Prefect's own filled in."""

    api: ApiClient
    settings: PollerSettings
    skew_seconds: float


def publisher(settings: PollerSettings, login: Login) -> Publisher:
    """The publisher that sends messages into the Celery queues."""
    from flowfleet import broker  # noqa: PLC0415 - Celery is heavy, and `poller --help` needs none of it

    broker.take_off_celery_variables(os.environ)
    return broker.Publisher(broker.make_app(settings.redis, fleet=settings.fleet, login=login))


def connect_api(connector: Connector, settings: PollerSettings) -> ConnectedApi:
    """Connect to the API: ask who answers, and apply the agent config that it keeps for this agent."""
    api = connector.open()
    info = api.probe()
    logger.info("API found", extra={"backend": info.backend, "version": info.version})
    settings = agent_config.applied(connector.defaults(settings), api)
    tell_unused(settings, info.backend)
    return ConnectedApi(api=connector.client_for(settings), settings=settings, skew_seconds=info.skew_seconds)


def wait_for_api(
    connect: Callable[[], ConnectedApi], retry: Retry, outage: RetrySchedule, contact: Contact, store: Store
) -> ConnectedApi:
    """Wait for the API, and tell the fleet meanwhile that this poller does: it is seen nowhere else yet."""
    watch = SilenceWatch(lambda: outage.error or contact.trouble, TroubleTeller(store=store, part=STARTING).tell)
    watch.start()
    try:
        return replace(retry, schedule=lambda *_, **__: outage).ask("the Prefect API", connect)
    finally:
        watch.stop()


def poll(settings: PollerSettings, *, awaits_workers: bool = False) -> int:
    """Run a poller until it is told to end; return its exit code. For `awaits_workers` see `Loop`."""
    failpoints = Failpoints.from_environment(os.environ)
    inbox = HintsInbox()
    stop = PollerShutdown(inbox)
    stop.install()
    api_outage = RetrySchedule("the Prefect API", wake=partial(inbox.put, "poke"))
    reload = ReloadOnSighup(api_outage.hurry)
    reload.install()
    secrets = SecretFiles(settings)
    contact = Contact()
    connector = Connector(settings, os.environ, failpoints=failpoints, contact=contact)
    startup_page = StartupPage(secrets.page_token)
    startup_page.open(connector.defaults(settings).agent_address)
    ledger = ledgers.connect(settings.redis, settings.fleet, login=secrets.login)
    retry = Retry(wait=inbox.wait, stopped=lambda: stop.asked)
    try:
        with startup_page.waiting_for("Redis"):
            retry.ask("Redis", ledger.check)
            retry.ask("Redis", ledger.gate.withdraw_leave)
        if stop.asked:
            return 0
        reload.serve(connector, secrets)
        with startup_page.waiting_for("the Prefect API"):
            retry = replace(retry, limit_seconds=0.0 if settings.require_api else None)
            connected = wait_for_api(lambda: connect_api(connector, settings), retry, api_outage, contact, ledger.store)
    except (LedgerUnavailable, ApiUnavailable):
        if stop.asked:
            return 0
        raise  # --require-api
    settings = connected.settings
    startup_page.open(settings.agent_address)  # an agent config at the API may name another address
    logs.set_level(settings.log_level)
    settings.tell_identity()
    service = PollerService(
        settings=settings,
        api=connected.api,
        ledger=ledger,
        inbox=inbox,
        api_outage=api_outage,
        contact=contact,
        publish=publisher(settings, secrets.login).publish,
        failpoints=failpoints,
        metrics=PollerMetrics(),
        awaits_workers=awaits_workers,
    )
    service.presence.note_clock(connected.skew_seconds)
    stop.serve(stop=service.loop.stop, busy=lambda: service.loop.busy, last=service.loop.departure.last_words)
    if stop.asked:  # while the service was built
        return 0
    service.run(startup_page)
    return 0


@click.group(cls=Group)
@click.version_option(package_name="flowfleet", prog_name="poller")
def program() -> None:
    """Claim flow runs from the Prefect API and queue them in Redis.

    \b
    poller start                    for all pools that live workers offer
    poller start --help             its options
    poller install --for systemd    print a unit that starts it
    """  # noqa: D301 - click reads the escape


@program.command(cls=SettingsCommand)
@options(PollerSettings, command="poller")
def start(settings: PollerSettings) -> int:
    """Start a poller. One leads the fleet, further ones stand by.

    \b
    poller start
    poller start --api http://HOST:4200/api --redis redis://HOST:6379/0
    poller start --backend prefect1 --api http://HOST:4200
    poller start --agent-address http://127.0.0.1:8080
    """  # noqa: D301 - click reads the escape
    # the poller of a Python agent comes before that agent's worker is ready, and may have a single poll
    return poll(settings, awaits_workers=lifeline.watch(os.environ))


program.add_command(install_command(PollerSettings, "poller"))


def main() -> None:
    """Run the `poller` command, and exit with its code."""
    sys.exit(run(program, name="poller"))
