"""The small parts: capacity, listing, retry schedules, the hints inbox, the page."""

import json
import signal
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import DueRuns
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused, SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.ledger.claims import Claim, State
from flowfleet.page.server import PageRequest
from flowfleet.retry import RetrySchedule
from flowfleet.settings.classes import PollerSettings
from poller.capacity import OfferFilter, free_capacity, listing_plan
from poller.hints_inbox import HintsInbox
from poller.listing import Listing
from poller.metrics import PollerMetrics
from poller.page import PollerHealth, handlers
from poller.service import PollerParts, PollerService
from tests.unit.poller_world import OFFER, POOL, ROUTE, START, FakeRoster, Time, World, away

OTHER = Route("prefect3", POOL, "other")


def run(number=0, route=ROUTE, due=START):
    return FlowRun(run_id=f"00000000-0000-4000-8000-{number:012}", name="r", route=route, due=due)


def claim(number, state, worker=None, route=ROUTE):
    return Claim(
        run_id=run(number).run_id, claim="c", call="k", route=route, state=state, name="r", due=START, worker=worker
    )


def rows(*added):
    roster = FakeRoster()
    for worker, slots, more in added:
        roster.add(worker, slots, **more)
    return roster.rows()


# --- capacity


def test_slots_that_are_held_or_waited_for_are_not_free():
    table = rows(("a", 4, {}))
    held = [claim(1, State.RUNNING, "a"), claim(2, State.TAKEN, "a"), claim(3, State.QUEUED)]

    assert len(free_capacity(table, held).choose([run(n) for n in range(10, 20)])) == 1


def test_an_ended_claim_holds_no_slot():
    table = rows(("a", 1, {}))

    assert free_capacity(table, [claim(1, State.ENDED, "a")]).choose([run(9)]) == [run(9)]


@pytest.mark.parametrize("more", [{"live": False}, {"wanted": "paused"}, {"wanted": "draining"}, {"routes": ()}])
def test_only_a_live_active_worker_that_consumes_the_route_counts(more):
    assert free_capacity(rows(("a", 4, more)), []).choose([run()]) == []


def test_each_run_needs_a_worker_that_can_run_it():
    table = rows(("a", 1, {"routes": (ROUTE,)}), ("b", 1, {"routes": (ROUTE, OTHER)}))

    chosen = free_capacity(table, []).choose([run(1), run(2, OTHER), run(3), run(4, OTHER)])

    assert chosen == [run(1), run(2, OTHER)]  # the worker that can only do one thing gave its slot first


def test_what_waits_in_a_queue_has_its_slot_before_others():
    table = rows(("a", 1, {"routes": (ROUTE, OTHER)}))

    assert free_capacity(table, [claim(1, State.QUEUED, route=OTHER)]).choose([run(2)]) == []


# --- whom to ask for


def test_the_pollers_own_options_only_narrow():
    offer = Offer(backend="prefect3", pools=("a", "b"), pool_ids=("A", "B"), work_queues=("x", "y"))

    assert OfferFilter().apply(offer) == offer
    narrowed = OfferFilter(pools=("b", "c"), work_queues=("y", "z")).apply(offer)
    assert narrowed == Offer(backend="prefect3", pools=("b",), pool_ids=("B",), work_queues=("y",))
    assert OfferFilter(pools=("c",)).apply(offer) is None
    assert OfferFilter(work_queues=("z",)).apply(offer) is None
    assert OfferFilter(work_queues=("z",)).apply(replace(offer, work_queues=())).work_queues == ("z",)


def test_offers_of_many_workers_are_asked_once_and_those_of_absent_ones_only_counted():
    gone = replace(OFFER, pools=("old",), pool_ids=("O",))
    want = listing_plan(
        rows(("a", 1, {}), ("b", 1, {}), ("c", 1, {"offer": gone, "live": False}), ("d", 1, {"live": False})),
        "prefect3",
        OfferFilter(),
    )

    assert want.offers == (OFFER,)
    assert want.online == {"flowfleet"}
    assert want.idle == (gone,)


