"""The rounds of the loop, on a clock that is moved by hand."""

import logging

import pytest

from flowfleet.api.client import Answer, StateType, Verdict
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import ApiRejected, KeyRefused, LedgerUnavailable
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import State
from poller.listing import Clock
from tests.unit.memory_ledger import POOL, ROUTE
from tests.unit.poller_world import World


def test_a_due_run_is_claimed_submitted_and_published_once_and_its_route_made_known(world):
    run = world.api.add()
    world.rounds(30)
    assert world.api.kind(run) is StateType.PENDING
    assert world.claimed == [run]
    assert world.published[0].claim == world.claims.by_run[run].claim
    assert world.claims.by_run[run].state is State.QUEUED
    assert world.roster.known == {ROUTE}


@pytest.mark.parametrize("slots", [4, 0])
def test_no_more_is_claimed_than_there_are_slots_and_what_waits_is_noted_also_while_none_is_free(slots):
    world = World.of(slots=slots)
    world.api.add_many(50)
    world.rounds(30)
    assert len(world.published) == slots
    assert world.api.count("claim") == bool(slots)
    (due,) = world.roster.noted
    assert (due.route, due.due, due.at_least) == (ROUTE, 50 - slots, False)
    assert due.oldest == pytest.approx(world.time.moment().timestamp() - 30, abs=1)


def test_idle_it_asks_at_most_eight_times_a_minute():
    world = World()
    for number in range(4):
        world.roster.add(f"worker@{number}")
    world.rounds(60)
    world.api.asked.clear()
    world.rounds(1800)
    assert len(world.api.asked) / 30 <= 8
    assert looks(world) / 30 >= 6  # and it looks at least each ten seconds
    assert world.api.count("online") == 30


def test_a_freed_slot_claims_the_next_run_at_once():
    world = World.of(slots=1)
    first, second = world.api.add(-2), world.api.add(-1)
    world.rounds(8)
    assert world.claimed == [first]
    world.claims.done(first)
    world.ring_round("freed")
    assert world.claimed == [first, second]


def test_in_a_burst_a_run_costs_two_requests(world):
    world.api.add_many(40)
    world.rounds(5)
    world.api.asked.clear()
    for _ in range(36):
        oldest = next(iter(world.claims.by_run))
        world.claims.done(oldest)
        world.time.now += 2.5
        world.roster.beat()
        world.ring_round("freed")
    assert len(world.published) == 40
    assert len(world.api.asked) <= 2 * 36 + 3


def looks(world):
    """How often it was asked what waits: where nothing does, a count takes the place of a listing."""
    return world.api.count("due") + world.api.count("count_due")


def test_what_comes_soon_after_something_happened_waits_four_seconds_at_most(world):
    world.rounds(60)
    world.api.add()
    world.ring("poke")
    world.rounds(1)
    for seconds in (4, 8, 12):  # since the last thing that happened
        before = looks(world)
        world.rounds(4)
        assert looks(world) == before + 1, f"within {seconds} s"


def test_several_freed_slots_make_one_claim(world):
    runs = [world.api.add(index / 100 - 1) for index in range(8)]
    world.rounds(7)  # the last listing is too old to claim from
    world.api.asked.clear()
    for run in runs[:4]:
        world.claims.done(run)
    world.ring_round("freed")
    assert len(world.published) == 8
    assert world.api.asked == ["due", "claim"]


def test_a_poke_lists_at_once_and_pokes_in_a_row_are_not_a_way_to_flood_the_api(world):
    world.rounds(60)
    run = world.api.add()
    world.ring_round("poke")
    assert world.claimed == [run]
    world.rounds(60)
    world.api.asked.clear()
    for _ in range(200):
        world.ring_round("poke")
        world.time.now += 0.01
    assert world.api.count("due") <= 2 / world.pace.gap_seconds + 1


def watch_claims(world):
    """When each run was claimed, by the server's clock."""
    clock, claimed_at, publish = world.time.clock, {}, world.claimer.publish
    world.claimer.publish = lambda message: (claimed_at.update({message.run_id: clock.wall()}), publish(message))
    return claimed_at


