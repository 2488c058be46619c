"""Departures: what a poller that ends gives back, to whom it leaves the rest, and how the word to leave ends all."""

import logging

import pytest

from flowfleet.api.client import StateType
from flowfleet.errors import ApiRejected
from flowfleet.failpoints import FailpointRaised, Failpoints
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import State
from tests.unit.memory_ledger import POOL
from tests.unit.poller_world import World


@pytest.fixture
def world(caplog):
    caplog.set_level(logging.INFO)
    return World.of()


@pytest.fixture
def run(world):
    """A run that is queued."""
    run = world.api.add(name="tardy")
    world.rounds(2)
    assert world.claims.by_run[run].state is State.QUEUED
    return run


def end(world):
    """What a signal does."""
    world.loop.stop()
    world.loop.run()


def beside(world, *nonces, seconds=12.0):
    """Other pollers stand by all the while."""
    until = world.time.now + seconds
    while world.time.now < until:
        for nonce in nonces:
            world.gate.stand_by(nonce)
        world.rounds(3)


def is_back(world, run):
    return world.api.kind(run) is StateType.SCHEDULED and run not in world.claims.by_run


def test_a_stop_gives_back_what_nobody_has_taken_when_no_other_poller_is_there(world, run):
    due = world.api.due_at[run]
    end(world)
    assert is_back(world, run)
    assert world.api.due_at[run] == due
    assert world.gate.written is None
    assert world.loop.departure.left() == {}


def test_a_stop_leaves_it_to_a_poller_whose_counter_moves(world, run):
    beside(world, "other")
    end(world)
    assert world.claims.by_run[run].state is State.QUEUED
    assert world.api.count("hand_back") == 0
    assert world.gate.written is None
    assert world.loop.departure.left() == {}


@pytest.mark.parametrize("why", ["killed long ago", "killed before the first look", "ended a moment ago"])
def test_a_poller_that_does_not_stand_by_any_more_is_not_waited_for(world, run, why):
    if why == "killed before the first look":
        world.gate.stand_by("other")
        world.rounds(20)
    else:
        beside(world, "other")
        if why == "killed long ago":
            world.rounds(8)
        else:
            world.gate.stand_down("other")
    end(world)
    assert is_back(world, run)


def test_a_killed_poller_is_taken_off_those_that_stand_by(world):
    beside(world, "other")
    world.rounds(70)
    assert world.gate.counters == {}


def test_a_standby_that_ends_after_its_leader_has_left_all_to_it_gives_back(world, run):
    beside(world, "other")
    first, queued = world.loop, dict(world.claims.by_run)
    world.build()  # the other one
    world.leadership.nonce = "other"
    world.leadership.tend()
    first.stop()
    first.run()
    assert world.claims.by_run == queued
    end(world)
    assert is_back(world, run)
    assert (world.gate.written, world.gate.counters) == (None, {})


def test_a_standby_that_ends_while_its_leader_lives_touches_nothing(world, run):
    world.build()
    world.leadership.tend()
    end(world)
    assert world.claims.by_run[run].state is State.QUEUED
    assert world.gate.written is not None
    assert world.gate.counters == {}


@pytest.mark.parametrize(
    ("state", "worker", "goes"),
    [
        (State.TAKEN, "worker@a", False),
        (State.RUNNING, "worker@a", False),
        (State.RETURNING, "worker@a", False),
        (State.RETURNING, "dead@b", True),
    ],
)
def test_what_a_live_worker_has_in_hand_is_left_to_it(world, run, state, worker, goes):
    world.claims.be(run, state, worker)
    end(world)
    assert is_back(world, run) == goes


def test_the_last_line_names_the_runs_that_go_on(world, run, caplog):
    world.claims.be(run, State.RUNNING, "worker@a")
    end(world)
    assert world.loop.departure.left() == {"go_on": f"tardy ({run})"}


def test_what_cannot_be_given_back_is_named_and_the_next_leader_does_it(world, run):
    world.api.fail("hand_back", seconds=30.0)
    end(world)
    assert world.loop.departure.left() == {"not_given_back": f"tardy ({run})"}
    world.api.heal()
    world.build()
    world.rounds(15)
    assert world.api.due_at[run]
    assert world.claims.by_run[run].claim != world.published[0].claim, "it was given back, and is claimed anew"


def test_one_run_that_the_api_refuses_keeps_no_other_back(world, run):
    other = world.api.add()
    world.rounds(6)
    real = world.api.hand_back

    def refusing(run_id, *rest, **named):
        if run_id == run:
            raise ApiRejected("no")
        return real(run_id, *rest, **named)

    world.api.hand_back = refusing
    end(world)
    assert is_back(world, other)
    assert list(world.claims.by_run) == [run]


@pytest.mark.parametrize("place", ["return.after_ledger", "return.after_api", "leave.before_resign"])
def test_a_poller_that_is_killed_in_its_stop_leaves_the_rest_to_the_next_leader(world, run, place):
    world.failpoints = Failpoints({place: "raise"})
    world.build()
    world.rounds(20)
    with pytest.raises(FailpointRaised):
        end(world)
    world.failpoints = Failpoints()
    world.build()
    world.roster.change(wanted="draining")
    world.rounds(40)
    assert is_back(world, run)


