"""What stands too long: settled, handed back, finished; silent workers; the sweep and the gate."""

import pytest

from flowfleet.api.client import RunState, StateType
from flowfleet.failpoints import FailpointRaised, Failpoints
from flowfleet.ledger.claims import State
from tests.unit.poller_world import World, away


def queued(slots=1, **more):
    world = World(**more)
    world.roster.add(slots=slots)
    run = world.api.add()
    world.rounds(2)
    assert world.claims.by_run[run].state is State.QUEUED
    return world, run


def returned(world, run):
    return (run, world.published[0].claim) in world.claims.dropped


def test_a_claim_that_nobody_takes_goes_back_after_a_minute_with_its_old_time():
    world, run = queued()
    due = world.api.due_at[run]
    world.rounds(57)
    assert not returned(world, run)

    world.rounds(6)

    assert returned(world, run)
    assert world.api.due_at[run] == due
    assert [message.run_id for message in world.published] == [run, run]  # claimed anew, under a new id
    assert len({message.claim for message in world.published}) == 2


def test_an_outage_of_redis_begins_the_minute_anew():
    world, run = queued()
    world.rounds(50)
    world.roster.away = True
    world.rounds(5)
    world.roster.away = False
    world.rounds(40)

    assert not returned(world, run)


def test_a_taken_claim_of_a_worker_that_renews_has_four_minutes():
    world, run = queued()
    world.claims.be(run, State.TAKEN, "worker@a")
    world.rounds(230)
    assert not returned(world, run)

    world.rounds(15)

    assert returned(world, run)


def test_a_taken_claim_of_a_silent_worker_goes_back_after_a_minute():
    world, run = queued()
    world.claims.be(run, State.TAKEN, "worker@a")
    world.rounds(57, beat=False)
    assert not returned(world, run)

    world.rounds(8, beat=False)

    assert returned(world, run)
    assert world.api.kind(run) is StateType.SCHEDULED


def test_a_taken_claim_of_a_worker_that_nobody_knows_goes_back_after_a_minute():
    world, run = queued()
    world.claims.be(run, State.TAKEN, "ghost@b")
    world.rounds(66)

    assert returned(world, run)


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.ENDED])
def test_what_may_have_started_is_never_touched(state):
    world, run = queued()
    world.claims.be(run, state, "worker@a")
    world.rounds(1000, beat=False)

    assert world.claims.by_run[run].state is state
    assert world.api.count("hand_back") == 0


def test_a_run_that_is_no_longer_ours_at_the_api_is_only_dropped():
    world, run = queued()
    world.api.runs[run] = RunState(run_id=run, run_name="run", kind=StateType.CANCELLED, name="Cancelled")
    world.rounds(70)

    assert run not in world.claims.by_run
    assert world.api.kind(run) is StateType.CANCELLED


@pytest.mark.parametrize("place", ["return.after_ledger", "return.after_api"])
def test_a_hand_back_that_a_crash_cut_short_is_finished_by_the_next_leader(place):
    world, run = queued()
    world.failpoints = Failpoints({place: "raise"})
    world.build()
    world.rounds(16)
    with pytest.raises(FailpointRaised):
        world.reconciler.hand_back(world.leadership.term, world.claims.by_run[run], "test")
    assert world.claims.by_run[run].state is State.RETURNING

    world.failpoints = Failpoints()
    world.build()
    world.rounds(60)

    assert returned(world, run)
    assert world.published[-1].claim == world.claims.by_run[run].claim


def test_a_live_worker_that_hands_back_itself_is_left_alone_for_a_while():
    world, run = queued()
    world.claims.be(run, State.RETURNING, "worker@a")
    world.rounds(200)  # it renews the claim all the while, so it is at it
    assert world.api.count("hand_back") == 0

    world.roster.forgetful.add("worker@a")
    world.rounds(65)
    assert world.api.count("hand_back") == 0
    world.rounds(10)

    assert returned(world, run)


