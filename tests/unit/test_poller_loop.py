"""The rounds of the loop, on a clock that is moved by hand."""

import logging

import pytest

from flowfleet.api.client import ServerInfo, StateType, Verdict
from flowfleet.errors import ApiRejected, KeyRefused, LedgerUnavailable
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import State
from poller.listing import Clock
from tests.unit.poller_world import POOL, ROUTE, World, away


def test_a_due_run_is_claimed_submitted_and_published_once():
    world = World()
    world.roster.add()
    run = world.api.add()

    world.rounds(30)

    assert world.api.kind(run) is StateType.PENDING
    assert [message.run_id for message in world.published] == [run]
    assert world.published[0].claim == world.claims.by_run[run].claim
    assert world.claims.by_run[run].state is State.QUEUED


def test_no_more_is_claimed_than_there_are_slots_and_what_waits_is_noted():
    world = World()
    world.roster.add(slots=4)
    for _ in range(50):
        world.api.add()

    world.rounds(30)

    assert len(world.published) == 4
    assert world.api.count("claim") == 1
    (due,) = world.roster.noted
    assert (due.route, due.due, due.at_least) == (ROUTE, 46, False)
    assert due.oldest == pytest.approx(world.time.moment().timestamp() - 30, abs=1)


def test_what_is_due_is_noted_also_while_no_slot_is_free():
    world = World()
    world.roster.add(slots=0)
    for _ in range(50):
        world.api.add()

    world.rounds(15)

    assert world.published == []
    assert world.roster.noted[0].due == 50


def test_idle_it_asks_at_most_eight_times_a_minute():
    world = World()
    for number in range(4):
        world.roster.add(f"worker@{number}")
    world.rounds(60)
    world.api.asked.clear()

    world.rounds(1800)

    assert len(world.api.asked) / 30 <= 8
    assert world.api.count("due") / 30 >= 6  # and it looks at least each ten seconds
    assert world.api.count("online") == 30


def test_a_freed_slot_claims_the_next_run_at_once():
    world = World()
    world.roster.add(slots=1)
    first, second = world.api.add(-2), world.api.add(-1)
    world.rounds(8)
    assert [message.run_id for message in world.published] == [first]

    world.claims.done(first)
    world.ring("freed")
    world.loop.round()

    assert [message.run_id for message in world.published] == [first, second]


def test_in_a_burst_a_run_costs_two_requests():
    world = World()
    world.roster.add(slots=4)
    for _ in range(40):
        world.api.add()
    world.rounds(5)
    world.api.asked.clear()

    for _ in range(36):
        oldest = next(iter(world.claims.by_run))
        world.claims.done(oldest)
        world.time.now += 2.5
        world.roster.beat()
        world.ring("freed")
        world.loop.round()

    assert len(world.published) == 40
    assert len(world.api.asked) <= 2 * 36 + 3


def test_what_comes_soon_after_something_happened_waits_four_seconds_at_most():
    world = World()
    world.roster.add(slots=4)
    world.rounds(60)
    world.api.add()
    world.ring("poke")
    world.rounds(1)

    for seconds in (4, 8, 12):  # since the last thing that happened
        before = world.api.asked.count("due")
        world.rounds(4)
        assert world.api.asked.count("due") == before + 1, f"within {seconds} s"


def test_several_freed_slots_make_one_claim():
    world = World()
    world.roster.add(slots=4)
    runs = [world.api.add(index / 100 - 1) for index in range(8)]
    world.rounds(7)  # the last listing is too old to claim from
    world.api.asked.clear()

    for run in runs[:4]:
        world.claims.done(run)
    world.ring("freed")
    world.loop.round()

    assert len(world.published) == 8
    assert world.api.asked == ["due", "claim"]


def test_a_poke_lists_at_once():
    world = World()
    world.roster.add()
    world.rounds(60)
    run = world.api.add()

    world.ring("poke")
    world.loop.round()

    assert [message.run_id for message in world.published] == [run]


def test_pokes_in_a_row_are_not_a_way_to_flood_the_api():
    world = World()
    world.roster.add()
    world.rounds(60)
    world.api.asked.clear()

    for _ in range(200):
        world.ring("poke")
        world.loop.round()
        world.time.now += 0.01

    assert world.api.count("due") <= 2 / world.pace.gap_seconds + 1


