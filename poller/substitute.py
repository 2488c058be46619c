"""Substitute: the poller inside `flowfleet leave`, which claims nothing, and leads where no other poller does.

It stands by behind the leader, which follows the word itself; where that one dies on its way, or none was there, it
takes the lead: it marks silent workers, finishes what dead ones have left, and gives back what has not begun.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

from flowfleet.api.client import ApiClient
from flowfleet.commands.leave import LookAtSubstitute, SubstituteView
from flowfleet.failpoints import Failpoints
from flowfleet.ledger import Ledger
from flowfleet.ledger.login import Login
from flowfleet.retry import RetrySchedule
from flowfleet.settings.classes import PollerSettings
from flowfleet.settings.common import CommonSettings
from poller.cli import publisher
from poller.departure import GIVE_BACK_SECONDS
from poller.hints_inbox import HintsInbox
from poller.metrics import PollerMetrics
from poller.service import PollerService

NAME = "leave"


@contextmanager
def substitute(settings: CommonSettings, api: ApiClient, ledger: Ledger) -> Iterator[LookAtSubstitute]:
    """Run such a poller in a thread for as long as the block lasts, which may look at it. Raises `LedgerError`."""
    lease = ledger.gate.lease()  # it writes the numbers that hold in this fleet already
    common = {field.name: getattr(settings, field.name) for field in fields(CommonSettings)}
    given = PollerSettings(
        **common | {"name": NAME},
        lease_seconds=lease.ttl_seconds,
        renew_seconds=lease.renew_seconds,
        adopt_grace=lease.grace_seconds,
    )
    inbox = HintsInbox()
    service = PollerService(
        settings=given,
        api=api,
        ledger=ledger,
        inbox=inbox,
        api_outage=RetrySchedule("the Prefect API", wake=partial(inbox.put, "poke")),
        publish=publisher(given, Login(lambda: given.redis)).publish,
        failpoints=Failpoints.from_environment(os.environ),
        metrics=PollerMetrics(),
        substitute=True,
    )
    thread = threading.Thread(target=service.work, name="substitute", daemon=True)
    thread.start()
    try:
        yield lambda: _view(service)
    finally:
        service.loop.stop()
        inbox.put("stop")
        thread.join(GIVE_BACK_SECONDS)


def _view(service: PollerService) -> SubstituteView:
    leads = service.leadership.term is not None
    return SubstituteView(
        leads=leads, cleared=leads and service.loop.departure.cleared, standbys=service.leadership.standbys
    )