def test_while_the_api_is_away_nothing_is_begun_to_be_handed_back():
    world, run = queued()
    world.api.trouble = away
    world.rounds(300)
    assert world.claims.by_run[run].state in (State.QUEUED, State.RETURNING)

    world.api.trouble = lambda name: None
    world.rounds(30)

    assert returned(world, run)


def test_a_worker_whose_beat_stands_for_a_ttl_lapses_and_gets_no_runs():
    world = World()
    world.roster.add()
    world.rounds(10)
    world.rounds(25, beat=False)
    world.api.add()
    world.rounds(20, beat=False)

    assert not world.roster.table["worker@a"].live
    assert world.published == []


# --- the sweep


def submitted(world, **more):
    run = world.api.add()
    given = {"kind": StateType.PENDING, "name": "Submitted", "call": "22222222-2222-4222-8222-222222222222"} | more
    world.api.runs[run] = RunState(run_id=run, run_name="run", **given)
    return run


def test_the_first_sweep_gives_back_what_is_submitted_and_unknown():
    world = World()
    world.roster.add(slots=0)
    run = submitted(world)
    world.rounds(10)

    assert world.api.kind(run) is StateType.SCHEDULED


@pytest.mark.parametrize(
    "state",
    [
        {"name": "Launching"},
        {"name": "Launching", "infrastructure": "flowfleet:f:a:17"},
        {"kind": StateType.RUNNING, "name": "Running"},
    ],
)
def test_the_sweep_leaves_alone_and_counts_what_may_have_started(state, caplog):
    world = World()
    world.roster.add()
    run = submitted(world, **state)
    before = world.api.runs[run]
    world.rounds(2000)

    assert world.api.runs[run] == before
    assert world.metrics.registry.get_sample_value("flowfleet_runs_unknown") == 1
    assert sum("unknown to the ledger" in record.message for record in caplog.records) == 1


def test_the_sweep_gives_back_a_run_in_its_second_life_that_still_has_the_mark_of_its_first():
    world = World()
    world.roster.add(slots=0)
    run = submitted(world, infrastructure="flowfleet:f:a:17")
    world.rounds(10)

    assert world.api.kind(run) is StateType.SCHEDULED


def test_the_sweep_leaves_alone_what_the_ledger_knows():
    world, run = queued()
    world.sweep.run()

    assert world.api.kind(run) is StateType.PENDING


# --- the gate


def test_a_newcomer_does_not_wait():
    world = World()
    world.gate.accepted = None
    world.roster.add()
    run = world.api.add()
    world.rounds(3)

    assert world.gate.accepted == "redis-1"
    assert [message.run_id for message in world.published] == [run]


def test_a_redis_that_lost_everything_waits_for_the_workers_and_sweeps_before_it_claims():
    world = World()
    world.roster.add()
    unstarted, running = submitted(world), submitted(world, kind=StateType.RUNNING, name="Running")
    world.gate.process = "redis-2"
    world.rounds(23)
    assert world.gate.accepted == "redis-1"
    assert world.api.kind(unstarted) is StateType.PENDING
    assert world.published == []

    world.rounds(10)

    assert world.gate.accepted == "redis-2"
    assert world.api.kind(running) is StateType.RUNNING
    assert [message.run_id for message in world.published] == [unstarted]


def test_a_redis_that_restarted_with_its_claims_waits_too():
    world, _ = queued()
    world.gate.process = "redis-2"
    world.rounds(20)
    assert not world.gate.is_open()

    world.rounds(15)
    assert world.gate.is_open()


def test_another_new_redis_while_the_gate_is_shut_begins_the_wait_anew():
    world, _ = queued()
    world.gate.process = "redis-2"
    world.rounds(20)
    world.gate.process = "redis-3"
    world.rounds(20)
    assert not world.gate.is_open()


def test_the_gate_stays_shut_while_the_api_cannot_be_swept():
    world, _ = queued()
    world.gate.process = "redis-2"
    world.api.trouble = away
    world.rounds(120)
    assert not world.gate.is_open()

    world.api.trouble = lambda name: None
    world.rounds(30)
    assert world.gate.is_open()