def test_a_run_known_ahead_is_claimed_the_lead_before_its_time():
    world = World()
    world.roster.add()
    run = world.api.add(45)
    due = world.time.moment(45).timestamp()
    claimed_at = []
    publish = world.claimer._publish
    world.claimer._publish = lambda message: (claimed_at.append(world.time.clock.wall()), publish(message))

    world.rounds(60)

    assert [message.run_id for message in world.published] == [run]
    assert due - claimed_at[0] == pytest.approx(world.pace.lead_seconds, abs=0.1)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_what_is_due_is_told_by_the_clock_of_the_api_not_by_ours(skew, caplog):
    world = World()
    servers = world.time.clock
    world.time.clock = Clock(monotonic=servers.monotonic, wall=lambda: servers.wall() - skew)
    world.build()
    world.api.probe = lambda: ServerInfo(backend="prefect3", version="3", skew_seconds=skew)
    world.presence.check_clock()
    world.roster.add()
    now, later = world.api.add(), world.api.add(45)
    claimed_at = {}
    publish = world.claimer._publish
    world.claimer._publish = lambda message: (claimed_at.update({message.run_id: servers.wall()}), publish(message))
    due = servers.wall() + 45

    world.rounds(2)
    assert list(claimed_at) == [now]
    assert [(each.due, each.at) for each in world.roster.noted] == [(0, pytest.approx(servers.wall(), abs=3))]

    world.rounds(60)
    assert due - claimed_at[later] == pytest.approx(world.pace.lead_seconds, abs=0.1)
    assert sum("differs from this machine's" in record.message for record in caplog.records) == 1


def test_a_run_that_is_not_due_within_the_lead_takes_no_slot():
    world = World()
    world.roster.add(slots=1)
    world.api.add(30)
    world.rounds(10)

    assert world.claims.by_run == {}
    assert world.roster.noted[0].due == 0


def test_a_run_that_is_due_comes_before_one_that_is_only_near():
    world = World()
    world.roster.add(slots=1)
    world.api.add(2, run_id="00000000-0000-4000-8000-000000000001")
    due = world.api.add(0, run_id="00000000-0000-4000-8000-000000000002")

    world.rounds(1)

    assert [message.run_id for message in world.published] == [due]


def test_nothing_is_polled_while_no_worker_is_live_only_counted():
    world = World(pools=("flowfleet",))
    world.api.add()

    world.rounds(120)

    assert world.api.count("due") == 0
    assert world.api.count("online") == 0
    assert 6 <= world.api.count("count_due") <= 16
    assert world.roster.noted[0].due == 1


def test_a_pool_is_shown_online_each_minute_and_offline_when_its_last_worker_is_gone():
    world = World()
    world.roster.add()
    world.rounds(130)
    assert world.api.shown == ["flowfleet"] * 3

    world.rounds(100, beat=False)  # the worker's renewals have stopped: it lapses after a TTL

    assert not world.roster.table["worker@a"].live
    assert world.api.hidden == ["flowfleet"]


def test_a_paused_worker_gets_no_runs():
    world = World()
    world.roster.add(wanted="paused")
    world.api.add()

    world.rounds(30)

    assert world.published == []
    assert world.api.count("due") == 0


def test_one_refused_run_does_not_stop_the_others():
    world = World()
    world.roster.add()
    lost = world.api.add(-1)
    won = world.api.add()
    real = world.api.claim

    def claim(runs, call, mark):
        answers = real(runs, call, mark)
        if lost in answers:
            answers[lost] = type(answers[lost])(verdict=Verdict.REFUSED, reason="a limit")
        return answers

    world.api.claim = claim
    world.rounds(3)

    assert [message.run_id for message in world.published] == [won]
    assert lost not in world.claims.by_run


def test_a_run_that_the_api_refuses_is_not_asked_for_again_and_again():
    world = World()
    world.roster.add()
    world.api.add()
    world.api.bent = [(Verdict.REFUSED, False)] * 1000

    world.rounds(60)

    assert world.api.count("claim") <= 60 / world.pace.shun_seconds + 1


def test_while_the_api_is_away_it_says_so_at_once_and_each_half_minute_and_goes_on_after(caplog):
    world = World()
    world.roster.add()
    world.rounds(10)
    world.api.trouble = away
    with caplog.at_level(logging.WARNING):
        world.rounds(95)
    said = [record for record in caplog.records if "does not answer" in record.message]
    assert 3 <= len(said) <= 4
    assert all(record.next_try_seconds <= 10 for record in said)

    run = world.api.add()
    world.api.trouble = lambda name: None
    world.rounds(12)

    assert [message.run_id for message in world.published] == [run]


def hang(world, *names, seconds=30.0):
    """Let the API answer these questions only by a deadline that passes."""

    def trouble(name):
        if name in names:
            world.time.now += seconds
            away(name)

    world.api.trouble = trouble


@pytest.mark.parametrize("hangs", [("claim", "settle"), ("settle",)])
def test_an_api_that_hangs_in_a_claim_ends_the_round_at_its_first_silence(hangs):
    world = World()
    world.roster.add(slots=10)
    for _ in range(10):
        world.api.add()
    if hangs == ("settle",):
        world.api.bent = [(Verdict.UNSURE, True), (Verdict.UNSURE, True)]
    hang(world, *hangs)
    world.leadership.tend()
    for _ in range(5):
        began = world.time.now
        world.wait(world.loop.round())
        assert world.time.now - began <= 45
    assert world.loop.api_outage.away
    assert len(world.claims.by_run) == 10

    world.api.trouble = lambda name: None
    world.rounds(15)
    assert len(world.published) == 10


