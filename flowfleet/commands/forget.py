"""Forget: an operator's word that a worker and its host are gone for good, which counts as proof of death."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import click

from flowfleet.commands.batch import counted
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
@click.argument("workers", nargs=-1, required=True, metavar="NAME@HOST...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options(CommonSettings, command="worker", level="WARNING", unused=REDIS_ALONE)
def forget_worker(settings: CommonSettings, workers: tuple[str, ...], *, yes: bool) -> None:
    """Give workers up whose host is gone for good: they leave the roster, and their runs count as ended.

    Those runs are told as lost, or started again where that was asked for. If such a host comes back, it kills them.

    \b
    worker forget NAME@HOST                 ask, and watch it for a sign of life first
    worker forget NAME@HOST NAME@HOST2      several at once
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        more = _owners_of_lost(ledger)
        # each is found before any is forgotten
        chosen = {identity: _row(ledger, identity) for identity in [find(ledger.roster, one, more) for one in workers]}
        stakes = {identity: Stake.of(ledger, identity) for identity in chosen}
        for identity, stake in stakes.items():
            if stake.runs and not yes:
                click.echo(f"{identity} has started {counted(stake.runs)} whose end nobody knows.", err=True)
                if not _agreed("Is its host gone for good, with all that ran on it?"):
                    raise WorkerRefused(f"{identity} is not forgotten: answer y, or give --yes.")
        watched = {
            identity: seen for identity, seen in chosen.items() if seen is None or seen.live or stakes[identity].switch
        }
        longest = max((stakes[identity].ttl_seconds for identity in watched), default=0.0)
        alive = watch(ledger, watched, max(ledger.gate.lease().ttl_seconds, longest)) if watched else set()
        for identity, seen in chosen.items():
            given_up = None if identity in alive else ledger.roster.forget(identity, seen)
            if given_up is None:
                alive.add(identity)
            else:
                _say_forgotten(identity, given_up)
    if alive:
        raise WorkerRefused(_living(sorted(alive)))


def _say_forgotten(worker: str, given_up: Sequence[str]) -> None:
    click.echo(f"{worker} is forgotten.")
    if given_up:
        click.echo(
            f"{counted(len(given_up))} of it {'is' if len(given_up) == 1 else 'are'} given up: told as lost, or "
            "started again where that was asked for."
        )


def watch(
    ledger: Ledger,
    seen: Mapping[str, WorkerRow | None],
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> set[str]:
    """Watch a lease's time for signs of life; by then what ends by itself without a lease has ended.

    The answer is those that gave one. A worker whose row Redis has lost (None) gives one by signing on again.
    """
    click.echo(f"Watching {', '.join(seen)} for {seconds:g} s for a sign of life …", err=True)
    deadline, alive = clock() + seconds, set[str]()
    while clock() < deadline and len(alive) < len(seen):
        wait(_LOOK_SECONDS)
        rows = {row.worker: row for row in ledger.roster.rows()}
        for worker, before in seen.items():
            now = rows.get(worker)
            if now is None and before is not None:
                raise WorkerRefused(f"The worker {worker} was forgotten meanwhile.")
            if now is not None and (before is None or (now.nonce, now.beat) != (before.nonce, before.beat)):
                alive.add(worker)
    return alive


def _row(ledger: Ledger, worker: str) -> WorkerRow | None:
    return next((row for row in ledger.roster.rows() if row.worker == worker), None)


def _owners_of_lost(ledger: Ledger) -> set[str]:
    """Those that have something missing, judged or buried: Redis may have lost their rows."""
    claims = {claim.worker for claim in ledger.claims.live() if claim.state in LOST and claim.worker}
    return claims | {tomb.worker for tomb in ledger.claims.tombs()}


def _living(workers: Sequence[str]) -> str:
    """Why these workers are not forgotten, and what ends them."""
    return (
        f"{', '.join(workers)} {'lives' if len(workers) == 1 else 'live'} still and cannot be forgotten: stop "
        f"{'it' if len(workers) == 1 else 'them'} first, by worker drain {' '.join(workers)}."
    )


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # nobody is there to answer
        return False
