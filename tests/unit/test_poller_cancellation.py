"""The leader's look for runs that somebody cancels: what it asks, how often, and what it says on which claim."""

import threading
from dataclasses import replace

import pytest

from flowfleet.api.client import StateType
from flowfleet.errors import ApiUnavailable, LedgerUnavailable
from flowfleet.failpoints import FailpointRaised, Failpoints
from flowfleet.ledger.claims import CancelHow, State
from poller.cancellation import (
    FEW,
    GONE_SECONDS,
    LOOK_SECONDS,
    MANY_GONE_SECONDS,
    PUT_OFF_SECONDS,
    STATES_SECONDS,
    CancellationThread,
    quiet_outage,
)
from tests.unit.poller_world import Labelled, World
from tests.waiting import until

ASKED, OVER = CancelHow.ASKED, CancelHow.OVER
WORLDS = {"prefect3": World, "prefect1": Labelled}


@pytest.fixture(params=WORLDS.values(), ids=list(WORLDS))
def world(request):
    world = request.param()
    if isinstance(world, Labelled):
        world.worker("x", slots=8)
    else:
        world.roster.add(slots=8)
    world.rounds(1)
    return world


def begun(world, number=1, state=State.RUNNING):
    """Runs that their worker has begun, as API and ledger have them."""
    runs = [world.api.add() for _ in range(number)]
    world.rounds(20)
    for run in runs:
        world.claims.be(run, state, "worker@a")
        world.api.be(run, StateType.RUNNING, "Running")
    world.cancellation.look()
    world.api.asked.clear()
    return runs


def how(world, run):
    return world.claims.by_run[run].cancel


def look_for(world, seconds):
    """Look as often as the thread does."""
    for _ in range(int(seconds / LOOK_SECONDS) + 1):
        world.time.now += LOOK_SECONDS
        world.cancellation.look()


def look_at_states(world):
    """The look that reads the states of all begun runs."""
    world.time.now += STATES_SECONDS
    world.cancellation.look()


@pytest.mark.parametrize("state", [State.QUEUED, State.TAKEN, State.STARTING, State.RUNNING, State.MISSING])
def test_a_run_that_is_cancelling_is_told_to_its_claim_with_what_the_api_says_of_it(world, state):
    other, run = begun(world, 2, state)
    world.api.be(run, StateType.CANCELLING, "Cancelling", message="by u@h: wrong input")
    world.cancellation.look()
    assert (how(world, other), how(world, run)) == (CancelHow.NONE, ASKED)
    assert world.claims.by_run[run].cancel_why == "by u@h: wrong input"
    assert world.api.asked == ["under_cancel"]


def test_a_cancel_without_a_word_was_asked_for_at_the_api(world):
    (run,) = begun(world)
    world.api.be(run, StateType.CANCELLING, "Cancelling")
    world.cancellation.look()
    assert (how(world, run), world.claims.by_run[run].cancel_why) == (CancelHow.ASKED, "at the Prefect API")


def test_the_claim_is_told_again_when_a_loss_of_redis_has_taken_it_away_and_nobody_is_asked_while_it_stands(world):
    (run,) = begun(world)
    world.api.be(run, StateType.CANCELLING, "Cancelling")
    world.cancellation.look()
    world.api.asked.clear()
    world.cancellation.look()
    assert world.api.asked == []

    world.claims.by_run[run] = replace(world.claims.by_run[run], cancel=CancelHow.NONE, cancel_why="")
    world.cancellation.look()
    assert how(world, run) is ASKED


def test_the_api_is_asked_nothing_while_no_claim_is_held(world):
    world.api.asked.clear()
    look_for(world, 100)
    assert world.api.asked == []


def test_the_states_of_all_begun_runs_are_read_each_half_minute_in_one_request(world):
    begun(world, 3)
    look_for(world, 10 * STATES_SECONDS)
    assert world.api.count("states") == 10


