"""Endings: what becomes of an end that the ledger or the API does not take as it is."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.errors import LedgerBehind
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import CancelAsked, CancelHow, Outcome, Refusal, State
from tests.unit.memory_ledger import HandClock, a_claim
from workers.deployment import Exit
from workers.reporting.endings import Endings
from workers.reporting.exit_table import GONE_LOOK_SECONDS
from workers.reporting.outbox import Report
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders


def test_a_run_that_was_to_start_again_and_is_being_cancelled_is_told_as_cancelled_and_as_nothing_else(tmp_path):
    cancelling = RunState(run_id="r", run_name="n", kind=StateType.CANCELLING, name="Cancelling")
    at_once, told, settled = SimpleNamespace(post=lambda job, after=0.0: job()), [], []
    report = Report(run_id="r", claim="c", kind=StateType.SCHEDULED, message="It is started again.", worker="w@h")

    def take(_run_id, kind, message, _mark, *, claim):
        assert claim == "c"
        told.append((kind, message))
        return Answer(verdict=Verdict.ACCEPTED)

    endings = Endings(
        attempts=Attempts(),
        claims=SimpleNamespace(release=lambda *_: Outcome(moved=True)),
        api=SimpleNamespace(run_again=lambda *_: Answer(verdict=Verdict.REFUSED, state=cancelling), report=take),
        traits=traits.of("prefect3"),
        worker="w@h",
        mark=Mark(fleet="default"),
        runs=RunFolders(tmp_path),
        outbox=SimpleNamespace(to_send=lambda: [report], put=lambda _report: None, remove=lambda *_: None),
        to_ledger=at_once,
        to_api=at_once,
        run_log=SimpleNamespace(say=lambda _run_id, words, _level: told.append(words)),
        failpoints=Failpoints(),
        on_settled=lambda _attempt, outcome: settled.append(outcome),
        cancel_at_api=lambda *_: Answer(verdict=Verdict.ACCEPTED),
    )
    endings.resend()
    sentence = "Cancelled. The flow run's process was stopped."
    assert told == [(StateType.CANCELLED, sentence), sentence]
    assert settled == ["cancelled"]


class World:
    """One worker with one run that has ended with code 3, its ledger and its API; jobs wait until `go`."""

    def __init__(self, path, **facts):
        self.clock, self.jobs, self.settled, self.told, self.cancelled = HandClock(), [], [], [], []
        self.outcome, self.shown, self.others = Outcome(moved=True), StateType.RUNNING, False
        self.attempts = Attempts()
        self.endings = Endings(
            attempts=self.attempts,
            claims=SimpleNamespace(end=lambda *_: self.outcome, release=lambda *_: Outcome(moved=True)),
            api=SimpleNamespace(
                states=self.states, claimed_since=lambda *_: self.others, report=self.report, run_again=None
            ),
            traits=traits.of("prefect3"),
            worker="w@h",
            mark=Mark(fleet="default"),
            runs=RunFolders(path),
            outbox=SimpleNamespace(put=lambda _report: None, remove=lambda *_: None),
            to_ledger=SimpleNamespace(post=lambda job, after=0.0: job()),
            to_api=SimpleNamespace(post=lambda job, after=0.0: self.jobs.append((self.clock.now + after, job))),
            run_log=SimpleNamespace(say=lambda *_: None),
            failpoints=Failpoints(),
            on_settled=lambda _attempt, outcome: self.settled.append(outcome),
            cancel_at_api=self.cancel,
            clock=self.clock,
        )
        held = replace(a_claim("r", State.ENDED), claim="c")
        self.attempt = Attempt(
            held=held, folder=RunFolders(path).get("r", "c"), exit=Exit(code=3), adopted=True, **facts
        )
        self.attempts.begin(self.attempt)

    def states(self, run_ids):
        if self.shown is None:
            return {}
        return {run: RunState(run_id=run, run_name="n", kind=self.shown, name=self.shown.title()) for run in run_ids}

    def report(self, _run_id, kind, *_args, **_how):
        self.told.append(kind)
        return Answer(verdict=Verdict.ACCEPTED)

    def cancel(self, run_id, _why):
        self.cancelled.append(run_id)
        self.shown = StateType.CANCELLING
        return Answer(verdict=Verdict.ACCEPTED)

    def go(self, seconds=1.0):
        """Do what is due within these seconds."""
        self.clock.now += seconds
        while due := [one for one in self.jobs if one[0] <= self.clock.now]:
            self.jobs.remove(due[0])
            due[0][1]()


BEHIND = [
    Outcome(moved=False, refusal=Refusal.UNKNOWN),
    Outcome(moved=False, refusal=Refusal.OTHER_CLAIM, claim=a_claim("r", State.RUNNING, claim="older")),
    *(
        Outcome(moved=False, refusal=Refusal.STATE, claim=a_claim("r", state, claim="c"))
        for state in (State.CLAIMING, State.QUEUED, State.TAKEN, State.RETURNING)
    ),
]


@pytest.mark.parametrize("outcome", BEHIND, ids=lambda one: f"{one.refusal}-{one.claim and one.claim.state}")
def test_an_end_of_which_an_older_copy_of_redis_knows_less_waits_for_the_renewal(tmp_path, outcome):
    world = World(tmp_path)
    world.outcome = outcome
    with pytest.raises(LedgerBehind):
        world.endings.ended(world.attempt)  # the job is tried again
    assert world.settled == []
    world.outcome = Outcome(moved=True)
    world.endings.ended(world.attempt)
    world.go()
    assert (world.told, world.settled) == ([StateType.CRASHED], ["crashed"])


def test_an_end_whose_claim_the_renewal_calls_another_s_is_settled_without_a_report(tmp_path):
    world = World(tmp_path, fenced=True)
    world.outcome = BEHIND[1]
    world.endings.ended(world.attempt)
    world.go()
    assert (world.told, world.settled) == ([], ["lost"])


def test_one_answer_without_the_run_loses_no_end(tmp_path):
    world = World(tmp_path)
    world.shown = None
    world.endings.ended(world.attempt)
    world.go()
    assert world.settled == []
    world.shown = StateType.RUNNING
    world.go(GONE_LOOK_SECONDS)
    assert (world.told, world.settled) == ([StateType.CRASHED], ["crashed"])


def test_a_run_that_stays_unknown_to_the_api_is_deleted(tmp_path):
    world = World(tmp_path)
    world.shown = None
    world.endings.ended(world.attempt)
    world.go()
    world.go(GONE_LOOK_SECONDS)
    assert (world.told, world.settled) == ([], ["gone"])


@pytest.mark.parametrize("others", [False, True], ids=["it is ours", "somebody tries it again"])
def test_the_end_of_a_cancelled_run_cancels_nobody_else_s_attempt(tmp_path, others):
    world = World(tmp_path, cancel=CancelAsked(how=CancelHow.ASKED))
    world.others = others
    world.endings.ended(world.attempt)
    world.go()
    assert world.cancelled == ([] if others else ["r"])
    assert world.settled == (["overtaken"] if others else ["cancelled"])
