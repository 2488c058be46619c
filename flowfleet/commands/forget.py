"""Forget: an operator's word that a worker and its host are gone for good, which counts as proof of death."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from flowfleet.commands.worker_control import WorkerRefused, find, open_ledger
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import State
from flowfleet.ledger.roster import WorkerRow
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

LOST = frozenset({State.MISSING, State.JUDGED})
STARTED = frozenset({State.STARTING, State.RUNNING}) | LOST
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Stake:
    """What a worker has started and not ended, as far as the ledger knows."""

    runs: int
    #: some of it ends by itself without a lease, and is to be started again
    switch: bool
    #: the longest lease by which that may count
    ttl_seconds: float = 0.0

    @classmethod
    def of(cls, ledger: Ledger, worker: str) -> "Stake":
        """Read it from the ledger."""
        claims = [claim for claim in ledger.claims.live() if claim.worker == worker and claim.state in STARTED]
        tombs = [tomb for tomb in ledger.claims.tombs() if tomb.worker == worker]
        switch = any(claim.switch and claim.policy == "requeue" for claim in claims)
        return cls(len(claims) + len(tombs), switch, max((claim.ttl for claim in claims), default=0.0))


@click.command("forget", cls=SettingsCommand)
@click.argument("worker", metavar="NAME@HOST")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
def forget_worker(settings: CommonSettings, worker: str, *, yes: bool) -> None:
    """Give a worker up whose host is gone for good: it leaves the roster, and its runs count as ended.

    They are told as lost, or started again where that was asked for. If its host comes back, it kills them.
    """
    with open_ledger(settings) as ledger:
        identity = find(ledger.roster, worker, _owners_of_lost(ledger))
        seen, stake = _row(ledger, identity), Stake.of(ledger, identity)
        if stake.runs and not yes:
            click.echo(f"{identity} has started {_runs(stake.runs)} whose end nobody knows.", err=True)
            if not _agreed("Is its host gone for good, with all that ran on it?"):
                raise WorkerRefused(f"{identity} is not forgotten: answer y, or give --yes.")
        if seen is None or seen.live or stake.switch:
            watch(ledger, identity, seen, max(ledger.gate.lease().ttl_seconds, stake.ttl_seconds))
        given_up = ledger.roster.forget(identity, seen)
        if given_up is None:
            raise _lives(identity)
    click.echo(f"{identity} is forgotten.")
    if given_up:
        click.echo(
            f"{_runs(len(given_up))} of it {'is' if len(given_up) == 1 else 'are'} given up: told as lost, or started "
            "again where that was asked for."
        )


def watch(
    ledger: Ledger,
    worker: str,
    seen: WorkerRow | None,
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Watch a lease's time for a sign of life; by then what ends by itself without a lease has ended.

    A worker whose row Redis has lost (`seen` is None) gives one by signing on again.
    """
    click.echo(f"Watching {worker} for {seconds:g} s for a sign of life …", err=True)
    deadline = clock() + seconds
    while clock() < deadline:
        wait(_LOOK_SECONDS)
        now = _row(ledger, worker)
        if now is None and seen is not None:
            raise WorkerRefused(f"The worker {worker} was forgotten meanwhile.")
        if now is not None and (seen is None or (now.nonce, now.beat) != (seen.nonce, seen.beat)):
            raise _lives(worker)


def _row(ledger: Ledger, worker: str) -> WorkerRow | None:
    return next((row for row in ledger.roster.rows() if row.worker == worker), None)


def _owners_of_lost(ledger: Ledger) -> set[str]:
    """Those that have something missing, judged or buried: Redis may have lost their rows."""
    claims = {claim.worker for claim in ledger.claims.live() if claim.state in LOST and claim.worker}
    return claims | {tomb.worker for tomb in ledger.claims.tombs()}


def _lives(worker: str) -> WorkerRefused:
    return WorkerRefused(f"The worker {worker} still lives and cannot be forgotten: stop it first.")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        return False


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"