def test_a_run_known_ahead_is_claimed_the_lead_before_its_time(world):
    run = world.api.add(45)
    due = world.time.moment(45).timestamp()
    claimed_at = watch_claims(world)
    world.rounds(60)
    assert world.claimed == [run]
    assert due - claimed_at[run] == pytest.approx(world.pace.lead_seconds, abs=0.1)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_what_is_due_is_told_by_the_clock_of_the_api_not_by_ours(skew, caplog):
    world = World()
    servers = world.time.clock
    world.time.clock = Clock(monotonic=servers.monotonic, wall=lambda: servers.wall() - skew)
    world.build()
    world.time.clock = servers
    world.api.probe = lambda: ServerInfo(backend="prefect3", version="3", skew_seconds=skew)
    world.presence.check_clock()
    world.roster.add()
    now, later = world.api.add(), world.api.add(45)
    claimed_at = watch_claims(world)
    due = servers.wall() + 45

    world.rounds(2)
    assert list(claimed_at) == [now]
    assert [(each.due, each.at) for each in world.roster.noted] == [(0, pytest.approx(servers.wall(), abs=3))]

    world.rounds(60)
    assert due - claimed_at[later] == pytest.approx(world.pace.lead_seconds, abs=0.1)
    assert sum("differs from this machine's" in record.message for record in caplog.records) == 1


def test_a_run_that_is_not_due_within_the_lead_takes_no_slot():
    world = World.of(slots=1)
    world.api.add(30)
    world.rounds(10)
    assert world.claims.by_run == {}
    assert world.roster.noted[0].due == 0


def test_a_run_that_is_due_comes_before_one_that_is_only_near():
    world = World.of(slots=1)
    world.api.add(2, run_id="00000000-0000-4000-8000-000000000001")
    due = world.api.add(0, run_id="00000000-0000-4000-8000-000000000002")
    world.rounds(1)
    assert world.claimed == [due]


def test_nothing_is_polled_while_no_worker_is_live_only_counted():
    world = World(pools=("flowfleet",))
    world.api.add()
    world.rounds(120)
    assert world.api.count("due") == 0
    assert world.api.count("online") == 0
    assert 6 <= world.api.count("count_due") <= 16
    assert world.roster.noted[0].due == 1


def test_a_pool_is_shown_online_each_minute_and_offline_when_its_last_worker_is_gone(world):
    world.rounds(130)
    assert world.api.shown == ["flowfleet"] * 3
    world.rounds(100, beat=False)  # the worker's renewals have stopped: it lapses after a TTL
    assert not world.roster.table["worker@a"].live
    assert world.api.hidden == ["flowfleet"]


def test_a_paused_worker_gets_no_runs():
    world = World.of(wanted="paused")
    world.api.add()
    world.rounds(30)
    assert world.published == []
    assert world.api.count("due") == 0


def test_one_refused_run_does_not_stop_the_others(world):
    lost, won = world.api.add(-1), world.api.add()
    real = world.api.claim
    refused = {lost: Answer(verdict=Verdict.REFUSED, reason="a limit")}
    world.api.claim = lambda runs, *call: real(runs, *call) | (refused if lost in [run.run_id for run in runs] else {})
    world.rounds(3)
    assert world.claimed == [won]
    assert lost not in world.claims.by_run


def test_a_run_that_the_api_refuses_is_not_asked_for_again_and_again(world):
    world.api.add()
    world.api.bent = [(Verdict.REFUSED, False)] * 1000
    world.rounds(60)
    assert world.api.count("claim") <= 60 / world.pace.shun_seconds + 1


def test_while_the_api_is_away_it_says_so_at_once_and_each_half_minute_and_goes_on_after(world, caplog):
    world.rounds(10)
    world.api.fail()
    with caplog.at_level(logging.WARNING):
        world.rounds(95)
    said = [record for record in caplog.records if "does not answer" in record.message]
    assert 3 <= len(said) <= 4
    assert all(record.next_try_seconds <= 10 for record in said)
    run = world.api.add()
    world.api.heal()
    world.rounds(12)
    assert world.claimed == [run]


@pytest.mark.parametrize("hangs", [("claim", "settle"), ("settle",)])
def test_an_api_that_hangs_in_a_claim_ends_the_round_at_its_first_silence(hangs):
    world = World.of(slots=10)
    world.api.add_many(10)
    if hangs == ("settle",):
        world.api.bent = [(Verdict.UNSURE, True), (Verdict.UNSURE, True)]
    world.api.fail(*hangs, seconds=30.0)
    world.leadership.tend()
    for _ in range(5):
        began = world.time.now
        world.wait(world.loop.round())
        assert world.time.now - began <= 45
    assert world.loop.api_outage.away
    assert len(world.claims.by_run) == 10

    world.api.heal()
    world.rounds(15)
    assert len(world.published) == 10


