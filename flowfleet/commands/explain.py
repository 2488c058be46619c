"""Explain: the command `flowfleet explain`."""

import json
import os
from dataclasses import asdict

import click
from rich.text import Text

from flowfleet.api.backlog import Place
from flowfleet.api.client import ApiClient, RunState, StateType
from flowfleet.api.connect import connect
from flowfleet.commands import chosen_run
from flowfleet.commands.chosen_run import HalfApi, NoSuchRun
from flowfleet.commands.worker_control import open_ledger
from flowfleet.flow_run import UUID
from flowfleet.monitor import evidence
from flowfleet.monitor import explain as explanations
from flowfleet.monitor.explain import Explanation
from flowfleet.monitor.snapshot import Snapshot, take_snapshot
from flowfleet.monitor.tables import console
from flowfleet.printable import printable
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options
from flowfleet.settings.common import CommonSettings


@click.command("explain", cls=SettingsCommand)
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options(CommonSettings, level="WARNING", unused=NO_PART)
def explain_command(settings: CommonSettings, run_id: str, *, as_json: bool) -> None:
    """Say why a run is, or is not, running: one sentence, then the evidence in short; --json has all of it.

    RUN is its name, its id, or a part of that which no other has. Exit code 1 means that there is no such run.

    \b
    flowfleet explain calm-otter
    flowfleet explain 0a1b2c3d --json
    """  # noqa: D301 - click reads the escape
    api = HalfApi(lambda: connect(settings, os.environ))
    try:
        explanation, snapshot = _explain(settings, run_id, api)
    except NoSuchRun as unknown:
        sentence = api.told(str(unknown))
        if as_json:
            # null: half of the answer is not known
            found = None if api.trouble else False
            none = {"run_id": None, "given": run_id, "found": found, "sentence": sentence}
            click.echo(json.dumps(none, indent=2))
        raise NoSuchRun(sentence) from unknown
    if api.trouble:
        click.echo(f"The API could not be asked: {api.trouble}", err=True)
    if as_json:
        click.echo(json.dumps({**asdict(explanation), "found": True}, indent=2, default=str))
        return
    click.echo(f"{printable(explanation.sentence)}\n")
    out = console()
    for line in evidence.lines(explanation, snapshot):
        out.print(Text(line), no_wrap=True, overflow="ellipsis")


def _explain(settings: CommonSettings, given: str, api: HalfApi) -> tuple[Explanation, Snapshot]:
    """Explain the run that was given, and the fleet; raises `NoSuchRun`, also where nobody knows of a whole id."""
    whole = UUID.fullmatch(given.lower())
    with open_ledger(settings) as ledger:
        run_id = given.lower() if whole else chosen_run.find(given, ledger, api.find).run_id
        records = ledger.claims.records(limit=chosen_run.RECORDS)
        snapshot = take_snapshot(ledger)
    record = next((dict(record) for record in records if record.get("run_id") == run_id), None)
    state, place = api.ask(lambda client: _at_api(client, run_id)) or (None, None)
    explanation = explanations.explain(run_id, snapshot, record, state, place)
    if not explanation.evidence:
        at_api = "" if api.trouble else f"The API has no run {run_id}. "
        raise NoSuchRun(f"{at_api}{explanation.sentence}")
    return explanation, snapshot


def _at_api(api: ApiClient, run_id: str) -> tuple[RunState | None, Place | None]:
    """The run's state at the API, and where it waits there."""
    state = api.ends.states([run_id]).get(run_id)
    return state, api.backlog.place(run_id) if state and state.kind is StateType.SCHEDULED else None
