"""Requeue: the command that starts a run again by hand, unless an earlier start of it may be alive."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from flowfleet.api.client import ApiClient, Mark, RunState, StateType, Verdict
from flowfleet.api.connect import connect
from flowfleet.commands import chosen_run
from flowfleet.commands.chosen_run import ChosenRun, NoSuchRun
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiUnavailable, FleetError
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim, State
from flowfleet.monitor import explain as explanations
from flowfleet.monitor.snapshot import take_snapshot
from flowfleet.settings.click_options import options
from flowfleet.settings.common import CommonSettings

_LOOK_SECONDS = 0.3
#: how long a claim is waited for: a leader that hears the hint claims within seconds, if anything can start
_CLAIMED_SECONDS = 15.0
#: a wait that is longer is told
_TOLD_SECONDS = 2.0


class NotStartedAgain(FleetError):
    """An earlier start of the run may be alive, or it is on its way already."""


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

    def order(self, run: ChosenRun) -> None:
        """Write Scheduled, due now, at the API. Raises `NotStartedAgain` while a start may be alive."""
        self._refuse_a_second_start(run)
        answer = self.api.orders.restart(run.run_id, f"requeued {self.whom}", self.mark)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"the Prefect API gave no definite answer to the restart of {run.name}, ask again")
        if answer.gone:
            raise NoSuchRun(f"The run {run.name} does not exist any more.")
        if answer.verdict is Verdict.REFUSED:
            raise NotStartedAgain(_refusal(run, answer.state))
        self.ledger.hints.publish("due", run.run_id)

    def _refuse_a_second_start(self, run: ChosenRun) -> None:
        if not self.ledger.gate.is_open():
            raise NotStartedAgain(
                f"{run.name} is not started again: Redis was restarted or replaced, and until a poller has opened the "
                "gate nobody knows what its workers run. Ask again when flowfleet status shows the gate open."
            )
        claim = self.ledger.claims.get(run.run_id)
        if claim is not None:
            raise NotStartedAgain(f"{run.name} is not started again: {_alive(claim)}.")
        tomb = next((tomb for tomb in self.ledger.claims.tombs() if tomb.run_id == run.run_id), None)
        if tomb is not None:
            raise NotStartedAgain(
                f"{run.name} is not started again: it was told as lost, and its earlier process may live on the host "
                f"{tomb.host}: bring that back, or, if it is gone for good, say worker forget {tomb.worker}."
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


def _refusal(run: ChosenRun, state: RunState | None) -> str:
    if state is None:
        return f"{run.name} is not started again: the API refuses it."
    if state.kind is StateType.PAUSED:
        return f"{run.name} is not started again: the API says {state.name}, resume it in the Prefect UI."
    return (
        f"{run.name} is not started again: the API says {state.name}, and no worker of this fleet holds it. Look "
        "whether another executor runs it; flowfleet cancel ends it at the API, and then it can be started again."
    )


@click.command("requeue")
@click.argument("run", metavar="RUN")
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at the run.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is claimed.")
@options(CommonSettings, level="WARNING")
def requeue(settings: CommonSettings, *, run: str, reason: str, no_wait: bool) -> None:
    """Start a run again that has ended, or one that waits for later: it is due now, and claimed anew.

    RUN is its name, its id, or the beginning of its id. Refused, with the name of the host, while a start of it may be
    alive.

    \b
    flowfleet requeue calm-otter
    flowfleet requeue 0a1b2c3d --reason "the database is back"
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        api = connect(settings, os.environ)
        requeueing = Requeueing(
            ledger=ledger,
            api=api,
            mark=Mark(fleet=settings.fleet),
            whom=chosen_run.by_whom(settings, reason),
            say=lambda line: click.echo(line, err=True),
        )
        chosen = chosen_run.find(run, ledger, api)
        requeueing.order(chosen)
        click.echo(f"{chosen.name} is due at the API." if no_wait else requeueing.wait(chosen))