def test_a_run_that_the_api_shows_as_cancelled_is_over_once_its_engine_had_time_to_end_by_itself(world):
    lives, ends = begun(world, 2)
    for run in (lives, ends):
        world.api.be(run, StateType.CANCELLED, "Cancelled", message="by an automation")
    world.time.now += STATES_SECONDS
    world.cancellation.look()
    world.claims.be(ends, State.ENDED)  # its engine had written that itself
    look_for(world, world.api.traits.cancelled_ends_seconds + LOOK_SECONDS)
    assert how(world, lives) is OVER
    assert how(world, ends) is CancelHow.NONE
    assert world.claims.by_run[lives].cancel_why == "Cancelled at the Prefect API: by an automation"


def test_a_cancelled_run_is_not_over_before_its_time_however_often_is_looked(world):
    (run,) = begun(world)
    world.api.be(run, StateType.CANCELLED, "Cancelled")
    world.time.now += STATES_SECONDS
    seen = world.time.now
    while world.time.now - seen < world.api.traits.cancelled_ends_seconds:
        world.cancellation.look()
        assert how(world, run) is CancelHow.NONE
        world.time.now += 0.5
    world.cancellation.look()
    assert how(world, run) is OVER


def test_a_deleted_run_is_over(world):
    (run,) = begun(world)
    del world.api.runs[run]
    look_for(world, STATES_SECONDS + GONE_SECONDS)
    assert how(world, run) is OVER
    assert world.claims.by_run[run].cancel_why == "deleted at the Prefect API"


@pytest.mark.parametrize("number", [1, FEW])
def test_an_api_that_knows_no_run_for_some_seconds_ends_none_of_a_small_fleet(world, number):
    runs = begun(world, number)
    there, world.api.runs = world.api.runs, {}
    world.time.now += STATES_SECONDS
    world.cancellation.look()
    look_for(world, GONE_SECONDS - 2 * LOOK_SECONDS)
    world.api.runs = there
    look_for(world, LOOK_SECONDS)
    assert {how(world, run) for run in runs} == {CancelHow.NONE}


def test_an_api_that_has_lost_its_data_ends_nothing_for_two_minutes_and_is_told(world, caplog):
    runs = begun(world, FEW + 1)
    there, world.api.runs = world.api.runs, {}
    look_for(world, MANY_GONE_SECONDS - LOOK_SECONDS)
    assert {how(world, run) for run in runs} == {CancelHow.NONE}
    assert "does not know most of the runs" in caplog.text
    world.api.runs = there
    look_for(world, STATES_SECONDS)
    world.api.runs = {}
    look_for(world, MANY_GONE_SECONDS - LOOK_SECONDS)
    assert {how(world, run) for run in runs} == {CancelHow.NONE}, "a run that was seen meanwhile begins anew"

    look_for(world, 2 * STATES_SECONDS)
    assert {how(world, run) for run in runs} == {OVER}


@pytest.mark.parametrize(
    ("kind", "name", "held"),
    [
        (StateType.COMPLETED, "Completed", False),
        (StateType.CRASHED, "Crashed", False),
        (StateType.SCHEDULED, "AwaitingRetry", True),
        (StateType.PAUSED, "Paused", True),
        (StateType.PAUSED, "Suspended", False),
    ],
)
def test_other_states_are_left_to_their_process(world, kind, name, held):
    (run,) = begun(world)
    world.api.be(run, kind, name, held=held)
    look_for(world, 5 * STATES_SECONDS)
    assert how(world, run) is CancelHow.NONE


def test_an_ended_claim_and_one_that_waits_are_not_over(world):
    ended, waits = begun(world, 2)
    world.claims.be(ended, State.ENDED)
    world.claims.be(waits, State.TAKEN)
    for run in (ended, waits):
        world.api.be(run, StateType.CANCELLED, "Cancelled")
    look_for(world, 5 * STATES_SECONDS)
    assert how(world, ended) is CancelHow.NONE
    assert how(world, waits) in (CancelHow.NONE, ASKED)