def test_a_queue_whose_worker_is_away_is_counted_though_the_pool_has_another():
    def queues(*names):
        return replace(OFFER, work_queues=names)

    live = ("a", 1, {"offer": queues("q2")})
    away_by_name = listing_plan(
        rows(live, ("b", 1, {"offer": queues("q1", "q2"), "live": False})), "prefect3", OfferFilter()
    )
    away_with_all = listing_plan(rows(live, ("b", 1, {"live": False})), "prefect3", OfferFilter())
    served = listing_plan(rows(live, ("b", 1, {"offer": queues("q2"), "live": False})), "prefect3", OfferFilter())

    assert away_by_name.idle == (queues("q1"),)
    assert away_with_all.idle == (OFFER,)
    assert served.idle == ()


def test_a_count_of_a_whole_pool_says_nothing_about_a_queue_that_is_listed():
    world = World()
    world.roster.add(offer=replace(OFFER, work_queues=("other",)), routes=(OTHER,))
    world.roster.add("worker@b", live=False)
    world.api.due = lambda *_, **__: []
    world.api.count_due = lambda _: [DueRuns(route=route, runs=(), due=3) for route in (ROUTE, OTHER)]
    world.rounds(3)

    assert [(due.route, due.due) for due in world.roster.noted] == [(ROUTE, 3)]


def test_a_pool_that_does_not_exist_yet_keeps_nothing_waiting(caplog):
    world = World(pools=("flowfleet", "tomorrow"))
    world.roster.add()
    found = world.api.add()

    def resolve(offer, *, create):
        raise SettingsError("there is no work pool 'tomorrow'")

    world.api.resolve = resolve
    world.rounds(130)

    assert [message.run_id for message in world.published][:1] == [found]
    assert not [record for record in caplog.records if record.exc_info]
    assert sum("cannot be found yet" in record.message for record in caplog.records) in (2, 3)


def test_offers_for_another_api_are_not_ours():
    table = rows(("a", 1, {"offer": Offer(backend="prefect1", tenant=POOL, labels=("x",))}))

    assert listing_plan(table, "prefect3", OfferFilter()).offers == ()


# --- the listing


def test_due_counts_follow_claims_and_keep_at_least():
    time = Time()
    listing = Listing(time.clock)
    early = [run(n, due=START - timedelta(seconds=60 - n)) for n in range(3)]
    listing.renew([DueRuns(route=ROUTE, runs=tuple(early), due=200, at_least=True, oldest=early[0].due)], time.now)
    listing.gone([early[0].run_id])

    (due,) = listing.due(START.timestamp())

    assert (due.due, due.at_least) == (199, True)
    assert due.oldest == early[1].due.timestamp()


def test_a_run_that_two_offers_list_is_there_once():
    listing = Listing(Time().clock)
    listed = DueRuns(route=ROUTE, runs=(run(1),), due=1)
    listing.renew([listed, listed], 1000.0)

    assert listing.claimable(START.timestamp(), 0) == [run(1)]


def test_what_was_refused_is_left_alone_for_a_while_only():
    time = Time()
    listing = Listing(time.clock)
    listing.renew([DueRuns(route=ROUTE, runs=(run(1),), due=1)], time.now)
    listing.put_off([run(1).run_id], 5)
    assert listing.claimable(START.timestamp(), 0) == []

    time.now += 5.1
    assert listing.claimable(START.timestamp(), 0) == [run(1)]


# --- outages


def test_an_outage_is_said_at_once_and_each_half_minute_with_the_next_try(caplog):
    time = Time()
    outage = RetrySchedule("the Prefect API", time.clock.monotonic, lambda: 1.0)
    waits = []
    for _ in range(30):
        outage.failed(ApiUnavailable("no"))
        waits.append(outage.wait_seconds())
        time.now += waits[-1]
    outage.over()

    said = [record for record in caplog.records if "does not answer" in record.message]
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 10])
    assert max(waits) == pytest.approx(10)
    assert sum(waits) / 30 - 1 <= len(said) <= sum(waits) / 30 + 2
    assert "answers again" in caplog.messages[-1]
    assert outage.count == 1


