"""The poller at Prefect 1: labels, unfit runs, reinstated runs, start times, and claims without version locks."""

import logging

import pytest

from flowfleet.api.backlog import UnfitRun
from flowfleet.api.client import StateType
from flowfleet.errors import ApiRejected, ApiUnavailable
from flowfleet.ledger.claims import State
from poller.capacity import OfferFilter, listing_plan
from tests.unit.memory_ledger import MemoryLedger
from tests.unit.poller_world import Labelled, World, offer, route


def world_with(*labels, slots=4, **more):
    world = Labelled(**more)
    world.worker(*labels, slots=slots)
    return world


@pytest.fixture
def world():
    return world_with("x")


def running(world, *, worker="worker@a", **more):
    """A run of ours whose process lives."""
    run = world.api.add(**more)
    world.ring("poke")
    world.rounds(1)
    world.claims.be(run, State.RUNNING, worker)
    world.api.be(run, StateType.RUNNING, "Running")
    return run


@pytest.fixture
def run(world):
    return running(world)


def said(caplog, words):
    return [record for record in caplog.records if words in record.message]


# --- labels


def test_a_label_set_that_is_new_is_claimed_when_a_worker_has_subscribed_and_not_a_poll_later():
    world = world_with("x", "y")
    world.rounds(60)
    run = world.api.add(labels=("x", "y"))
    world.ring("poke")
    begun, polls = world.time.now, world.api.count("due")
    world.loop.round()
    assert world.claimed == []  # nobody reads its queue yet
    assert route("x", "y") in world.roster.known
    while not world.claimed:
        world.loop._hints |= world.wait(2.0)
        world.loop.round()
    assert world.time.now - begun < 0.1  # the time of the hints alone
    assert world.api.count("due") == polls + 1
    assert world.claims.by_run[run].route == route("x", "y")


def test_an_hour_unseen_takes_a_label_set_out_of_the_known_routes_but_not_one_that_a_claim_is_on():
    world = world_with("x", "y")
    gone, stays = world.api.add(labels=("x",)), world.api.add(labels=("y",))
    world.rounds(5)
    assert world.roster.known == {route("x"), route("y")}
    world.claims.be(stays, State.RUNNING, "worker@a")
    world.api.be(stays, StateType.RUNNING, "Running")
    world.claims.done(gone)
    world.api.be(gone, StateType.COMPLETED, "Success")

    world.rounds(3400)
    assert world.roster.known == {route("x"), route("y")}
    world.rounds(1000)
    assert world.roster.known == {route("y")}

    again = world.api.add(labels=("x",))
    world.rounds(15)
    assert again in world.claimed


def test_a_new_leader_and_one_whose_api_was_away_watch_for_an_hour_before_they_unlearn(world):
    world.roster.known = {route("x")}
    world.rounds(3000)
    world.api.fail()
    world.rounds(900)
    world.api.heal()
    world.rounds(3300)
    assert world.roster.known == {route("x")}
    world.rounds(1300)
    assert world.roster.known == set()


def plan(rows, *wanted, live=()):
    """Whom the poller asks for and whom it only counts, among workers of these labels."""
    roster = MemoryLedger().roster
    for number, labels in enumerate(rows):
        roster.add(f"worker@{number}", offer=offer(*labels), live=labels in live)
    found = listing_plan(roster.rows(), "prefect1", OfferFilter(labels=wanted))
    return [each.labels for each in found.offers], [each.labels for each in found.idle]


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        ((), [("x", "y"), ("y",), (), ("x",)]),
        (("x",), [("x", "y"), ("x",)]),
        (("x", "y"), [("x", "y")]),
        (("z",), []),
    ],
)
def test_the_pollers_labels_only_narrow_for_whom_it_asks(wanted, asked):
    rows = [("x", "y"), ("y",), (), ("x",)]
    assert plan(rows, *wanted, live=rows)[0] == asked


def test_what_a_live_worker_has_the_labels_for_is_not_counted_once_more_for_one_that_is_away():
    assert plan([("x", "y"), ("y",), ("y", "x"), (), ("z",)], live=[("x", "y")])[1] == [(), ("z",)]