def again(world, *runs):
    """Somebody retries these runs in the UI, whose processes live."""
    for run in runs:
        world.api.due_at[run] = world.time.moment()
        world.api.be(run, StateType.SCHEDULED, "AwaitingRetry")


def test_a_process_whose_run_would_be_handed_out_again_is_over_after_half_a_minute_and_at_prefect_1_left_alone(world):
    (run,) = begun(world)
    again(world, run)
    look_at_states(world)
    look_for(world, PUT_OFF_SECONDS - 2 * LOOK_SECONDS)
    assert how(world, run) is CancelHow.NONE
    look_for(world, 2 * LOOK_SECONDS)
    assert how(world, run) is (CancelHow.NONE if world.api.traits.requeues_running else OVER)


@pytest.fixture
def prefect3():
    world = World.of(slots=8)
    world.rounds(1)
    return world


@pytest.mark.parametrize("state", [State.STARTING, State.MISSING, State.ENDED])
def test_only_of_a_run_that_is_known_to_run_a_new_due_time_ends_the_process(prefect3, state):
    (run,) = begun(prefect3, 1, state)
    again(prefect3, run)
    look_for(prefect3, 5 * STATES_SECONDS)
    assert how(prefect3, run) is CancelHow.NONE


def test_a_process_that_puts_its_run_off_and_goes_on_with_it_or_ends_is_left_alone(prefect3):
    goes_on, ends = begun(prefect3, 2)
    again(prefect3, goes_on, ends)
    look_at_states(prefect3)
    prefect3.api.be(goes_on, StateType.RUNNING, "Running")
    prefect3.claims.be(ends, State.ENDED)
    look_at_states(prefect3)
    again(prefect3, goes_on)
    look_at_states(prefect3)
    look_for(prefect3, PUT_OFF_SECONDS - 2 * LOOK_SECONDS)
    assert [how(prefect3, run) for run in (goes_on, ends)] == [CancelHow.NONE] * 2


def test_the_time_in_which_a_run_was_due_again_does_not_count_for_a_cancel_of_it(prefect3):
    (run,) = begun(prefect3)
    again(prefect3, run)
    look_at_states(prefect3)
    prefect3.api.be(run, StateType.CANCELLED, "Cancelled")
    look_at_states(prefect3)
    assert how(prefect3, run) is CancelHow.NONE
    look_for(prefect3, prefect3.api.traits.cancelled_ends_seconds)
    assert how(prefect3, run) is OVER


def test_most_of_the_runs_due_again_at_once_are_those_of_an_older_copy_and_end_after_two_minutes(prefect3, caplog):
    runs = begun(prefect3, FEW + 1)
    again(prefect3, *runs)
    look_for(prefect3, MANY_GONE_SECONDS - LOOK_SECONDS)
    assert {how(prefect3, run) for run in runs} == {CancelHow.NONE}
    assert "does not know most of the runs" in caplog.text
    look_for(prefect3, 2 * STATES_SECONDS)
    assert {how(prefect3, run) for run in runs} == {OVER}


def test_a_retry_whose_earlier_process_lives_is_told_on_its_page_and_claimed_when_that_is_gone(prefect3):
    (run,) = begun(prefect3)
    prefect3.api.be(run, StateType.FAILED, "Failed")
    again(prefect3, run)
    prefect3.published.clear()
    prefect3.rounds(10)
    assert prefect3.api.lines == [], "an engine that has put its run off ends in a moment"
    prefect3.rounds(60)
    (line,) = prefect3.api.lines
    assert line.run_id == run
    assert line.message == "its earlier process still runs on a, and is ended within about a minute"
    assert prefect3.published == []

    prefect3.claims.done(run)
    prefect3.rounds(15)
    assert prefect3.claimed == [run]


def test_a_run_that_is_cancelling_too_long_is_over_when_the_server_forces_its_end(world):
    (run,) = begun(world)
    world.api.be(run, StateType.CANCELLING, "Cancelling")
    world.cancellation.look()
    look_for(world, 120)
    assert how(world, run) is ASKED
    world.api.be(run, StateType.CANCELLED, "Cancelled")
    look_for(world, STATES_SECONDS + world.api.traits.cancelled_ends_seconds)
    assert how(world, run) is OVER