def test_a_hand_back_that_gets_no_answer_ends_the_round_too():
    world = World()
    world.roster.add(slots=5)
    for _ in range(5):
        world.api.add()
    world.rounds(58)
    hang(world, "hand_back")
    world.api.asked.clear()
    world.time.now += 10
    world.roster.beat()
    world.loop.round()

    assert world.api.asked == ["hand_back"]
    assert world.loop.api_outage.away


def test_slow_answers_are_not_taken_for_a_loop_that_hangs():
    world = World()
    world.roster.add(slots=10)
    for _ in range(10):
        world.api.add()
    world.api.bent = [(Verdict.UNSURE, False), (Verdict.UNSURE, False)]
    seen = []

    def slow(name):
        seen.append(world.time.now - world.loop.round_at)
        world.time.now += 25

    world.api.trouble = slow
    world.rounds(1)

    assert world.api.count("settle") >= 10
    assert max(seen) <= 60


def test_a_refused_key_is_tried_again_each_minute():
    world = World()
    world.roster.add()
    world.rounds(10)

    def refuse(name):
        raise KeyRefused("401")

    world.api.trouble = refuse
    world.rounds(15)
    world.api.asked.clear()
    world.rounds(600)

    assert 9 <= len(world.api.asked) <= 11
    assert world.metrics.registry.get_sample_value("flowfleet_key_refused") == 1


def test_while_redis_is_away_it_waits_and_goes_on_after():
    world = World()
    world.roster.add()
    world.rounds(10)
    world.roster.away = world.claims.away = True
    world.rounds(60)
    assert world.loop.redis_outage.away
    world.api.asked.clear()
    world.rounds(10)
    assert world.api.asked == []

    world.roster.away = world.claims.away = False
    run = world.api.add()
    world.rounds(25)

    assert [message.run_id for message in world.published] == [run]


def test_an_unexpected_error_in_a_round_does_not_end_the_loop(caplog):
    world = World()
    world.roster.add()

    def break_down(name):
        raise ZeroDivisionError

    world.api.trouble = break_down
    with caplog.at_level(logging.ERROR):
        world.rounds(5)
    assert "please report it" in caplog.text
    world.api.trouble = lambda name: None
    run = world.api.add()
    world.rounds(15)

    assert [message.run_id for message in world.published] == [run]


def test_a_pool_that_takes_no_heartbeat_stops_nothing():
    world = World()
    world.roster.add()
    run = world.api.add()

    def online(*_):
        raise ApiRejected("no such pool")

    world.api.online = online
    world.rounds(10)

    assert [message.run_id for message in world.published] == [run]


def test_a_message_that_could_not_be_sent_is_never_sent_again_but_handed_back():
    world = World()
    world.roster.add()
    run = world.api.add()
    world.publish_trouble = LedgerUnavailable("no")
    world.rounds(2)
    first = world.claims.by_run[run].claim
    world.publish_trouble = None

    world.rounds(50)
    assert world.published == []

    world.rounds(30)
    assert [message.run_id for message in world.published] == [run]
    assert world.published[0].claim != first


def test_max_polls_ends_it():
    world = World()
    world.roster.add()
    world.loop._max_polls = 3
    world.leadership.tend()

    world.loop.run()

    assert world.loop.polls == 3
    assert world.gate.written is None  # it has resigned


def test_an_orderly_end_gives_back_what_was_sent_nowhere():
    world = World()
    world.roster.add()
    run = world.api.add()
    world.publish_trouble = LedgerUnavailable("no")
    world.rounds(2)

    world.loop.stop()
    world.loop.run()

    assert world.api.kind(run) is StateType.SCHEDULED
    assert world.claims.by_run == {}
    assert world.gate.written is None


def test_the_route_of_a_queue_that_was_deleted_is_taken_away_and_comes_back_with_it():
    world = World()
    world.roster.add()
    deleted, foreign = (Route("prefect3", scope, "old") for scope in (POOL, "22222222-2222-4222-8222-222222222222"))
    world.roster.known = {deleted, foreign}
    world.rounds(1)
    assert world.roster.known == {ROUTE, foreign}

    world.api.routes = lambda offer: [ROUTE, deleted]
    world.rounds(610)
    assert world.roster.known == {ROUTE, foreign, deleted}


def test_a_new_route_is_made_known():
    world = World()
    world.roster.add()
    world.rounds(1)

    assert world.roster.known == {ROUTE}