def test_a_claim_that_has_no_answer_is_settled_and_given_back(world):
    run = world.api.add()
    world.api.fail("claim", "settle")
    world.rounds(2)
    assert world.claims.by_run[run].state is State.CLAIMING
    world.api.heal()
    end(world)
    assert is_back(world, run)


def test_while_the_gate_is_shut_nothing_is_given_back_but_named(world, run):
    world.gate.process = "redis-2"
    world.claims.give_back = lambda run_id, *_, **__: world.claims.accept(world.leadership.term, run_id, "other")
    end(world)
    assert "not_given_back" in world.loop.departure.left()


# the last poll


def test_after_its_last_poll_a_poller_waits_until_its_claims_are_taken(world):
    world = World(max_polls=1)
    world.roster.add()
    runs = [world.api.add(), world.api.add()]
    world.leadership.tend()
    wait, looks = world.wait, []

    def take_late(seconds, gather_seconds=0.0):
        looks.append(seconds)
        if len(looks) == 3:
            for run in runs:
                world.claims.be(run, State.TAKEN, "worker@a")
        return wait(seconds, gather_seconds)

    world.wait = take_late
    world.loop.run()
    assert len(looks) == 3
    assert {world.claims.by_run[run].state for run in runs} == {State.TAKEN}


def test_what_nobody_takes_after_the_last_poll_goes_back_after_a_minute_and_at_once_at_a_stop():
    for stops in (False, True):
        world = World(max_polls=1)
        world.roster.add()
        run = world.api.add()
        world.leadership.tend()
        world.loop.round()
        began = world.time.now
        if stops:
            world.loop.stop()
        world.loop.run()
        assert is_back(world, run)
        assert (world.time.now - began >= 60) != stops


# the word of `flowfleet leave`


def test_by_the_word_a_leader_claims_nothing_gives_back_and_ends(world, run):
    world.gate.word = True
    late = world.api.add()
    world.rounds(1)
    assert is_back(world, run)
    world.loop.run()
    assert world.claimed == [run]
    assert world.api.kind(late) is StateType.SCHEDULED
    assert world.gate.written is None


def test_by_the_word_a_leader_stays_until_a_worker_has_what_it_took_in_hand_and_the_sweep_finds_nothing(world, run):
    world.claims.be(run, State.TAKEN, "worker@a")
    lost = world.api.submitted()
    world.gate.word = True
    world.rounds(20)
    assert not world.loop.departure.done
    world.claims.be(run, State.RUNNING)
    world.rounds(2)
    assert world.loop.departure.done
    assert world.api.kind(lost) is StateType.SCHEDULED


def test_by_the_word_a_standby_ends_as_soon_as_it_sees_its_leader_live_and_takes_a_dead_ones_place(world, run):
    world.gate.word = True
    leader = world.leadership
    world.build()
    for _ in range(2):
        assert leader.tend()
        world.rounds(2)
    assert world.loop.departure.done

    world.build()
    world.rounds(20)
    assert world.loop.departure.done
    assert is_back(world, run)
    world.loop.run()
    assert world.gate.written is None


def test_a_word_that_is_taken_back_in_time_ends_nobody(world, run):
    world.claims.be(run, State.TAKEN, "worker@a")
    world.gate.word = True
    late = world.api.add()
    world.rounds(12)
    assert world.claimed == [run]
    world.gate.word = False
    world.rounds(12)
    assert world.claimed == [run, late]
    assert not world.loop.departure.done


def test_the_poller_inside_the_command_claims_nothing_without_the_word_either_and_stays(world, run):
    world.substitute = True
    world.build()
    world.rounds(30)
    assert is_back(world, run)
    assert (world.loop.departure.cleared, world.loop.departure.done) == (True, False)
    world.rounds(60)
    assert world.claimed == [run]
    end(world)
    assert world.gate.written is None


def test_while_the_api_is_away_the_word_is_followed_later(world, run):
    world.gate.word = True
    world.api.fail()
    world.rounds(30)
    assert not world.loop.departure.done
    world.api.heal()
    world.rounds(15)
    assert is_back(world, run)
    assert world.loop.departure.done


# while it leads


@pytest.mark.parametrize(
    "facts",
    [{"live": False}, {"wanted": "draining"}, {"leaving": True}, {"routes": (Route("prefect3", POOL, "other"),)}],
    ids=str,
)
def test_a_queued_claim_that_no_worker_takes_any_more_goes_back_after_seconds(world, run, facts):
    world.roster.change(**facts)
    world.rounds(4, beat=False)
    assert not is_back(world, run)
    world.rounds(4, beat=False)
    assert is_back(world, run)


def test_a_worker_that_is_back_soon_finds_its_queue_as_it_was(world, run):
    for _ in range(5):
        world.roster.change(routes=())
        world.rounds(3)
        world.roster.change(routes=(run_route(world, run),))
        world.rounds(2)
    assert world.claims.by_run[run].state is State.QUEUED


def run_route(world, run):
    return world.claims.by_run[run].route