def test_runs_of_workers_that_are_away_are_counted(world):
    world.worker("z", worker="worker@b")
    world.roster.change("worker@b", live=False)
    world.api.add(labels=("z",))
    world.rounds(40, beat=False)
    assert [(due.route, due.due) for due in world.roster.noted] == [(route("z"), 1)]


# --- time


def test_an_old_listing_is_renewed_right_before_a_run_that_was_known_ahead_is_claimed(world):
    world.rounds(60)
    run = world.api.add(20.0)
    world.ring("poke")
    world.rounds(15.0)
    world.api.asked.clear()
    world.rounds(5.3)
    assert world.claimed == [run]
    assert world.api.asked[-2:] == ["due", "claim"]


def test_a_run_that_is_cancelled_while_it_waits_for_its_time_is_not_even_asked_for():
    world = world_with("x")
    run = world.api.add(29.0)
    world.rounds(26.0)
    world.api.be(run, StateType.CANCELLED, "Cancelled")
    world.rounds(10.0)
    assert world.api.count("claim") == 0
    assert world.api.kind(run) is StateType.CANCELLED


def test_of_runs_that_wait_the_oldest_comes_first_whatever_its_labels():
    world = world_with("x", "y", slots=1)
    world.api.add(-1, labels=("x",))
    oldest = world.api.add(-9, labels=("y",))
    world.rounds(5)
    assert world.claimed == [oldest]


@pytest.mark.parametrize("polls", [0, 1, 3])
def test_max_polls_counts_polls_from_none_up(polls):
    world = world_with("x", max_polls=polls)
    world.api.add()
    world.leadership.tend()
    world.loop.run()
    assert world.api.count("due") == world.loop.polls == polls
    assert len(world.claimed) == (1 if polls > 1 else 0)  # with the first poll its labels become known
    assert world.gate.written is None  # resigned in order


def test_the_single_poll_of_an_agent_is_that_which_a_worker_can_act_on():
    world = world_with("x", max_polls=1, awaits_workers=True)
    run = world.api.add()
    world.leadership.tend()
    world.loop.run()
    assert world.claimed == [run]
    assert world.api.count("due") == 2  # the first one taught the labels


def test_a_worker_that_never_serves_what_is_due_holds_up_the_last_poll_for_a_while_only():
    world = world_with("x", max_polls=1, awaits_workers=True)
    world.subscribe = lambda: False
    world.api.add()
    world.leadership.tend()
    begun = world.time.now
    world.loop.run()
    assert 20 <= world.time.now - begun < 60
    assert world.claimed == []


@pytest.mark.parametrize("polls", [1, 3])
def test_a_standby_ends_after_as_many_rounds_of_a_leader_that_is_at_work(polls):
    world = world_with("x", max_polls=polls)
    leader = world.leadership
    leader.tend()
    world.build()  # another poller, of the same name, beside it
    world.api.add()

    def wait(seconds, gather_seconds=0.0):
        leader.tend(), world.leadership.tend()
        return World.wait(world, seconds, gather_seconds)

    world.wait = wait
    begun = world.time.now
    world.loop.run()
    assert 4 * (polls - 1) <= world.time.now - begun < 15 * polls  # at the pace of its own polls
    assert world.api.count("due") == world.loop.polls == 0
    assert world.gate.written.nonce == leader.nonce


def test_a_standby_of_a_leader_that_is_dead_polls_in_its_place(world):
    world.leadership.tend()
    world.max_polls = 2
    world.build()

    def wait(seconds, gather_seconds=0.0):
        world.leadership.tend()
        return Labelled.wait(world, seconds, gather_seconds)

    world.wait = wait
    run = world.api.add()
    world.loop.run()
    assert world.loop.polls == 2
    assert world.claimed == [run]


# --- runs that nobody here can take


@pytest.mark.parametrize("cloud_logs", [True, False])
def test_a_run_that_is_listed_as_unfit_is_told_once_and_stays_and_cloud_logs_tell_it_too(caplog, cloud_logs):
    world = world_with("x", cloud_logs=cloud_logs)
    run = world.api.add()
    reason = world.api.unfit[run] = "It needs a container, and no worker here starts any."
    world.rounds(600)
    (line,) = said(caplog, "no worker can take this run")
    assert (line.levelno, line.run_id, line.reason) == (logging.WARNING, run, reason)
    told = [(each.run_id, each.message, each.level) for each in world.api.lines]
    assert told == [(run, reason, logging.WARNING)] * cloud_logs
    assert world.api.count("log") == cloud_logs
    assert world.api.kind(run) is StateType.SCHEDULED
    assert world.claimed == []
    assert [(due.route, due.due) for due in world.roster.noted] == [(route("x"), 1)]