def test_no_answer_of_the_api_ends_a_run_and_the_time_without_answers_does_not_count_alone(world):
    (run,) = begun(world)
    world.api.fail("states", "under_cancel")
    for _ in range(100):
        world.time.now += LOOK_SECONDS
        with pytest.raises(ApiUnavailable):
            world.cancellation.look()
    assert how(world, run) is CancelHow.NONE
    world.api.heal()
    look_for(world, STATES_SECONDS)
    assert how(world, run) is CancelHow.NONE


@pytest.mark.parametrize("place", ["cancel.found", "cancel.after_field"])
def test_a_look_that_is_broken_off_is_made_good_by_the_next_one(place):
    world = World.of(slots=4)
    first, second = begun(world, 2)
    for run in (first, second):
        world.api.be(run, StateType.CANCELLING, "Cancelling")
    world.cancellation.failpoints = Failpoints({place: "raise"})
    with pytest.raises(FailpointRaised):
        world.cancellation.look()
    assert [how(world, run) for run in (first, second)].count(ASKED) == (place == "cancel.after_field")
    world.cancellation.failpoints = Failpoints()
    world.cancellation.look()
    assert (how(world, first), how(world, second)) == (ASKED, ASKED)


# waiting claims


@pytest.mark.parametrize("told", [True, False], ids=["the claim says so", "only the api does"])
def test_a_waiting_run_that_is_cancelling_goes_and_is_cancelled_by_whoever_removes_its_claim(world, told):
    run = world.api.add()
    world.rounds(12)
    assert world.claims.by_run[run].state is State.QUEUED
    world.api.be(run, StateType.CANCELLING, "Cancelling", message="Cancelled by u@h: wrong input")
    if told:
        world.cancellation.look()
        world.rounds(3)
    else:
        world.rounds(65)
    assert run not in world.claims.by_run
    assert world.api.kind(run) is StateType.CANCELLED
    why = " (by u@h: wrong input)" if told else ""
    assert world.api.runs[run].message == f"Cancelled before it was started{why}."


# the thread


class Looks:
    def __init__(self):
        self.made = 0
        self.trouble = None

    def look(self):
        self.made += 1
        if self.trouble:
            raise self.trouble


@pytest.fixture
def looks():
    return Looks()


def thread_of(looks, leads=lambda: True):
    return CancellationThread(looks, leads=leads, outages=(quiet_outage("the Prefect API"), quiet_outage("Redis")))


def test_only_the_leader_looks(looks):
    assert thread_of(looks, lambda: False).turn() == LOOK_SECONDS
    assert looks.made == 0


@pytest.mark.parametrize("trouble", [ApiUnavailable("no answer"), LedgerUnavailable("Redis is away")])
def test_a_neighbour_that_is_away_is_asked_again_after_growing_pauses_without_a_word(looks, trouble, caplog):
    looks.trouble = trouble
    thread = thread_of(looks)
    pauses = [thread.turn() for _ in range(8)]
    assert pauses[0] == LOOK_SECONDS
    assert 3 < pauses[-1] <= 5
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    looks.trouble = None
    assert thread.turn() == LOOK_SECONDS


def test_a_hint_hurries_the_next_look_and_one_odd_run_ends_nothing(looks, caplog):
    looks.trouble = ZeroDivisionError("an odd run")
    thread = thread_of(looks)
    thread.start()
    try:
        until(lambda: looks.made, 5, "the first look")
        looks.trouble = None
        thread.hurry()
        until(lambda: looks.made > 1, 5, "the look that was asked for")
    finally:
        thread.stop()
    assert "the look for cancelled runs failed" in caplog.text
    until(lambda: not [each for each in threading.enumerate() if each.name == "cancellation"], 20, "its thread to end")
