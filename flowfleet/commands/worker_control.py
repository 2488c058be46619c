"""Worker control: the commands that write to the ledger what an operator wants of a worker, which reads it there."""

import json
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager

import click

from flowfleet import ledger as ledgers
from flowfleet.commands import progress
from flowfleet.commands.drain_wait import DrainWait
from flowfleet.errors import FleetError, LedgerUnavailable
from flowfleet.ledger import Ledger
from flowfleet.ledger.roster import Roster
from flowfleet.monitor.snapshot import take_snapshot, worker_json
from flowfleet.monitor.status import past_line, worker_lines, workers_table
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
    """The roster has more than one such worker, or the worker lives and cannot be forgotten."""

    exit_code = 2


class NoSuchWorker(FleetError):
    """The roster has no such worker."""


def find(roster: Roster, given: str, more: Collection[str] = ()) -> str:
    """The identity of the worker with this identity or name; raises `NoSuchWorker` or `WorkerRefused` unless one fits.

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
    raise NoSuchWorker(f"No worker {given!r} is known: {others}.")


_WORDS = {
    "draining": "takes no new runs and ends when its last one has ended.",
    "paused": "takes no new runs until it is resumed.",
    "active": "takes runs again.",
}
#: of a worker that does not live: what the word means once it is started
_WORDS_OF_GONE = {
    "draining": "starts no runs any more: until it is resumed it ends at once when it is started.",
    "paused": "takes no runs when it is started, until it is resumed.",
    "active": "takes runs again when it is started.",
}
_INTERRUPTED = "Not waited for any longer: the drain goes on, until worker resume takes it back."


def _intent_command(name: str, state: str, help_text: str) -> click.Command:
    """One of the commands drain, pause and resume, which differ in the state that they write."""

    @click.command(name, cls=SettingsCommand, help=help_text)
    @click.argument("workers", nargs=-1, metavar="[NAME@HOST]...")
    @click.option("--all", "every", is_flag=True, help="Every worker of the fleet.")
    @click.option("--note", default="", metavar="TEXT", help="Why, for those who look at the roster.")
    @options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
    def command(
        settings: CommonSettings, workers: tuple[str, ...], *, every: bool, note: str, wait: bool = False
    ) -> None:
        with open_ledger(settings) as ledger:
            chosen = _chosen(ledger.roster, workers, every=every)
            lives = {row.worker: row.live for row in ledger.roster.rows()}
            for worker in chosen:
                if not ledger.roster.want(worker, state, note):
                    raise NoSuchWorker(f"The worker {worker} was forgotten meanwhile.")
                click.echo(f"{worker} {(_WORDS if lives.get(worker) else _WORDS_OF_GONE)[state]}")
            if wait:
                with progress.interruption_told(_INTERRUPTED):
                    DrainWait(ledger=ledger, workers=chosen, say=progress.say, tell=click.echo).run()

    if state != "draining":
        return command
    waits = "Wait until they have ended, and say what they wait for; 5 where one does not end."
    return click.option("--wait", is_flag=True, help=waits)(command)


def _chosen(roster: Roster, workers: tuple[str, ...], *, every: bool) -> list[str]:
    if every and workers:
        raise click.UsageError("Give workers or --all, not both.")
    if every:
        return [row.worker for row in roster.rows()]
    if not workers:
        raise click.UsageError("Which worker? Give NAME@HOST, or --all.")
    return list(dict.fromkeys(find(roster, given) for given in workers))


@click.command("list", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, like `workers` of flowfleet status --json.")
@click.option("--all", "every", is_flag=True, help="Also workers that stopped more than a day ago.")
@options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
def list_workers(settings: CommonSettings, *, as_json: bool, every: bool) -> None:
    """Show the workers of the fleet: those that live, that are lost, and that have stopped within the last day."""
    with open_ledger(settings) as ledger:
        snapshot = take_snapshot(ledger)
    shown = snapshot.workers if every else snapshot.listed
    if as_json:
        click.echo(json.dumps([worker_json(worker) for worker in shown], indent=2))
        return
    out = console()
    if shown:
        out.print(workers_table(shown, out.width))
    else:
        click.echo(f"No worker is known in the fleet {settings.fleet}.")
    for line in (*worker_lines(shown), *(() if every else past_line(snapshot))):
        out.print(line)


#: the commands that the `worker` group adds
worker_commands: tuple[click.Command, ...] = (
    list_workers,
    _intent_command("drain", "draining", "Take no new runs and exit when empty; lasts over restarts until `resume`."),
    _intent_command("pause", "paused", "Take no new runs; lasts over restarts until `resume`."),
    _intent_command("resume", "active", "Take runs again."),
)
