"""Status: the command `flowfleet status`."""

import json

import click

from flowfleet.commands.top import watch
from flowfleet.commands.worker_control import open_ledger
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.status import status
from flowfleet.monitor.tables import console
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings


@click.command("status", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a form that stays.")
@click.option("--watch", "live", is_flag=True, help="Live, as flowfleet top.")
@options(CommonSettings, level="WARNING", unused=REDIS_ALONE)
def status_command(settings: CommonSettings, *, as_json: bool, live: bool) -> None:
    """Show queues, workers and runs of the fleet.

    \b
    flowfleet status                what waits, what runs, and where
    flowfleet status --watch        the same, live
    flowfleet status --json         for programs
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        if live:
            watch(ledger, console())
        elif as_json:
            click.echo(json.dumps(take_snapshot(ledger).to_json(), indent=2))
        else:
            out = console()
            out.print(status(take_snapshot(ledger), width=out.width))
