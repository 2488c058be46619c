"""Explain: the command `flowfleet explain`."""

import json
import os
from dataclasses import asdict

import click
from rich.text import Text

from flowfleet.api.backlog import Place
from flowfleet.api.client import RunState, StateType
from flowfleet.api.connect import connect
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiError, SettingsError
from flowfleet.monitor import evidence, runs
from flowfleet.monitor import explain as explanations
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.tables import console
from flowfleet.printable import printable
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_RECORDS = 10_000


@click.command("explain", cls=SettingsCommand)
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options(CommonSettings, level="WARNING", unused=NO_PART)
def explain_command(settings: CommonSettings, run_id: str, *, as_json: bool) -> None:
    """Say why a run is, or is not, running: one sentence, then the evidence in short; --json has all of it.

    RUN is its name, its id, or the beginning of its id.

    \b
    flowfleet explain calm-otter
    flowfleet explain 0a1b2c3d --json
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        records = [dict(record) for record in ledger.claims.records(limit=_RECORDS)]
        snapshot = take_snapshot(ledger)
    known = runs.names(records, snapshot.claims)
    run_id = runs.whole_id(run_id, known)
    record = next((record for record in records if record.get("run_id") == run_id), None)
    at_api, place, trouble = _at_api(settings, run_id)
    explanation = explanations.explain(run_id, snapshot, record, at_api, place)
    if trouble:
        click.echo(f"The API could not be asked: {trouble}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=2, default=str))
        return
    click.echo(f"{printable(explanation.sentence)}\n")
    out = console()
    for line in evidence.lines(explanation, snapshot):
        out.print(Text(line), no_wrap=True, overflow="ellipsis")


def _at_api(settings: CommonSettings, run_id: str) -> tuple[RunState | None, Place | None, str]:
    """The run's state and place at the API, and why the API could not be asked, if so.

    Such an error does not end the command: the ledger's half of the answer stands alone.
    """
    try:
        api = connect(settings, os.environ)
        state = api.ends.states([run_id]).get(run_id)
        return state, api.backlog.place(run_id) if state and state.kind is StateType.SCHEDULED else None, ""
    except (ApiError, SettingsError) as error:
        return None, None, str(error)
