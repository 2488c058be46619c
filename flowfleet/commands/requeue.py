"""Requeue: the command that starts a run again by hand, unless an earlier start of it may be alive."""

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import click

from flowfleet.api.client import ApiClient, Mark, RunState, StateType, Verdict
from flowfleet.api.connect import connect
from flowfleet.commands import batch, chosen_run, progress
from flowfleet.commands.batch import RouteOrWorker
from flowfleet.commands.chosen_run import ChosenRun, NoSuchRun
from flowfleet.commands.failed_runs import FAILED, failed_runs
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiUnavailable, FleetError
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim, State
from flowfleet.monitor import explain as explanations
from flowfleet.monitor.snapshot import Snapshot, take_snapshot
from flowfleet.monitor.tables import span
from flowfleet.settings.click_options import NO_PART, SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_LOOK_SECONDS = 0.3
_LOOK_AT_MANY_SECONDS = 1.0
#: how long a claim is waited for: a leader that hears the hint claims within seconds, if anything can start
_CLAIMED_SECONDS = 15.0
#: a wait that is longer is told, and a batch as often
_TOLD_SECONDS = 2.0
#: how many reasons a summary gives
_REASONS = 10


class NotStartedAgain(FleetError):
    """An earlier start of the run may be alive, or it is on its way already."""

    def __init__(self, run: ChosenRun, why: str) -> None:
        super().__init__(f"{run.name} is not started again: {why}")
        #: the same for all runs that are refused for this reason
        self.why = why


class NoLongerMeant(NotStartedAgain):
    """The run was found in a state in which it was to be started again, and has another one by now."""

    def __init__(self, run: ChosenRun, state: str) -> None:
        super().__init__(run, f"the API says {state} by now")
        self.state = state


@dataclass(kw_only=True)
class Requeueing:
    """The whole of one `flowfleet requeue`."""

    ledger: Ledger
    api: ApiClient
    mark: Mark
    #: who asks, and why
    whom: str
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def order(self, run: ChosenRun, only: Collection[StateType] = ()) -> None:
        """Write Scheduled, due now, at the API. Raises `NotStartedAgain` while a start may be alive.

        With `only` it is done in no other state than these; raises `NoLongerMeant` in another.
        """
        self._refuse_a_second_start(run)
        answer = self.api.orders.restart(run.run_id, f"requeued {self.whom}", self.mark, only)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"the Prefect API gave no definite answer to the restart of {run.name}: ask again")
        if answer.gone:
            raise NoSuchRun(f"The run {run.name} does not exist any more.")
        if answer.verdict is Verdict.REFUSED:
            if only and answer.state is not None and answer.state.kind not in only:
                raise NoLongerMeant(run, answer.state.name)
            raise NotStartedAgain(run, _refusal(answer.state))
        self.ledger.hints.publish("due", run.run_id)

    def _refuse_a_second_start(self, run: ChosenRun) -> None:
        if not self.ledger.gate.is_open():
            raise NotStartedAgain(
                run,
                "Redis was restarted or replaced, and until a poller has opened the gate nobody knows what its workers "
                "run. Ask again when flowfleet status no longer says that the gate is shut",
            )
        claim = self.ledger.claims.get(run.run_id)
        if claim is not None:
            raise NotStartedAgain(run, _alive(claim))
        tomb = self.ledger.claims.tomb(run.run_id)
        if tomb is not None:
            raise NotStartedAgain(
                run,
                f"it was told as lost, and its earlier process may live on the host {tomb.host}: bring that back, or, "
                f"if it is gone for good, say worker forget {tomb.worker}",
            )

    def wait(self, run: ChosenRun) -> str:
        """Wait until a poller has claimed the run; a sentence that says so, or why it waits."""
        began, told = self.clock(), False
        while True:
            claim = self.ledger.claims.get(run.run_id)
            state = self.api.ends.states([run.run_id]).get(run.run_id)
            if claim is not None:
                return f"{run.name} is claimed anew" + (f", by {claim.worker}." if claim.worker else ".")
            if state is not None and state.kind is not StateType.SCHEDULED:
                return f"{run.name} was taken: the API says {state.name}."
            waited = self.clock() - began
            if waited >= _TOLD_SECONDS and not told:
                self.say(f"{run.name} is due at the API: waiting up to {_CLAIMED_SECONDS:g} s for a poller to claim it")
                told = True
            if waited >= _CLAIMED_SECONDS:
                place = self.api.backlog.place(run.run_id) if state else None
                why = explanations.explain(run.run_id, take_snapshot(self.ledger), None, state, place)
                return f"{run.name} is due at the API and not claimed yet. {why.sentence}"
            self.pause(_LOOK_SECONDS)


