"""Worker control: the commands that write to the ledger what an operator wants of a worker, which reads it there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click

from flowfleet import ledger as ledgers
from flowfleet.errors import FleetError, LedgerUnavailable
from flowfleet.ledger import Ledger
from flowfleet.ledger.roster import Roster, WorkerRow
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.status import console, workers_table
from flowfleet.settings.click_options import options
from flowfleet.settings.common import CommonSettings


@contextmanager
def open_ledger(settings: CommonSettings) -> Iterator[Ledger]:
    """The ledger for a command that does not wait for Redis; raises `LedgerUnavailable` when Redis does not answer."""
    ledger = ledgers.connect(settings.redis, settings.fleet)
    try:
        check_redis(ledger)
        yield ledger
    finally:
        ledger.close()


def check_redis(ledger: Ledger) -> None:
    """Check that Redis answers; raises `LedgerUnavailable` with the remedy, for commands that do not wait for Redis."""
    try:
        ledger.check()
    except LedgerUnavailable as error:
        raise LedgerUnavailable(f"{error}: start it, or correct --redis or FLOWFLEET_REDIS.") from error


class UnknownWorker(FleetError):
    """The roster has no such worker, or more than one."""

    exit_code = 2


class WorkerAlive(FleetError):
    """A worker that lives cannot be forgotten."""

    exit_code = 2


def find(roster: Roster, given: str) -> WorkerRow:
    """The worker with this identity, or with this name where only one host has it; raises `UnknownWorker`."""
    rows = roster.rows()
    exact = [row for row in rows if row.worker == given]
    named = [row for row in rows if row.worker.rpartition("@")[0] == given]
    if exact or len(named) == 1:
        return (exact or named)[0]
    if named:
        raise UnknownWorker(f"More than one worker is named {given!r}: say which of {_listed(named)}.")
    known = f"known are {_listed(rows)}" if rows else "this fleet has no worker"
    raise UnknownWorker(f"No worker {given!r} is known: {known}.")


def _listed(rows: list[WorkerRow]) -> str:
    return ", ".join(sorted(row.worker for row in rows))


def want(roster: Roster, given: str, state: str, note: str = "") -> str:
    """Write `active`, `paused` or `draining` for a worker and return its identity; raises `UnknownWorker`."""
    worker = find(roster, given).worker
    if not roster.want(worker, state, note):
        raise UnknownWorker(f"The worker {worker} was forgotten meanwhile.")
    return worker


def forget(roster: Roster, given: str) -> str:
    """Take a worker off the roster, on the operator's word that its host is gone, and return its identity.

    Raises `UnknownWorker`, and `WorkerAlive` for a worker that still lives.
    """
    row = find(roster, given)
    if not roster.forget(row.worker):
        raise WorkerAlive(f"The worker {row.worker} still lives and cannot be forgotten: stop it first.")
    return row.worker


_WORDS = {
    "draining": "{worker} takes no new runs and ends when its last one has ended.",
    "paused": "{worker} takes no new runs until it is resumed.",
    "active": "{worker} takes runs again.",
}


def _intent_command(name: str, state: str, help_text: str) -> click.Command:
    """One of the commands drain, pause and resume, which differ only in the state that they write."""

    @click.command(name, help=help_text)
    @click.argument("workers", nargs=-1, metavar="[NAME@HOST]...")
    @click.option("--all", "every", is_flag=True, help="Every worker of the fleet.")
    @click.option("--note", default="", metavar="TEXT", help="Why, for those who look at the roster.")
    @options(CommonSettings, command="worker", level="WARNING")
    def command(settings: CommonSettings, workers: tuple[str, ...], *, every: bool, note: str) -> None:
        with open_ledger(settings) as ledger:
            for worker in _chosen(ledger.roster, workers, every=every):
                identity = want(ledger.roster, worker, state, note)
                click.echo(_WORDS[state].format(worker=identity))

    return command


def _chosen(roster: Roster, workers: tuple[str, ...], *, every: bool) -> list[str]:
    if every and workers:
        raise click.UsageError("Give workers or --all, not both.")
    if every:
        return [row.worker for row in roster.rows()]
    if not workers:
        raise click.UsageError("Which worker? Give NAME@HOST, or --all.")
    return list(workers)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, like `workers` of flowfleet status --json.")
@click.option("--all", "every", is_flag=True, help="Also workers that do not live any more.")
@options(CommonSettings, command="worker", level="WARNING")
def list_workers(settings: CommonSettings, *, as_json: bool, every: bool) -> None:
    """Show the workers of the fleet."""
    with open_ledger(settings) as ledger:
        snapshot = take_snapshot(ledger)
    if as_json:
        rows = snapshot.to_json()["workers"]
        click.echo(json.dumps([row for row in rows if every or row["state"] != "offline"], indent=2))
        return
    shown = tuple(worker for worker in snapshot.workers if every or worker.row.live)
    gone = len(snapshot.workers) - len(shown)
    if shown:
        out = console()
        out.print(workers_table(shown, out.width))
    else:
        click.echo(f"No worker lives in the fleet {settings.fleet}.")
    if gone:
        click.echo(f"{gone} that {'does' if gone == 1 else 'do'} not live any more: see --all.")


@click.command("forget")
@click.argument("worker", metavar="NAME@HOST")
@options(CommonSettings, command="worker", level="WARNING")
def forget_worker(settings: CommonSettings, worker: str) -> None:
    """Take a worker whose host is gone for good off the roster; its claims stay: lost runs are not judged yet."""
    with open_ledger(settings) as ledger:
        identity = forget(ledger.roster, worker)
        held = sum(claim.worker == identity for claim in ledger.claims.live())
    click.echo(f"{identity} is forgotten.")
    if held:
        runs = "1 run stays" if held == 1 else f"{held} runs stay"
        click.echo(f"{runs} claimed by it, since lost runs are not judged yet: set the state in the Prefect UI.")


#: the commands that the `worker` group adds
worker_commands: tuple[click.Command, ...] = (
    list_workers,
    _intent_command("drain", "draining", "Take no new runs and exit when empty; lasts over restarts until `resume`."),
    _intent_command("pause", "paused", "Take no new runs; lasts over restarts until `resume`."),
    _intent_command("resume", "active", "Take runs again."),
    forget_worker,
)
