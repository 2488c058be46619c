"""Worker control: the commands that write to the ledger what an operator wants of a worker, which reads it there."""

import json
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager

import click

from flowfleet import ledger as ledgers
from flowfleet.errors import FleetError, LedgerUnavailable
from flowfleet.ledger import Ledger
from flowfleet.ledger.roster import Roster
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.status import shut_lines, workers_table
from flowfleet.monitor.tables import console
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings


@contextmanager
def open_ledger(settings: CommonSettings) -> Iterator[Ledger]:
    """The ledger for a command that does not wait: raises `LedgerUnavailable`, with the remedy, where Redis is away."""
    with closing(ledgers.connect(settings.redis, settings.fleet)) as ledger:
        try:
            ledger.check()
        except LedgerUnavailable as error:
            raise LedgerUnavailable(f"{error}: start it, or correct --redis or FLOWFLEET_REDIS.") from error
        yield ledger


class WorkerRefused(FleetError):
    """The roster has no such worker, or more than one, or the worker lives and cannot be forgotten."""

    exit_code = 2


def find(roster: Roster, given: str, more: Collection[str] = ()) -> str:
    """The identity of the worker with this identity or name; raises `WorkerRefused` unless exactly one fits.

    `more` are identities of workers that the roster does not have.
    """
    known = sorted({row.worker for row in roster.rows()} | set(more))
    named = [worker for worker in known if worker.rpartition("@")[0] == given]
    if given in known:
        return given
    if len(named) == 1:
        return named[0]
    if named:
        raise WorkerRefused(f"More than one worker is named {given!r}: say which of {', '.join(named)}.")
    others = f"known are {', '.join(known)}" if known else "this fleet has no worker"
    raise WorkerRefused(f"No worker {given!r} is known: {others}.")


_WORDS = {
    "draining": "takes no new runs and ends when its last one has ended.",
    "paused": "takes no new runs until it is resumed.",
    "active": "takes runs again.",
}


def _intent_command(name: str, state: str, help_text: str) -> click.Command:
    """One of the commands drain, pause and resume, which differ only in the state that they write."""

    @click.command(name, cls=SettingsCommand, help=help_text)
    @click.argument("workers", nargs=-1, metavar="[NAME@HOST]...")
    @click.option("--all", "every", is_flag=True, help="Every worker of the fleet.")
    @click.option("--note", default="", metavar="TEXT", help="Why, for those who look at the roster.")
    @options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
    def command(settings: CommonSettings, workers: tuple[str, ...], *, every: bool, note: str) -> None:
        with open_ledger(settings) as ledger:
            for given in _chosen(ledger.roster, workers, every=every):
                worker = find(ledger.roster, given)
                if not ledger.roster.want(worker, state, note):
                    raise WorkerRefused(f"The worker {worker} was forgotten meanwhile.")
                click.echo(f"{worker} {_WORDS[state]}")

    return command


def _chosen(roster: Roster, workers: tuple[str, ...], *, every: bool) -> list[str]:
    if every and workers:
        raise click.UsageError("Give workers or --all, not both.")
    if every:
        return [row.worker for row in roster.rows()]
    if not workers:
        raise click.UsageError("Which worker? Give NAME@HOST, or --all.")
    return list(workers)


@click.command("list", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, like `workers` of flowfleet status --json.")
@click.option("--all", "every", is_flag=True, help="Also workers that do not live any more.")
@options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
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
        for line in shut_lines(shown):
            out.print(line)
    else:
        click.echo(f"No worker lives in the fleet {settings.fleet}.")
    if gone:
        click.echo(f"{gone} that {'does' if gone == 1 else 'do'} not live any more: see --all.")


#: the commands that the `worker` group adds
worker_commands: tuple[click.Command, ...] = (
    list_workers,
    _intent_command("drain", "draining", "Take no new runs and exit when empty; lasts over restarts until `resume`."),
    _intent_command("pause", "paused", "Take no new runs; lasts over restarts until `resume`."),
    _intent_command("resume", "active", "Take runs again."),
)