def test_a_worker_that_only_restarts_makes_nothing_unfit(world, caplog):
    run = world.api.add()
    world.api.unfit[run] = "No worker here starts containers."
    world.rounds(9)
    del world.api.unfit[run]
    world.rounds(20)
    assert said(caplog, "no worker can take") == []
    assert world.claimed == [run]


def test_each_minute_it_asks_for_runs_that_no_labels_fit_and_tells_each_once(world, caplog):
    world.api.nobodys = [UnfitRun(run_id="r1", name="lone-wolf", reason="No agent has the label [gpu].")]
    world.rounds(28)
    assert world.api.count("unserved") == 0  # workers may only be signing on
    world.rounds(600)
    assert 9 <= world.api.count("unserved") <= 11
    assert world.api.asked_for[-1] == (offer("x"),)
    assert [record.run_id for record in said(caplog, "no worker can take")] == ["r1"]
    assert [line.run_id for line in world.api.lines] == ["r1"]


def test_what_was_told_is_forgotten_when_the_run_was_gone_for_an_hour(world, caplog):
    lone = UnfitRun(run_id="r1", name="lone-wolf", reason="No agent has the label [gpu].")
    for gone_seconds, told in ((0, 1), (3500, 1), (3800, 2)):
        world.api.nobodys = []
        world.rounds(gone_seconds)
        world.api.nobodys = [lone]
        world.rounds(100)
        assert len(world.api.lines) == told


def test_a_worker_that_was_here_two_minutes_ago_still_counts_and_a_fleet_without_any_asks_nothing(world):
    world.rounds(95)
    world.roster.change(live=False)
    asked = world.api.count("unserved")
    world.rounds(130, beat=False)
    assert world.api.count("unserved") > asked
    asked = world.api.count("unserved")
    world.rounds(600, beat=False)
    assert world.api.count("unserved") == asked


def test_a_log_page_that_cannot_be_written_ends_no_round_and_is_written_later(world):
    unfit, good = world.api.add(), world.api.add(20.0)
    world.api.unfit[unfit] = "It needs a container."
    world.api.fail("log")
    world.rounds(50)
    assert world.claimed == [good]
    assert not world.loop.api_outage.away
    assert 1 <= world.api.count("log") <= 2
    world.api.heal()
    world.rounds(70)
    assert [line.run_id for line in world.api.lines] == [unfit]


def test_one_refused_line_does_not_take_the_others_with_it(world):
    gone, there = world.api.add(), world.api.add()
    world.api.unfit = dict.fromkeys((gone, there), "It needs a container.")

    def log(lines):
        if any(line.run_id == gone for line in lines):
            raise ApiRejected("the run does not exist")
        world.api.lines += lines

    world.api.log = log
    world.rounds(100)
    assert [line.run_id for line in world.api.lines] == [there]


@pytest.mark.parametrize("error", [ApiRejected("no such table"), ApiUnavailable("no answer")])
def test_an_api_that_does_not_tell_what_is_unserved_is_no_outage(world, error):
    world.api.fail("unserved", error=error)
    world.rounds(200)
    assert world.api.count("unserved") >= 3
    assert world.metric("flowfleet_poll_errors_total") == 0


# --- reinstated runs


def test_an_echo_that_cannot_be_written_back_is_tried_each_half_minute_and_neither_due_nor_a_reason_to_spin(world, run):
    world.api.restarted.add(run)
    world.api.lazarus(run)
    world.rounds(30)
    world.api.asked.clear()
    world.rounds(120)
    assert 3 <= world.api.count("reinstate") <= 5
    assert world.api.count("claim") == 0
    assert world.api.count("due") <= 14
    assert world.roster.noted[0].due == 0
    assert world.metric("flowfleet_runs_echoed_total") == 0


