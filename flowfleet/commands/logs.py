"""Logs: the command `flowfleet logs`, a run's output."""

import os
import sys
from pathlib import Path

import click

from flowfleet.api.connect import connect
from flowfleet.commands import chosen_run
from flowfleet.commands.chosen_run import HalfApi, NoSuchRun
from flowfleet.commands.worker_control import open_ledger
from flowfleet.flow_run import UUID
from flowfleet.ledger import Ledger
from flowfleet.monitor import run_output
from flowfleet.settings.classes import LogsSettings
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options


@click.command("logs", cls=SettingsCommand)
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@options(LogsSettings, level="WARNING", unused=NO_PART)
def logs_command(settings: LogsSettings, run_id: str, *, follow: bool) -> None:
    """Show what a run has printed.

    RUN is its name, its id, or a part of that which no other has. The API is asked only for a run that neither the
    fleet nor this host knows.

    \b
    flowfleet logs calm-otter -f
    flowfleet logs 0a1b2c3d --state-dir /var/lib/flowfleet
    """  # noqa: D301 - click reads the escape
    folder = settings.state_dir or run_output.state_home(os.environ)
    with open_ledger(settings) as ledger:
        run_id = _find(settings, run_id, ledger, folder)
        log = run_output.local_log(folder, run_id)
        if log:
            pieces = run_output.read_local(log, follow=follow, ended=lambda: ledger.claims.get(run_id) is None)
        else:
            pieces = run_output.read_remote(
                _address(ledger, run_id, folder), run_id, follow=follow, token=settings.page_token
            )
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


def _find(settings: LogsSettings, given: str, ledger: Ledger, folder: Path) -> str:
    if UUID.fullmatch(given.lower()):
        return given.lower()
    api = HalfApi(lambda: connect(settings, os.environ))
    try:
        return chosen_run.find(given, ledger, api.find, lambda: run_output.local_names(folder)).run_id
    except NoSuchRun as unknown:
        raise NoSuchRun(api.told(str(unknown))) from unknown


def _address(ledger: Ledger, run_id: str, folder: Path) -> str:
    """The page of the worker that has, or had, the run; raises `NoOutput` where there is none."""
    claim, records = ledger.claims.get(run_id), ledger.claims.records(limit=chosen_run.RECORDS)
    last = next((record.get("worker") for record in records if record.get("run_id") == run_id), None)
    worker = (claim.worker if claim else None) or last
    address = next((row.address for row in ledger.roster.rows() if row.worker == worker), None)
    if not address:
        where = f"the worker {worker} has no --agent-address" if worker else "no worker of this fleet had it"
        raise run_output.NoOutput(
            f"The output of the run {run_id} is not below {folder} on this host, and {where}: "
            "give the worker's --state-dir, or look on its host."
        )
    return address
