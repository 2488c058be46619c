"""Runs: the command `flowfleet runs`."""

import json

import click

from flowfleet.commands.worker_control import open_ledger
from flowfleet.monitor import runs
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.tables import console
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_RECORDS = 10_000


@click.command("runs", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state", metavar="STATE", help="Only claims in this state; `ended` is what is over.")
@click.option("--end", metavar="TEXT", help="Only those that have ended so: completed, failed, crashed, cancelled, …")
@click.option("--flow", metavar="TEXT", help="Only those whose flow has this in its name.")
@click.option("--deployment", metavar="TEXT", help="Only those whose deployment has this in its name.")
@click.option("--route", metavar="TEXT", help="Only those whose queue has this in its name.")
@click.option("--worker", metavar="NAME[@HOST]", help="Only those of this worker.")
@click.option("--since", metavar="SPAN", help="Only those of the last 90s, 10m, 2h or 1d.")
@options(CommonSettings, level="WARNING", unused=REDIS_ALONE)
def runs_command(
    settings: CommonSettings,
    *,
    as_json: bool,
    state: str | None,
    end: str | None,
    flow: str | None,
    deployment: str | None,
    route: str | None,
    worker: str | None,
    since: str | None,
) -> None:
    """List the runs of the fleet, also the ended ones of the last day. All filters take any case.

    \b
    flowfleet runs                          what runs, and what has ended
    flowfleet runs --end crashed --since 2h
    """  # noqa: D301 - click reads the escape
    wanted = runs.Wanted(
        state=runs.parse_state(state) if state else None,
        end=end,
        flow=flow,
        deployment=deployment,
        route=route,
        worker=worker,
        since_seconds=runs.parse_since(since) if since else None,
    )
    with open_ledger(settings) as ledger:
        snapshot = take_snapshot(ledger)
        records = ledger.claims.records(limit=_RECORDS)
    found = runs.collect(snapshot, records, wanted)
    if as_json:
        click.echo(json.dumps(runs.to_json(found), indent=2))
    elif found:
        out = console()
        out.print(runs.table(found, snapshot.at, out.width))
    else:
        click.echo(f"The fleet {settings.fleet} has no such run.")
