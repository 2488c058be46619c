"""Cancel: the command that ends runs by hand: first at the API, then on their claims, and waits until it is seen."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from flowfleet.api import traits
from flowfleet.api.client import ApiClient, Mark, RunState, StateType, Verdict
from flowfleet.api.connect import connect
from flowfleet.commands import batch, chosen_run, progress
from flowfleet.commands.batch import RouteOrWorker
from flowfleet.commands.chosen_run import ChosenRun, NoSuchRun
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiUnavailable, FleetError
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import CancelHow, Claim, State
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.monitor.tables import span
from flowfleet.retry import Retry
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_LOOK_SECONDS = 0.5
#: how long Redis or the API may be away while an end is waited for
_AWAY_SECONDS = 30.0
#: how often the progress is told again though nothing has changed
_REPEAT_SECONDS = 30.0


class NotCancelled(FleetError):
    """The run has ended, so that there is nothing to cancel."""


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """A run whose cancel the API has accepted, or whose process is to end though the API shows an end."""

    run: ChosenRun
    #: the claim that was told; None: no worker of this fleet holds the run
    claim: Claim | None
    state: RunState | None
    #: it was Cancelled before, and nothing of it is left to end
    before: bool = False


@dataclass(kw_only=True)
class CancelOrder:
    """The whole of one `flowfleet cancel`."""

    ledger: Ledger
    api: ApiClient
    mark: Mark
    how: CancelHow
    #: who asks, and why
    whom: str
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def order(self, run: ChosenRun) -> Ordered:
        """Cancel the run at the API, and tell its claim once that is accepted; before that nothing is signalled.

        An engine that was told to cancel while the API says Running would end and leave it Running. Raises
        `NotCancelled`, and `ApiUnavailable` when the API gives no definite answer.
        """
        before = self.api.ends.states([run.run_id]).get(run.run_id)
        answer = self.api.orders.cancel(run.run_id, f"Cancelled {self.whom}")
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(
                f"the Prefect API gave no definite answer to the cancel of {run.name} ({answer.reason}), "
                "and no process was told: ask again"
            )
        # only now: the run may have been claimed while it was asked
        claim = self.ledger.claims.get(run.run_id)
        lives = claim is not None and claim.state is not State.ENDED
        if answer.gone and not lives:
            raise NoSuchRun(f"The run {run.name} does not exist any more.")
        if answer.verdict is Verdict.REFUSED and not answer.gone and not (lives and self.how is CancelHow.OVER):
            name = answer.state.name if answer.state else "an end"
            still = f", and its process on {claim.worker} lives on: --now kills it" if claim and lives else ""
            still = still or self._may_live(run)
            raise NotCancelled(f"{run.name} has ended already: the API says {name}{still}.")
        if claim is not None and lives:
            self.ledger.claims.cancel(run.run_id, claim.claim, self.how, self.whom)
        elif before is not None and before.kind is StateType.SCHEDULED and not before.held:
            # it waited with the mark of an old process: nobody else would ever end it
            self.api.ends.report(run.run_id, StateType.CANCELLED, f"Cancelled {self.whom}", self.mark)
        elif claim is None and self.how is CancelHow.OVER and _goes_on(answer.state):
            self._end_unheld(run)
        over = claim is None and before is not None and before.kind is StateType.CANCELLED
        return Ordered(run=run, claim=claim, state=answer.state, before=over)

    def _may_live(self, run: ChosenRun) -> str:
        tomb = self.ledger.claims.tomb(run.run_id)
        return f", and its process may live on {tomb.host}, which has not been heard of" if tomb else ""

    def _end_unheld(self, run: ChosenRun) -> None:
        """Tell the end of a run that this fleet has launched and that the ledger does not know: nobody else may.

        Where another ledger of this fleet's name holds it, its leader finds the run Cancelled, and has it killed.
        """
        origin = self.api.life.origin(run.run_id, self.mark.fleet)
        if origin is None:
            return
        where = f" on {origin.worker.rpartition('@')[2][:80]}" if origin.worker else ""
        message = f"Cancelled {self.whom}. No worker of its fleet held the run: its process may still run{where}."
        self.api.ends.report(run.run_id, StateType.CANCELLED, message, self.mark, claim=origin.claim)

    def wait(self, ordered: Sequence[Ordered]) -> list[tuple[ChosenRun, RunState | None]]:
        """Wait until each run has ended and has no claim any more; how each has ended (None: it is deleted)."""
        retry = Retry(wait=self.pause, limit_seconds=_AWAY_SECONDS)
        began, said, said_at = self.clock(), "", 0.0
        while True:
            claims, states = retry.ask("Redis and the Prefect API", lambda: self._look(ordered))
            left = [one for one in ordered if one.run.run_id in claims or _goes_on(states.get(one.run.run_id))]
            if not left:
                return [(one.run, states.get(one.run.run_id)) for one in ordered]
            now, awaited = self.clock(), self._progress(left, claims, states)
            if awaited != said or now - said_at >= _REPEAT_SECONDS:
                self.say(f"waiting{f' for {span(now - began)}' if now - began >= 1 else ''}: {awaited}")
                said, said_at = awaited, now
            self.pause(_LOOK_SECONDS)

    def _look(self, ordered: Sequence[Ordered]) -> tuple[dict[str, Claim], dict[str, RunState]]:
        told = {one.run.run_id: one.claim.claim for one in ordered if one.claim}
        live = self.ledger.claims.live()
        claims = {claim.run_id: claim for claim in live if told.get(claim.run_id) == claim.claim}
        # asked after the claims: what has none is told at the API by then
        return claims, self.api.ends.states([one.run.run_id for one in ordered])

    def _progress(self, left: Sequence[Ordered], claims: dict[str, Claim], states: dict[str, RunState]) -> str:
        if len(left) > 1:
            return f"{len(left)} runs have not ended: {batch.named([one.run.name for one in left])}"
        run = left[0].run
        claim, state = claims.get(run.run_id), states.get(run.run_id)
        if claim is not None:
            hooks = self.how is not CancelHow.OVER and traits.of(claim.route.backend).worker_runs_hooks
            return _where(run, claim, hooks=hooks)
        shown = state.name if state else "nothing"
        return f"the API says {shown}, and no worker of this fleet holds {run.name}: whoever runs it has to end it"


def _goes_on(state: RunState | None) -> bool:
    return state is not None and not state.kind.terminal


def _where(run: ChosenRun, claim: Claim, *, hooks: bool) -> str:
    where = claim.worker or "no worker"
    words = {
        # the claim stays as it is while the hooks run
        State.RUNNING: f"the process of {run.name} on {where} is being ended"
        + (", and then its hooks are run" if hooks else ""),
        State.STARTING: f"{run.name} is being started on {where}, and ended then",
        State.ENDED: f"the process of {run.name} on {where} has ended, and the API is being told",
        State.MISSING: f"{run.name} was started on {where}, which has not been heard of",
        State.JUDGED: f"{run.name} is counted as lost on {where}, and the API is being told",
    }
    return words.get(claim.state, f"{run.name} has not begun, and its claim is taken back")


def _all_of(ledger: Ledger, given: str) -> list[Claim]:
    """The live claims of a route or of a worker."""
    snapshot = take_snapshot(ledger)
    chosen = RouteOrWorker(given, snapshot.pool_names)
    found = [
        claim for claim in snapshot.claims if claim.state is not State.ENDED and chosen.has(claim.route, claim.worker)
    ]
    if not found:
        known = chosen.others((claim.route, claim.worker) for claim in snapshot.claims)
        others = f"runs are claimed of {known}" if known else "it has no claimed run at all"
        raise NoSuchRun(f"The fleet has no claimed run of {given!r}: {others}.")
    return found


def _question(claims: Sequence[Claim], given: str) -> str:
    begun = sum(claim.state in (State.STARTING, State.RUNNING, State.MISSING) for claim in claims)
    return f"{batch.counted(len(claims))} of {given} would be cancelled, of which {begun} may have begun"


def _told(ends: Sequence[tuple[ChosenRun, RunState | None]], seconds: float) -> int:
    """Say how the runs have ended, and return the exit code: 1 when a single run has ended otherwise."""
    otherwise = [(run, state) for run, state in ends if state is not None and state.kind is not StateType.CANCELLED]
    if len(ends) == 1:
        ((run, state),) = ends
        if otherwise and state:
            click.echo(f"{run.name} has ended by itself meanwhile: the API says {state.name}.", err=True)
            return 1
        click.echo(f"{run.name} is {state.name if state else 'deleted'}, after {span(seconds)}.")
        return 0
    click.echo(f"{len(ends) - len(otherwise)} runs are Cancelled, after {span(seconds)}.")
    if otherwise:
        named = batch.named([f"{run.name} ({state.name})" for run, state in otherwise if state])
        click.echo(f"Ended by themselves meanwhile: {named}.")
    return 0


@click.command("cancel", cls=SettingsCommand)
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--now", is_flag=True, help="Kill at once: no grace, no hook of the flow.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at the run.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the run has ended.")
@click.option("--all-of", metavar="ROUTE|WORKER", help="All claimed runs of this POOL/QUEUE or NAME@HOST.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
@options(CommonSettings, level="WARNING", unused=NO_PART)
def cancel(
    settings: CommonSettings,
    *,
    run: str | None,
    now: bool,
    reason: str,
    no_wait: bool,
    all_of: str | None,
    yes: bool,
) -> int:
    """Cancel a run at the API, end its process wherever it is, and wait until both are seen.

    RUN is its name, its id, or a part of that which no other has. Exit code 1 means that it has ended by itself before.

    \b
    flowfleet cancel calm-otter
    flowfleet cancel 0a1b2c3d --now --reason "wrong input"
    flowfleet cancel --all-of mine/default --yes
    """  # noqa: D301 - click reads the escape
    batch.check_choice(run, all_of)
    with open_ledger(settings) as ledger:
        cancelling = CancelOrder(
            ledger=ledger,
            api=connect(settings, os.environ),
            mark=Mark(fleet=settings.fleet),
            how=CancelHow.OVER if now else CancelHow.ASKED,
            whom=chosen_run.by_whom(settings, reason),
            say=progress.say,
        )
        if all_of is None:
            chosen = [chosen_run.find(run or "", ledger, cancelling.api.orders.find, sure=True)]
        else:
            claims = _all_of(ledger, all_of)
            if not (yes or batch.agreed(_question(claims, all_of))):
                click.echo("Nothing is cancelled.", err=True)
                return 1
            chosen = [ChosenRun.of(claim.run_id, claim.name) for claim in claims]
        return carry_out(cancelling, chosen, no_wait=no_wait)


def carry_out(cancelling: CancelOrder, chosen: Sequence[ChosenRun], *, no_wait: bool) -> int:
    """Cancel the runs and, unless told otherwise, wait for their ends; the exit code."""
    began = cancelling.clock()
    ordered = _order_all(cancelling, chosen)
    if not ordered:
        cancelling.say("Nothing is cancelled: all of them had ended before.")
        return 1
    if no_wait:
        named = batch.named([one.run.name for one in ordered])
        which = ordered[0].run.name if len(ordered) == 1 else "RUN"
        click.echo(f"Cancelled at the API: {named}. How far the end is: flowfleet explain {which}.")
        return 0
    if len(ordered) == 1 and ordered[0].before:
        click.echo(f"{ordered[0].run.name} is Cancelled already.")
        return 0
    stands = "Not waited for any longer: the cancel stands. flowfleet explain RUN tells how far it is."
    with progress.interruption_told(stands, cancelling.say):
        return _told(cancelling.wait(ordered), cancelling.clock() - began)


def _order_all(cancelling: CancelOrder, chosen: Sequence[ChosenRun]) -> list[Ordered]:
    if len(chosen) == 1:
        return [cancelling.order(chosen[0])]
    ordered = []
    for run in chosen:
        try:
            ordered.append(cancelling.order(run))
        except (NotCancelled, NoSuchRun) as gone:  # among many, one may end by itself at any time
            cancelling.say(str(gone))
    return ordered
