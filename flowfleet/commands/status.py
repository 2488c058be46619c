"""Status: the commands `flowfleet status` and `flowfleet top`."""

import json
import time

import click
from rich.console import Console, RenderableType
from rich.live import Live

from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import SettingsError
from flowfleet.ledger import Ledger
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.status import status
from flowfleet.monitor.tables import console
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_WATCH_SECONDS = 1.0


def _page(ledger: Ledger, out: Console) -> RenderableType:
    return status(take_snapshot(ledger), runs=max(5, out.height - 20), width=out.width)


def _watch(ledger: Ledger, out: Console) -> None:
    """Show the status anew each second until Ctrl-C."""
    if not out.is_terminal:
        raise SettingsError("A live view needs a terminal: use flowfleet status, or --json for programs.")
    with Live(_page(ledger, out), console=out, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_WATCH_SECONDS)
                live.update(_page(ledger, out), refresh=True)
        except KeyboardInterrupt:
            return


@click.command("status", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a form that stays.")
@click.option("--watch", is_flag=True, help="Show it anew each second.")
@options(CommonSettings, level="WARNING", unused=REDIS_ALONE)
def status_command(settings: CommonSettings, *, as_json: bool, watch: bool) -> None:
    """Show queues, workers and runs of the fleet.

    \b
    flowfleet status                what waits, what runs, and where
    flowfleet status --watch        the same, live
    flowfleet status --json         for programs
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        if watch:
            _watch(ledger, console())
        elif as_json:
            click.echo(json.dumps(take_snapshot(ledger).to_json(), indent=2))
        else:
            out = console()
            out.print(status(take_snapshot(ledger), width=out.width))


@click.command(cls=SettingsCommand)
@options(CommonSettings, level="WARNING", unused=REDIS_ALONE)
def top(settings: CommonSettings) -> None:
    """Watch the fleet live."""
    with open_ledger(settings) as ledger:
        _watch(ledger, console())
