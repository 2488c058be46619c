"""Logs: the command `flowfleet logs`, a run's output."""

import os
import sys

import click

from flowfleet.commands.worker_control import open_ledger
from flowfleet.monitor import run_output, runs
from flowfleet.settings.classes import LogsSettings
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options

_RECORDS = 10_000


@click.command("logs", cls=SettingsCommand)
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@options(LogsSettings, level="WARNING", unused=NO_PART)
def logs_command(settings: LogsSettings, run_id: str, *, follow: bool) -> None:
    """Show what a run has printed."""
    with open_ledger(settings) as ledger:
        live, records = ledger.claims.live(), ledger.claims.records(limit=_RECORDS)
        claims = {claim.run_id: claim.worker for claim in live}
        gone = {str(record["run_id"]): record.get("worker") for record in reversed(records)}
        run_id = runs.whole_id(run_id, runs.names(records, live))
        folder = settings.state_dir or run_output.state_home(os.environ)
        log = run_output.local_log(folder, run_id)
        if log:
            pieces = run_output.read_local(log, follow=follow, ended=lambda: ledger.claims.get(run_id) is None)
        else:
            worker = claims.get(run_id) or gone.get(run_id)
            address = next((row.address for row in ledger.roster.rows() if row.worker == worker), None)
            if not address:
                where = f"the worker {worker} has no --agent-address" if worker else "no worker of this fleet had it"
                raise run_output.NoOutput(
                    f"The output of the run {run_id} is not below {folder} on this host, and {where}: "
                    "give the worker's --state-dir, or look on its host."
                )
            pieces = run_output.read_remote(address, run_id, follow=follow, token=settings.page_token)
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