def test_a_hand_back_that_gets_no_answer_ends_the_round_too():
    world = World.of(slots=5)
    world.api.add_many(5)
    world.rounds(58)
    world.api.fail("hand_back", seconds=30.0)
    world.api.asked.clear()
    world.time.now += 10
    world.roster.beat()
    world.loop.round()
    assert world.api.asked == ["hand_back"]
    assert world.loop.api_outage.away


def test_slow_answers_are_not_taken_for_a_loop_that_hangs():
    world = World.of(slots=10)
    world.api.add_many(10)
    world.api.bent = [(Verdict.UNSURE, False), (Verdict.UNSURE, False)]
    seen = []

    def slow(name):
        seen.append(world.progress.seconds_ago)
        world.time.now += 25

    world.api.trouble = slow
    world.rounds(1)
    assert world.api.count("settle") >= 10
    assert max(seen) <= 60


def test_a_refused_key_is_tried_again_each_minute(world):
    world.rounds(10)
    world.api.fail(error=KeyRefused("401"))
    world.rounds(15)
    world.api.asked.clear()
    world.rounds(600)
    assert 9 <= len(world.api.asked) <= 11
    assert world.metric("flowfleet_key_refused") == 1


def test_while_redis_is_away_it_waits_and_goes_on_after(world):
    world.rounds(10)
    world.ledger.away = True
    world.rounds(60)
    assert world.loop.redis_outage.away
    world.api.asked.clear()
    world.rounds(10)
    assert world.api.asked == []
    world.ledger.away = False
    run = world.api.add()
    world.rounds(25)
    assert world.claimed == [run]


def test_a_redis_that_takes_no_writes_is_not_back_because_it_answers_reads(world, caplog):
    world.rounds(10)
    world.ledger.refuses = True
    run = world.api.add()
    world.rounds(59, beat=False)
    assert world.loop.redis_outage.count == 1
    said = [record.message for record in caplog.records if "neighbour" in vars(record)]
    assert said == ["Redis does not answer, waiting"] * 2
    world.ledger.refuses = False
    world.rounds(10)

    # no worker could renew meanwhile, so none is silent
    assert world.roster.table["worker@a"].live
    assert "worker lapsed" not in caplog.text
    assert world.claimed == [run]


def test_an_unexpected_error_in_a_round_does_not_end_the_loop(world, caplog):
    world.api.fail(error=ZeroDivisionError())
    world.rounds(5)
    assert "please report it" in caplog.text
    world.api.heal()
    run = world.api.add()
    world.rounds(15)
    assert world.claimed == [run]


def test_a_pool_that_takes_no_heartbeat_stops_nothing(world):
    run = world.api.add()
    world.api.fail("online", error=ApiRejected("no such pool"))
    world.rounds(10)
    assert world.claimed == [run]


@pytest.fixture
def unsent(world):
    """A run whose message could not be sent."""
    run = world.api.add()
    world.publish_trouble = LedgerUnavailable("no")
    world.rounds(2)
    world.publish_trouble = None
    return run


def test_a_message_that_could_not_be_sent_is_never_sent_again_but_handed_back(world, unsent):
    first = world.claims.by_run[unsent].claim
    world.rounds(50)
    assert world.published == []
    world.rounds(30)
    assert world.claimed == [unsent]
    assert world.published[0].claim != first


def test_an_orderly_end_gives_back_what_was_sent_nowhere(world, unsent):
    world.loop.stop()
    world.loop.run()
    assert world.api.kind(unsent) is StateType.SCHEDULED
    assert world.claims.by_run == {}
    assert world.gate.written is None


def test_the_route_of_a_queue_that_was_deleted_is_taken_away_and_comes_back_with_it(world):
    deleted, foreign = (Route("prefect3", scope, "old") for scope in (POOL, "22222222-2222-4222-8222-222222222222"))
    world.roster.known = {deleted, foreign}
    world.rounds(1)
    assert world.roster.known == {ROUTE, foreign}
    world.api.routes = lambda offer: [ROUTE, deleted]
    world.rounds(610)
    assert world.roster.known == {ROUTE, foreign, deleted}
