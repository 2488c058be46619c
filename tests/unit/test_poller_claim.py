"""The claim step and its crashes: each definite answer moves a claim, anything else is asked again and settled."""

import uuid

import pytest

from flowfleet.api.client import StateType, Verdict
from flowfleet.errors import ApiUnavailable
from flowfleet.failpoints import FailpointRaised, Failpoints
from flowfleet.ledger.claims import Lease, State
from flowfleet.ledger.ledger_id import ledger_of
from poller.leader import TermLost
from tests.unit.poller_world import World


@pytest.fixture
def world(world):
    world.leadership.tend()
    return world


@pytest.fixture
def run(world):
    return world.api.add()


def runs_of(world):
    runs = list(world.api.due([], within_seconds=0, limit=10)[0].runs)
    world.api.asked.clear()
    return runs


@pytest.fixture
def runs(world, run):
    """What the listing shows of it."""
    return runs_of(world)


def test_the_call_that_claims_says_through_which_ledger(world, run, runs):
    world.claimer.claim(1, runs)
    (ledger,) = world.gate.ledgers()
    assert ledger_of(world.api.runs[run].call) == ledger
    assert uuid.UUID(world.api.runs[run].call).version == 4


@pytest.mark.parametrize("done", [True, False])
def test_an_unsure_answer_is_asked_again_with_the_same_id(world, run, runs, done):
    world.api.bent = [(Verdict.UNSURE, done)]
    claimed = world.claimer.claim(1, runs)
    assert claimed.published == {run}
    assert world.api.kind(run) is StateType.PENDING
    assert len(world.published) == 1
    assert world.api.runs[run].call == world.claims.by_run[run].call


@pytest.mark.parametrize("silent", ["settle", "claim"], ids=["it stays unsure", "there is none"])
def test_an_answer_that_settles_nothing_leaves_the_claim_to_be_settled(world, run, runs, silent):
    world.api.bent = [(Verdict.UNSURE, True)] if silent == "settle" else []
    world.api.fail(silent)
    assert world.claimer.claim(1, runs).silence
    assert world.claims.by_run[run].state is State.CLAIMING
    assert world.published == []
    world.api.heal()
    assert world.claimer.settle(1, world.claims.by_run[run])
    assert world.claims.by_run[run].state is State.QUEUED
    assert world.claimed == [run]
    assert world.api.kind(run) is StateType.PENDING


@pytest.mark.parametrize("hangs", ["claim", "settle"])
def test_an_api_that_falls_silent_is_waited_for_once_and_no_further_run_is_asked_for(hangs):
    world = World.of(slots=10)
    world.leadership.tend()
    world.api.add_many(10)
    runs = runs_of(world)
    if hangs == "settle":
        world.api.bent = [(Verdict.UNSURE, False), (Verdict.UNSURE, False)]
    world.api.fail(hangs)
    claimed = world.claimer.claim(1, runs)
    assert claimed.silence
    assert world.api.asked == (["claim"] if hangs == "claim" else ["claim", "claim", "settle"])
    assert {claim.state for claim in world.claims.live()} == {State.CLAIMING}


def test_a_question_that_alone_breaks_the_server_is_no_silence(world, run, runs):
    world.api.bent = [(Verdict.UNSURE, False), (Verdict.UNSURE, False)]
    world.api.fail("settle", error=ApiUnavailable("500", answered=True))
    assert world.claimer.claim(1, runs).silence is None
    assert world.claimer.settle(1, world.claims.by_run[run]) is False


def test_a_refused_run_is_dropped(world, run, runs):
    world.api.be(run, StateType.CANCELLED, "Cancelled")
    assert world.claimer.claim(1, runs).refused == {run}
    assert world.claims.by_run == {}
    assert world.published == []


def test_another_term_claims_nothing_and_asks_nothing(world, run, runs):
    with pytest.raises(TermLost):
        world.claimer.claim(0, runs)
    assert world.api.asked == []


def test_a_leader_that_was_replaced_during_the_call_publishes_nothing(world, run, runs):

    def trouble(name):
        if name == "claim":
            world.gate.elect("b", "h", "b", world.gate.written, Lease())

    world.api.trouble = trouble
    with pytest.raises(TermLost):
        world.claimer.claim(1, runs)
    assert world.published == []
    world.claimer.settle(2, world.claims.by_run[run])  # what the new leader does
    assert world.claimed == [run]


@pytest.mark.parametrize(
    "place", ["claim.after_ledger", "claim.after_api", "claim.after_accept", "claim.after_publish"]
)
def test_a_crash_after_each_step_loses_no_run_and_publishes_none_twice(world, run, runs, place):
    world.failpoints = Failpoints({place: "raise"})
    world.build()
    with pytest.raises(FailpointRaised):
        world.claimer.claim(1, runs)
    at_crash = len(world.published)
    world.failpoints = Failpoints()
    world.build()  # another process; it is elected after 15 s
    world.rounds(150)
    claims = [message.claim for message in world.published]
    assert len(claims) == len(set(claims))
    assert set(world.claimed) == {run}
    assert at_crash == (1 if place == "claim.after_publish" else 0)
    assert world.published[-1].claim == world.claims.by_run[run].claim or place == "claim.after_publish"
    assert world.api.kind(run) is StateType.PENDING


def test_a_claim_that_vanished_from_the_ledger_is_not_published(world, run, runs):
    world.api.trouble = lambda name: world.claims.by_run.clear() if name == "claim" else None
    world.claimer.claim(1, runs)
    assert world.published == []
    world.api.heal()
    world.sweep.run()
    assert world.api.kind(run) is StateType.SCHEDULED


def test_settling_never_claims_a_run_that_somebody_has_finished(world, run, runs):
    world.claims.claim(1, runs, "33333333-3333-4333-8333-333333333333", policy="report")
    world.api.be(run, StateType.COMPLETED, "Completed")
    world.claimer.settle(1, world.claims.by_run[run])
    assert world.api.count("claim") == 0
    assert world.claims.by_run == {}
