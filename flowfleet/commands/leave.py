"""Leave: the command that gives back all that has not begun, and ends workers and pollers: the way back.

It says the word to all pollers, drains all workers, and watches until nothing of the fleet is left at the API. A poller
inside it does what no other one is there to do.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import click

from flowfleet.api.client import ApiClient, Mark, UnfinishedRun
from flowfleet.api.connect import connect
from flowfleet.commands import batch, progress
from flowfleet.commands.program import CHECKS_FAILED
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import FleetError
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim, State
from flowfleet.retry import Retry
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

NOTE = "flowfleet leave"
_LOOK_SECONDS = 0.5
#: the API may show a state a moment after its server has taken another one
_SETTLE_SECONDS = 5.0
_GOES_ON = frozenset({State.STARTING, State.RUNNING, State.MISSING, State.JUDGED})

_INTERRUPTED = "Not waited for any longer: workers drain and pollers leave all the same. Ask again by the same command."
_BACK = "To come back: worker resume --all, then poller start and worker start."


@dataclass(frozen=True, kw_only=True)
class SubstituteView:
    """The poller inside this command at one look; it stands by behind the fleet's own."""

    #: whether it leads: then no other poller does
    leads: bool
    #: whether it leads and has seen that nothing is left which has not begun
    cleared: bool
    #: how many other pollers stand by behind it
    standbys: int


LookAtSubstitute = Callable[[], SubstituteView]
StartSubstitute = Callable[[CommonSettings, ApiClient, Ledger], AbstractContextManager[LookAtSubstitute]]