def test_a_run_that_was_restarted_while_its_process_lives_says_so_on_its_page(world, run):
    world.api.restarted.add(run)
    world.api.lazarus(run)
    world.rounds(90)
    (line,) = world.api.lines
    assert line.run_id == run
    assert line.message.startswith("its earlier process still runs on a, and the run waits for its end: `flowfleet")


def test_a_late_retry_whose_process_lives_is_left_to_it(world, run):
    world.api.late_retries.add(run)
    world.rounds(60)
    assert world.api.count("reinstate") == 0
    assert len(world.claimed) == 1
    assert world.roster.noted[0].due == 0


def test_an_echo_of_a_silent_worker_is_not_written_back(world, run):
    world.roster.change(live=False)
    world.worker("x", worker="worker@b")
    world.api.lazarus(run)
    world.rounds(60, beat=False)
    assert world.api.count("reinstate") == 0
    assert len(world.claimed) == 1


def test_a_run_whose_process_ended_while_the_api_listed_is_not_written_back(world, run):
    world.api.lazarus(run)
    due = world.api.due

    def slow(offers, **how):
        found = due(offers, **how)
        world.claims.be(run, State.ENDED, "worker@a")
        return found

    world.api.due = slow
    world.rounds(15)
    assert world.api.count("reinstate") == 0
    assert world.api.kind(run) is StateType.SCHEDULED


def test_many_echoes_at_once_are_written_back_in_turns():
    world = world_with("x", slots=60)
    runs = [running(world) for _ in range(60)]
    for run in runs:
        world.api.lazarus(run)
    world.ring_round("poke")
    assert len(world.api.reinstated) == 25
    world.rounds(60)
    assert set(world.api.reinstated) == {(run, world.claims.by_run[run].claim) for run in runs}


# --- claims


def claimed_late(world, seconds):
    """A run whose claim gets no answer, and is carried out so many seconds later."""
    world.roster.known = {route("x")}
    world.subscribe()
    world.api.late = [seconds]
    return world.api.add()


@pytest.mark.parametrize("seconds", [0.5, 3.0, 20.0, 45.0])
def test_a_claim_that_is_carried_out_after_its_time_out_is_still_ours_and_published_once(world, seconds):
    run = claimed_late(world, seconds)
    world.rounds(60)
    assert world.claimed == [run]
    assert world.claims.by_run[run].state is State.QUEUED
    assert world.api.runs[run].call == world.claims.by_run[run].call


def test_an_unsettled_claim_costs_few_requests(world):
    run = claimed_late(world, 1000.0)
    world.rounds(32)
    assert world.claimed == [run]
    assert world.api.count("claim") + world.api.count("settle") <= 30


def test_a_claim_that_the_server_refuses_for_ever_is_given_up(world):
    run = claimed_late(world, 1e9)
    world.rounds(2)
    assert world.claims.by_run[run].state is State.CLAIMING
    first = world.claims.by_run[run].claim
    world.api._memory[run] = 1e9  # it remembers for ever
    world.rounds(160)
    assert (run, first) in world.claims.dropped
    assert world.claimed == []


# --- the sweep


def test_what_is_submitted_and_unknown_is_given_back_only_when_no_engine_can_be_about_to_begin():
    world = world_with("x", slots=0)
    run = world.api.submitted()
    world.rounds(55)
    assert world.api.kind(run) is StateType.PENDING
    sweeps = world.api.count("unfinished")
    world.rounds(10)
    assert world.api.kind(run) is StateType.SCHEDULED
    assert world.api.count("unfinished") == sweeps + 1


def test_an_engine_that_was_only_slow_keeps_its_run():
    world = world_with("x", slots=0)
    run = world.api.submitted()
    world.rounds(50)
    world.api.be(run, StateType.RUNNING, "Running")
    world.rounds(1300)
    assert world.api.kind(run) is StateType.RUNNING
    assert world.api.count("hand_back") == 0
    assert world.api.count("unfinished") <= 5  # it does not look again and again


def test_an_outage_in_the_middle_of_a_sweep_does_not_begin_the_wait_anew():
    world = world_with("x", slots=0)
    run = world.api.submitted()
    world.rounds(40)
    world.api.fail()
    world.rounds(30)
    world.api.heal()
    world.rounds(12)
    assert world.api.kind(run) is StateType.SCHEDULED