def _alive(claim: Claim) -> str:
    where, host = claim.worker, chosen_run.host_of(claim)
    words = {
        State.CLAIMING: "it is being claimed, and starts by itself",
        State.QUEUED: "it is claimed, and waits for a worker to take it",
        State.TAKEN: f"the worker {where} prepares its start",
        State.STARTING: f"the worker {where} is starting it",
        State.RUNNING: f"it runs on the host {host} ({where}); flowfleet cancel ends it",
        State.ENDED: f"its process on the host {host} has ended, and the API has not accepted that yet",
        State.RETURNING: "it is being handed back, and is due again by itself",
        State.MISSING: f"it may still run on the host {host} ({where}), which has not been heard of: bring that back, "
        f"or, if it is gone for good, say worker forget {where}",
        State.JUDGED: f"it may still run on the host {host} ({where}), and its loss is being told to the API",
    }
    return words[claim.state]


def _refusal(state: RunState | None) -> str:
    if state is None:
        return "the API refuses it"
    if state.kind is StateType.PAUSED:
        return f"the API says {state.name}, resume it in the Prefect UI"
    return (
        f"the API says {state.name}, and no worker of this fleet holds it. Look whether another executor runs it; "
        "flowfleet cancel ends it at the API, and then it can be started again"
    )


@dataclass(kw_only=True)
class BatchRequeue:
    """The whole of one `flowfleet requeue --all-of`: what was ordered so far, and the summary of it."""

    requeueing: Requeueing
    runs: Sequence[ChosenRun]
    #: those that were started again, and the ids of those among them that somebody has taken since
    again: list[ChosenRun] = field(default_factory=list, init=False)
    taken: set[str] = field(default_factory=set, init=False)
    #: why → the names of the runs that are refused for it
    refused: dict[str, list[str]] = field(default_factory=dict, init=False)
    #: those that are not Failed or Crashed any more, with what they are
    left_alone: list[str] = field(default_factory=list, init=False)
    _said_at: float = field(default=-_TOLD_SECONDS, init=False)

    def carry_out(self, *, no_wait: bool) -> int:
        """Order each run, wait until they are claimed unless told otherwise, and sum up; the exit code."""
        try:
            for number, run in enumerate(self.runs, 1):
                self._progress(f"starting again {run.name}, {number} of {len(self.runs)}")
                self._order(run)
            if not no_wait:
                self._wait()
        finally:  # also after an outage or Ctrl-C: what was ordered stands
            for line in self._summary(no_wait=no_wait):
                click.echo(line)
        return 1 if self.refused or not self.again else 0

    def _order(self, run: ChosenRun) -> None:
        try:
            self.requeueing.order(run, FAILED)
        except NoLongerMeant as other:
            self.left_alone.append(f"{run.name} ({other.state})")
        except NotStartedAgain as refused:
            self.refused.setdefault(refused.why, []).append(run.name)
        except NoSuchRun:
            self.left_alone.append(f"{run.name} (deleted)")
        else:
            self.again.append(run)

    def _wait(self) -> None:
        """Wait until each run is claimed, but not for those that wait for a free slot."""
        clock, began = self.requeueing.clock, self.requeueing.clock()
        while True:
            left = [run.run_id for run in self.again if run.run_id not in self.taken]
            if left:
                claimed = {claim.run_id for claim in self.requeueing.ledger.claims.live()}
                states = self.requeueing.api.ends.states(left)
                begun = {run_id for run_id, state in states.items() if state.kind is not StateType.SCHEDULED}
                self.taken |= (claimed | begun) & set(left)
            waited = clock() - began
            if len(self.taken) == len(self.again) or waited >= _CLAIMED_SECONDS:
                return
            self._progress(f"waiting for {span(waited)}: {len(self.taken)} of {len(self.again)} are claimed")
            self.requeueing.pause(_LOOK_AT_MANY_SECONDS)

    def _progress(self, text: str) -> None:
        now = self.requeueing.clock()
        if now - self._said_at >= _TOLD_SECONDS:
            self.requeueing.say(text)
            self._said_at = now

    def _summary(self, *, no_wait: bool) -> Iterator[str]:
        again, taken = len(self.again), len(self.taken)
        claimed = "" if no_wait else f", and {taken} of them claimed anew by now"
        due = f": due at the API{claimed}" if again else ""
        yield f"{again} of {batch.counted(len(self.runs))} started again{due}."
        if again > taken and not no_wait:
            yield "Why one waits is what flowfleet explain RUN says."
        if self.refused:
            yield f"Refused: {sum(map(len, self.refused.values()))}."
        # what most are refused for comes first
        for why, names in sorted(self.refused.items(), key=lambda item: -len(item[1]))[:_REASONS]:
            yield f"  {batch.named(names)}: {why}."
        if len(self.refused) > _REASONS:
            yield f"  And for {len(self.refused) - _REASONS} more reasons: flowfleet requeue RUN says which."
        if self.left_alone:
            yield f"Left alone, since they are not Failed or Crashed any more: {batch.named(self.left_alone)}."
        asked = again + sum(map(len, self.refused.values())) + len(self.left_alone)
        if asked < len(self.runs):
            yield f"Not come to: {batch.counted(len(self.runs) - asked)}. Say it once more for them."