class LeftBehind(FleetError):
    """Something of the fleet is left at the API that does not go away by itself."""

    exit_code = CHECKS_FAILED


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is still there of the fleet at one look into the ledger."""

    #: runs that go back, or that a worker is about to start
    not_begun: tuple[Claim, ...]
    #: ended runs whose report the API has not accepted yet
    untold: tuple[Claim, ...]
    goes_on: tuple[Claim, ...]
    #: the workers that live
    workers: tuple[str, ...]
    #: the poller that leads, other than ours; None = none, or it has not moved for its time
    poller: str | None
    standbys: int
    cleared: bool
    #: whether a poller has taken the word back, since it was started meanwhile
    withdrawn: bool

    @property
    def stranded(self) -> tuple[Claim, ...]:
        """Runs whose worker does not live: only the next worker on its host can tell their end."""
        return tuple(claim for claim in (*self.goes_on, *self.untold) if claim.worker not in self.workers)

    def awaited(self, *, detach: bool) -> str:
        """What is waited for, in words; "" when nothing is."""
        busy = {claim.worker for claim in self.goes_on}
        workers = [worker for worker in self.workers if not (detach and worker in busy)]
        told = [claim for claim in self.untold if claim not in self.stranded]
        running = () if detach else tuple(claim for claim in self.goes_on if claim not in self.stranded)
        parts = [
            _counted("run goes back", "runs go back", self.not_begun),
            _counted("run goes on", "runs go on", running),
            _counted("end is not told yet", "ends are not told yet", told),
            f"workers end: {batch.named(workers)}" if workers else "",
            f"poller ends: {self.poller}" if self.poller and not self.withdrawn else "",
            f"{self.standbys} more pollers end" if self.standbys and not self.withdrawn else "",
        ]
        said = "; ".join(part for part in parts if part)
        return said or ("" if self.cleared or self.withdrawn else "the API is compared with the ledger")


def _counted(one: str, many: str, claims: Sequence[Claim]) -> str:
    return f"{len(claims)} {one if len(claims) == 1 else many}: {_names(claims)}" if claims else ""


def _names(claims: Sequence[Claim]) -> str:
    return batch.named([f"{claim.name} on {claim.worker}" if claim.worker else claim.name for claim in claims])


@dataclass(kw_only=True)
class Leaving:
    """The whole of one `flowfleet leave`."""

    ledger: Ledger
    api: ApiClient
    fleet: str
    detach: bool
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def order(self) -> None:
        """Say the word to all pollers, and drain all workers."""
        self.ledger.gate.order_leave()
        self._drain()

    def _drain(self) -> None:
        for row in self.ledger.roster.rows():
            if row.wanted != "draining":  # also one that has joined since
                self.ledger.roster.want(row.worker, "draining", NOTE)

    def wait(self, substitute: LookAtSubstitute) -> Remains:
        """Wait until nothing is left that ends by itself; what remains. An outage of Redis is waited out."""
        retry, said = Retry(wait=self.pause), ""
        while True:
            remains = retry.ask("Redis", lambda: self._look(substitute))
            awaited = remains.awaited(detach=self.detach)
            if not awaited:
                return remains
            if awaited != said:
                self.say(f"waiting: {awaited}")
            said = awaited
            self.pause(_LOOK_SECONDS)

    def _look(self, substitute: LookAtSubstitute) -> Remains:
        self._drain()
        # asked before the claims: what is cleared now has no claim afterwards either, since nothing is claimed
        ours = substitute()
        leader, withdrawn = self.ledger.gate.leader(), not self.ledger.gate.leave_ordered()
        live = self.ledger.claims.live()
        return Remains(
            not_begun=tuple(one for one in live if one.state not in _GOES_ON and one.state is not State.ENDED),
            untold=tuple(one for one in live if one.state is State.ENDED),
            goes_on=tuple(one for one in live if one.state in _GOES_ON),
            workers=tuple(row.worker for row in self.ledger.roster.rows() if row.live),
            poller=None if ours.leads or leader is None else f"{leader.name}@{leader.host}",
            standbys=ours.standbys,
            cleared=ours.cleared,
            withdrawn=withdrawn,
        )

    def judge(self, remains: Remains) -> str:
        """The last line when nothing is left at the API, but runs that go on with `--detach`; else `LeftBehind`."""
        goes_on = remains.goes_on if self.detach else ()
        stranded = [claim for claim in remains.stranded if claim not in goes_on]
        if stranded:
            workers = " ".join(sorted({claim.worker for claim in stranded if claim.worker}))
            raise LeftBehind(
                f"Left at the Prefect API: {_names(stranded)}. No worker that lives looks after it: say worker resume "
                f"{workers} and start it on its host, and it tells the end"
                + ("." if self.detach else "; or leave runs to themselves with --detach.")
            )
        left = self._left(frozenset(claim.run_id for claim in goes_on))
        if left:
            names = batch.named([f"{run.state.run_name} ({run.state.run_id}, {run.state.name})" for run in left])
            raise LeftBehind(
                f"Left at the Prefect API, and unknown to the ledger: {names}. Look whether a process of it lives, "
                "then set its state in the Prefect UI."
            )
        if remains.poller:
            raise LeftBehind(
                f"A poller leads again, {remains.poller}: somebody or its supervisor has started it meanwhile. Nothing "
                "of the fleet is left at the Prefect API, but stop it there for good, then say flowfleet leave again."
            )
        if goes_on:
            return f"Of the fleet {self.fleet} only these go on at the Prefect API: {_names(goes_on)}."
        return f"Nothing of the fleet {self.fleet} is left at the Prefect API."

    def _left(self, known: frozenset[str]) -> list[UnfinishedRun]:
        until = self.clock() + _SETTLE_SECONDS
        while True:
            left = [run for run in self.api.unfinished(Mark(fleet=self.fleet)) if run.state.run_id not in known]
            if not left or self.clock() >= until:
                return left
            self.pause(_LOOK_SECONDS)


def command(start_substitute: StartSubstitute) -> click.Command:
    """The command `flowfleet leave`."""

    @click.command("leave", cls=SettingsCommand)
    @click.option("--detach", is_flag=True, help="Do not wait for runs that go on. Their workers end after them.")
    @options(CommonSettings, level="WARNING", unused=NO_PART)
    def leave(settings: CommonSettings, *, detach: bool) -> None:
        """Give back all runs that have not begun, and end all workers and pollers of the fleet.

        Exit code 0: nothing of the fleet is left at the Prefect API, and another executor can take over. Exit code 5:
        something is left, and the output names it. Workers stay drained until `worker resume`. Pollers may be started
        again at any time.

        \b
        flowfleet leave                 wait for the runs that go on, too
        flowfleet leave --detach        leave those to their workers
        """  # noqa: D301 - click reads the escape
        with open_ledger(settings) as ledger:
            api = connect(settings, os.environ)
            api.probe()  # without the API nothing can be given back: it is said before anything is drained
            leaving = Leaving(ledger=ledger, api=api, fleet=settings.fleet, detach=detach, say=progress.say)
            leaving.order()
            with start_substitute(settings, api, ledger) as substitute, progress.interruption_told(_INTERRUPTED):
                remains = leaving.wait(substitute)
                sentence = leaving.judge(remains)
        click.echo(sentence)
        click.echo(_BACK)

    return leave