def test_a_refused_key_waits_a_minute_and_is_said_at_once_also_within_an_outage(caplog):
    time = Time()
    outage = RetrySchedule("the Prefect API", time.clock.monotonic, lambda: 1.0)
    outage.failed(ApiUnavailable("no"))
    outage.failed(KeyRefused("401"))

    assert outage.wait_seconds() == 60
    assert outage.key_refused
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("asked", "waits"), [(None, 1), (0.5, 1), (60, 60), (10**9, 3600)])
def test_an_api_that_asks_for_patience_gets_it_within_reason(asked, waits):
    outage = RetrySchedule("the Prefect API", Time().clock.monotonic, lambda: 1.0)
    outage.failed(ApiUnavailable("429", retry_after_seconds=asked))

    assert outage.wait_seconds() == waits


# --- the hints inbox


def test_rings_that_come_together_wake_once():
    inbox = HintsInbox()
    for kind in ("freed", "freed", "poke"):
        inbox.put(kind)

    assert inbox.wait(5, 0.01) == {"freed", "poke"}
    assert inbox.wait(0) == frozenset()


def test_the_bell_can_be_rung_by_a_signal_handler_while_it_is_waited_for():
    inbox = HintsInbox()
    before = signal.signal(signal.SIGALRM, lambda *_: inbox.put("stop"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        assert inbox.wait(30) == {"stop"}
        assert time.monotonic() - began < 15
    finally:
        signal.signal(signal.SIGALRM, before)


# --- listing


def test_a_deleted_pool_does_not_keep_the_others_waiting():
    world = World()
    gone = Offer(backend="prefect3", pools=("gone",), pool_ids=("22222222-2222-4222-8222-222222222222",))
    world.roster.add()
    world.roster.add("worker@b", offer=gone)
    found = world.api.add()
    real = world.api.due

    def due(offers, **more):
        if gone in offers:
            raise ApiRejected("no such pool")
        return real(offers, **more)

    world.api.due = due
    world.rounds(10)

    assert [message.run_id for message in world.published] == [found]


# --- the page


def page(world):
    health = PollerHealth(world.loop, world.leadership, world.time.clock.monotonic)
    pokes = []
    return handlers(health, world.metrics, lambda: pokes.append(1)), pokes


def ask(paths, path):
    answer = paths[path](PageRequest(method="GET", path=path))
    return answer.status, answer.body


def test_health_is_fine_while_rounds_are_made_and_not_after():
    world = World()
    world.roster.add()
    world.rounds(10)
    paths, _ = page(world)
    status, body = ask(paths, "/api/health")
    assert status == 200
    assert json.loads(body) | {"ok": True, "role": "leader", "api": "ok", "redis": "ok"} == json.loads(body)

    world.time.now += 120  # no round all the while
    assert ask(paths, "/api/health")[0] == 503
    assert ask(paths, "/api/ready")[0] == 503


def test_ready_says_no_while_the_api_is_away_but_health_says_yes():
    world = World()
    world.roster.add()
    world.rounds(10)
    world.api.trouble = away
    world.rounds(30)
    paths, _ = page(world)

    assert ask(paths, "/api/ready")[0] == 503
    assert ask(paths, "/api/health")[0] == 200


def test_a_poke_is_passed_on():
    paths, pokes = page(World())

    assert ask(paths, "/api/poke")[0] == 200
    assert pokes == [1]


def test_metrics_have_the_names_of_the_design_and_no_run_id():
    world = World()
    world.roster.add()
    found = world.api.add()
    world.rounds(10)
    text = ask(page(world)[0], "/metrics")[1].decode()

    assert "flowfleet_runs_claimed_total 1.0" in text
    for name in (
        "flowfleet_claims_lost_total",
        "flowfleet_runs_handed_back_total",
        "flowfleet_leases_lapsed_total",
        "flowfleet_poll_duration_seconds_count",
        "flowfleet_poll_errors_total",
        "flowfleet_last_poll_timestamp_seconds",
        "flowfleet_key_refused",
    ):
        assert name in text
    assert found not in text


@pytest.mark.parametrize(("backend", "busy"), [("prefect3", 4.0), ("prefect1", 1.0)])
def test_the_loops_pace_is_that_of_the_settings_and_of_the_api(backend, busy):
    settings = PollerSettings(host="h", idle_seconds=7.5)
    nobody = SimpleNamespace(backend=backend, traits=traits.of(backend))
    ledger = SimpleNamespace(gate=nobody, claims=nobody, roster=nobody)
    service = PollerService(
        PollerParts(
            settings=settings,
            api=nobody,
            ledger=ledger,
            inbox=HintsInbox(),
            api_outage=RetrySchedule("the Prefect API", Time().clock.monotonic),
            publish=lambda _message: None,
            failpoints=Failpoints(),
            metrics=PollerMetrics(),
        )
    )
    assert (service.loop._pace.busy_seconds, service.loop._pace.idle_seconds) == (busy, 7.5)


# --- several pools and queues


LOW = Route("prefect3", POOL, "low")
ELSEWHERE = Route("prefect3", "22222222-2222-4222-8222-222222222222", "default")


def listed(route, *runs, room=None):
    return DueRuns(route=route, runs=runs, due=len(runs), room=room)


def test_no_more_is_chosen_than_the_pool_has_room_for_whoever_is_free():
    time = Time()
    listing = Listing(time.clock)
    listing.renew(
        [listed(ROUTE, run(1), run(2), room=2), listed(LOW, run(3, LOW), run(4, LOW), run(5, LOW), room=2)], 0
    )
    busy_and_idle = rows(("a", 1, {"routes": (ROUTE,)}), ("b", 4, {"routes": (LOW,)}))
    free = free_capacity(busy_and_idle, [claim(9, State.RUNNING, "a")])

    chosen = free.choose(listing.claimable(START.timestamp(), 0), listing.rooms())
    assert chosen == [run(3, LOW), run(4, LOW)]  # the first queue's only worker is busy, its runs keep nobody waiting

    listing.gone([chosen[0].run_id])
    assert free.choose(listing.claimable(START.timestamp(), 0), listing.rooms()) == [run(4, LOW)]


def test_pools_take_turns_by_the_age_of_their_heads_and_keep_their_own_order():
    listing = Listing(Time().clock)

    def at(number, seconds, route):
        return run(number, route, START - timedelta(seconds=seconds))

    first = [at(1, 10, ROUTE), at(2, 50, ROUTE), at(3, 1, ROUTE)]
    other = [at(4, 30, ELSEWHERE), at(5, 5, ELSEWHERE)]
    listing.renew([listed(ROUTE, *first), listed(ELSEWHERE, *other)], 0)

    assert listing.claimable(START.timestamp(), 0) == [other[0], first[0], first[1], other[1], first[2]]


def test_a_pool_with_a_backlog_does_not_starve_the_next_one():
    both = Offer(backend="prefect3", pools=("a", "b"), pool_ids=(POOL, ELSEWHERE.scope))
    world = World()
    world.roster.add(slots=1, offer=both, routes=(ROUTE, ELSEWHERE))
    backlog = [run(number, ROUTE, START - timedelta(seconds=10 - number)) for number in range(5)]
    waiting = run(9, ELSEWHERE, START - timedelta(seconds=8.5))
    for each in (*backlog, waiting):
        world.api.add(run_id=each.run_id)
    done = set()

    def due(*_, **__):
        left = [each for each in (*backlog, waiting) if each.run_id not in done]
        return [listed(route, *[each for each in left if each.route == route]) for route in (ROUTE, ELSEWHERE)]

    world.api.due = due
    for _ in range(3):
        world.rounds(3)
        done.update(world.claims.by_run)
        world.claims.by_run.clear()
    assert [message.run_id for message in world.published] == [backlog[0].run_id, backlog[1].run_id, waiting.run_id]
