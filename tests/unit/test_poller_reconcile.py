"""What stands too long: settled, handed back, finished; silent workers; the sweep and the gate."""

import pytest

from flowfleet.api.client import StateType
from flowfleet.failpoints import FailpointRaised, Failpoints
from flowfleet.ledger.claims import State
from tests.unit.poller_world import World


@pytest.fixture
def world():
    return World.of(slots=1)


@pytest.fixture
def run(world):
    """A run that is queued."""
    run = world.api.add()
    world.rounds(2)
    assert world.claims.by_run[run].state is State.QUEUED
    return run


def returned(world, run):
    return (run, world.published[0].claim) in world.claims.dropped


def test_a_claim_that_nobody_takes_goes_back_after_a_minute_with_its_old_time(world, run):
    due = world.api.due_at[run]
    world.rounds(57)
    assert not returned(world, run)
    world.rounds(6)
    assert returned(world, run)
    assert world.api.due_at[run] == due
    assert world.claimed == [run, run]  # claimed anew, under a new id
    assert len({message.claim for message in world.published}) == 2


def test_an_outage_of_redis_begins_the_minute_anew(world, run):
    world.rounds(50)
    world.ledger.away = True
    world.rounds(5)
    world.ledger.away = False
    world.rounds(40)
    assert not returned(world, run)


@pytest.mark.parametrize(
    ("worker", "renews", "kept_seconds", "gone_seconds"),
    [("worker@a", True, 230, 245), ("worker@a", False, 57, 65), ("ghost@b", True, 57, 66)],
    ids=["four minutes for one that renews", "one for a silent one", "one for one that nobody knows"],
)
def test_a_taken_claim_goes_back_after_the_time_of_its_worker(world, run, worker, renews, kept_seconds, gone_seconds):
    world.claims.be(run, State.TAKEN, worker)
    world.rounds(kept_seconds, beat=renews)
    assert not returned(world, run)
    world.rounds(gone_seconds - kept_seconds, beat=renews)
    assert returned(world, run)
    assert renews or world.api.kind(run) is StateType.SCHEDULED


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.ENDED])
def test_what_may_have_started_is_never_handed_back(world, run, state):
    world.claims.be(run, state, "worker@a")
    for _ in range(100):
        world.rounds(10)
    assert world.claims.by_run[run].state is state
    assert world.api.count("hand_back") == 0


def test_a_run_that_is_no_longer_ours_at_the_api_is_only_dropped(world, run):
    world.api.be(run, StateType.CANCELLED, "Cancelled")
    world.rounds(70)
    assert run not in world.claims.by_run
    assert world.api.kind(run) is StateType.CANCELLED


@pytest.mark.parametrize("place", ["return.after_ledger", "return.after_api"])
def test_a_hand_back_that_a_crash_cut_short_is_finished_by_the_next_leader(world, run, place):
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


def test_a_live_worker_that_hands_back_itself_is_left_alone_for_a_while(world, run):
    world.claims.be(run, State.RETURNING, "worker@a")
    world.rounds(200)  # it renews the claim all the while, so it is at it
    assert world.api.count("hand_back") == 0
    world.roster.forgetful.add("worker@a")
    world.rounds(65)
    assert world.api.count("hand_back") == 0
    world.rounds(10)
    assert returned(world, run)


def test_while_the_api_is_away_nothing_is_begun_to_be_handed_back(world, run):
    world.api.fail()
    world.rounds(300)
    assert world.claims.by_run[run].state in (State.QUEUED, State.RETURNING)
    world.api.heal()
    world.rounds(30)
    assert returned(world, run)


def test_a_worker_whose_beat_stands_for_a_ttl_lapses_and_gets_no_runs(world):
    world.rounds(10)
    world.rounds(25, beat=False)
    world.api.add()
    world.rounds(20, beat=False)
    assert not world.roster.table["worker@a"].live
    assert world.published == []


# --- the sweep


@pytest.mark.parametrize("mark", [None, "flowfleet:f:a:17"], ids=["in its first life", "with the mark of its first"])
def test_the_first_sweep_gives_back_what_is_submitted_and_unknown(mark):
    world = World.of(slots=0)
    run = world.api.submitted(infrastructure=mark)
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
def test_the_sweep_leaves_alone_and_counts_what_may_have_started(world, state, caplog):
    run = world.api.submitted(**state)
    before = world.api.runs[run]
    world.rounds(2000)
    assert world.api.runs[run] == before
    assert world.metric("flowfleet_runs_unknown") == 1
    assert sum("unknown to the ledger" in record.message for record in caplog.records) == 1


def test_the_sweep_leaves_alone_what_the_ledger_knows(world, run):
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
    assert world.claimed == [run]


def test_a_redis_that_lost_everything_waits_for_the_workers_and_sweeps_before_it_claims(world):
    unstarted, running = world.api.submitted(), world.api.submitted(StateType.RUNNING, "Running")
    world.gate.process = "redis-2"
    world.rounds(23)
    assert world.gate.accepted == "redis-1"
    assert world.api.kind(unstarted) is StateType.PENDING
    assert world.published == []
    world.rounds(10)
    assert world.gate.accepted == "redis-2"
    assert world.api.kind(running) is StateType.RUNNING
    assert world.claimed == [unstarted]


@pytest.mark.parametrize(
    ("meanwhile", "shut_seconds"),
    [
        (lambda world: None, 20),
        (lambda world: world.rounds(20) or setattr(world.gate, "process", "redis-3"), 20),
        (lambda world: world.api.fail(), 120),
    ],
    ids=["one that has its claims waits too", "another new one begins the wait anew", "no sweep, no end of the wait"],
)
def test_the_gate_of_a_redis_that_restarted_opens_after_wait_and_sweep(world, run, meanwhile, shut_seconds):
    world.gate.process = "redis-2"
    meanwhile(world)
    world.rounds(shut_seconds)
    assert not world.gate.is_open()
    world.api.heal()
    world.rounds(30)
    assert world.gate.is_open()