def _question(runs: Sequence[ChosenRun], given: str, snapshot: Snapshot) -> str:
    alive = {claim.run_id for claim in snapshot.claims} | {tomb.run_id for tomb in snapshot.tombs}
    number = sum(run.run_id in alive for run in runs)
    held = f", of which {number} may be alive still" if number else ""
    names = batch.named([run.name for run in runs])
    return f"To be started again: {batch.counted(len(runs))} of {given} ({names}){held}"


@click.command("requeue", cls=SettingsCommand)
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at the run.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is claimed.")
@click.option(
    "--all-of",
    metavar="ROUTE|WORKER",
    help="All runs of this POOL/QUEUE or NAME@HOST that ended within the last day and are Failed or Crashed.",
)
@click.option("--yes", is_flag=True, help="Ask nothing.")
@options(CommonSettings, level="WARNING", unused=NO_PART)
def requeue(
    settings: CommonSettings, *, run: str | None, reason: str, no_wait: bool, all_of: str | None, yes: bool
) -> int:
    """Start a run again that has ended, or one that waits for later: it is due now, and claimed anew.

    RUN is its name, its id, or a part of that which no other has. Refused, with the name of the host, while a start of
    it may be alive. Exit code 1 means that a run is refused, or that there is none to start again.

    \b
    flowfleet requeue calm-otter
    flowfleet requeue 0a1b2c3d --reason "the database is back"
    flowfleet requeue --all-of mine/default --yes
    """  # noqa: D301 - click reads the escape
    batch.check_choice(run, all_of)
    with open_ledger(settings) as ledger:
        requeueing = Requeueing(
            ledger=ledger,
            api=connect(settings, os.environ),
            mark=Mark(fleet=settings.fleet),
            whom=chosen_run.by_whom(settings, reason),
            say=progress.say,
        )
        if all_of is not None:
            return _requeue_all_of(requeueing, all_of, yes=yes, no_wait=no_wait)
        chosen = chosen_run.find(run or "", ledger, requeueing.api.orders.find, sure=True)
        requeueing.order(chosen)
        click.echo(f"{chosen.name} is due at the API." if no_wait else requeueing.wait(chosen))
        return 0


def _requeue_all_of(requeueing: Requeueing, given: str, *, yes: bool, no_wait: bool) -> int:
    snapshot = take_snapshot(requeueing.ledger)
    records = requeueing.ledger.claims.records(limit=chosen_run.RECORDS)
    runs = failed_runs(RouteOrWorker(given, snapshot.pool_names), records, snapshot.at, requeueing.api.ends)
    question = _question(runs, given, snapshot)
    if yes:
        click.echo(f"{question}.", err=True)
    elif not batch.agreed(question):
        click.echo("Nothing is started again.", err=True)
        return 1
    order = BatchRequeue(requeueing=requeueing, runs=runs)
    return order.carry_out(no_wait=no_wait)
