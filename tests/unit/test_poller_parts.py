"""The small parts: the banner, capacity, listing, the hints inbox, the page."""

import io
import json
import logging
import signal
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.backlog import DueRuns
from flowfleet.errors import ApiMaintenance, ApiRejected, ApiUnavailable, SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.ledger.claims import State
from flowfleet.page.server import PageRequest
from flowfleet.retry import RetrySchedule, trouble_of
from flowfleet.settings.classes import PollerSettings
from poller.banner import BANNER, greet
from poller.cancellation import CancellationThread
from poller.capacity import OfferFilter, free_capacity, listing_plan
from poller.hints_inbox import HintsInbox
from poller.listing import Listing
from poller.metrics import PollerMetrics
from poller.page import PollerHealth, handlers
from poller.service import PollerService
from tests.unit.memory_ledger import OFFER, POOL, ROUTE, START, MemoryLedger, a_claim
from tests.unit.poller_world import Time, World


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_letters_are_for_terminals_and_the_two_lines_for_all(caplog):
    caplog.set_level(logging.INFO)
    screen, pipe, asked = Terminal(), io.StringIO(), io.StringIO()
    greet("agent@host", ["y", "x"], out=screen)
    greet("agent@host", [], out=pipe)
    greet("agent@host", [], out=asked, shown=True)
    assert (screen.getvalue().rstrip("\n"), pipe.getvalue()) == (BANNER.rstrip("\n"), "")
    assert asked.getvalue() == screen.getvalue()
    assert max(map(len, BANNER.splitlines())) < 60
    assert [record.message for record in caplog.records[:2]] == ["Starting the poller", "Waiting for flow runs..."]
    assert caplog.records[0].labels == ["x", "y"]
    assert caplog.records[2].labels == "those of its workers"


OTHER = Route("prefect3", POOL, "other")


def run(number=0, route=ROUTE, due=START):
    return FlowRun(run_id=f"00000000-0000-4000-8000-{number:012}", name="r", route=route, due=due)


def claim(number, state, worker=None, route=ROUTE):
    return a_claim(run(number).run_id, state, worker=worker, route=route)


def rows(*added):
    roster = MemoryLedger().roster
    for worker, slots, more in added:
        roster.add(worker, slots, **more)
    return roster.rows()


# --- capacity


BOTH = {"routes": (ROUTE, OTHER)}
HELD = [claim(1, State.RUNNING, "a"), claim(2, State.TAKEN, "a"), claim(3, State.QUEUED)]


@pytest.mark.parametrize(
    ("table", "claims", "asked", "chosen"),
    [
        pytest.param([("a", 4, {})], HELD, [run(7), run(8)], [run(7)], id="slots held or waited for are not free"),
        pytest.param([("a", 1, {})], [claim(1, State.ENDED, "a")], [run()], [run()], id="an ended claim holds no slot"),
        pytest.param([("a", 4, {"live": False})], [], [run()], [], id="a worker that does not live does not count"),
        pytest.param([("a", 4, {"wanted": "paused"})], [], [run()], [], id="nor one that is paused"),
        pytest.param([("a", 4, {"wanted": "draining"})], [], [run()], [], id="nor one that is drained"),
        pytest.param([("a", 4, {"routes": ()})], [], [run()], [], id="nor one that does not consume the route"),
        pytest.param(
            [("a", 1, {}), ("b", 1, BOTH)],
            [],
            [run(1), run(2, OTHER), run(3), run(4, OTHER)],
            [run(1), run(2, OTHER)],
            id="each run needs a worker that can run it, and the one that can only do one thing gives its slot first",
        ),
        pytest.param(
            [("a", 1, BOTH)],
            [claim(1, State.QUEUED, route=OTHER)],
            [run(2)],
            [],
            id="what waits in a queue has its slot before others",
        ),
    ],
)
def test_free_capacity_is_what_live_active_workers_have_left(table, claims, asked, chosen):
    assert free_capacity(rows(*table), claims).choose(asked) == chosen


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
    gone = {"offer": replace(OFFER, pools=("old",), pool_ids=("O",)), "live": False}
    table = rows(("a", 1, {}), ("b", 1, {}), ("c", 1, gone), ("d", 1, {"live": False}))
    want = listing_plan(table, "prefect3", OfferFilter())
    assert want.offers == (OFFER,)
    assert want.online == {"flowfleet"}
    assert want.idle == (gone["offer"],)


@pytest.mark.parametrize(
    ("away", "counted"),
    [
        pytest.param(("q1", "q2"), [("q1",)], id="by its name"),
        pytest.param((), [()], id="of a worker of all queues"),
        pytest.param(("q2",), [], id="not one that is served"),
    ],
)
def test_a_queue_whose_worker_is_away_is_counted_though_the_pool_has_another(away, counted):
    live = ("a", 1, {"offer": replace(OFFER, work_queues=("q2",))})
    table = rows(live, ("b", 1, {"offer": replace(OFFER, work_queues=away), "live": False}))
    assert [each.work_queues for each in listing_plan(table, "prefect3", OfferFilter()).idle] == counted


def test_a_count_of_a_whole_pool_says_nothing_about_a_queue_that_is_listed():
    world = World.of(offer=replace(OFFER, work_queues=("other",)), routes=(OTHER,))
    world.roster.add("worker@b", live=False)
    world.api.due = lambda *_, **__: []
    world.api.count_due = lambda *_, **__: [DueRuns(route=route, runs=(), due=3) for route in (ROUTE, OTHER)]
    world.rounds(3)
    assert [(due.route, due.due) for due in world.roster.noted] == [(ROUTE, 3), (OTHER, 0)]


def test_a_pool_that_does_not_exist_yet_keeps_nothing_waiting(caplog):
    world = World(pools=("flowfleet", "tomorrow"))
    world.roster.add()
    found = world.api.add()
    world.api.fail("resolve", error=SettingsError("there is no work pool 'tomorrow'"))
    world.rounds(130)
    assert world.claimed[:1] == [found]
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


def test_a_deleted_pool_does_not_keep_the_others_waiting(world):
    gone = Offer(backend="prefect3", pools=("gone",), pool_ids=("22222222-2222-4222-8222-222222222222",))
    world.roster.add("worker@b", offer=gone)
    found = world.api.add()
    real = world.api.due

    def due(offers, **more):
        if gone in offers:
            raise ApiRejected("no such pool")
        return real(offers, **more)

    world.api.due = due
    world.rounds(10)
    assert world.claimed == [found]


# --- the page


def page(world):
    pokes = []
    health = PollerHealth(world.loop, world.leadership, world.progress)
    paths = handlers(health, world.metrics, lambda: pokes.append(1))

    def ask(path):
        answer = paths[path](PageRequest(method="GET", path=path))
        return answer.status, answer.body

    return ask, pokes


def test_health_is_fine_while_rounds_are_made_and_not_after(world):
    world.rounds(10)
    ask, pokes = page(world)
    status, body = ask("/api/health")
    assert status == 200
    assert json.loads(body) | {"ok": True, "role": "leader", "api": "ok", "redis": "ok"} == json.loads(body)
    assert ask("/api/poke")[0] == 200
    assert pokes == [1]
    world.time.now += 120  # no round all the while
    assert ask("/api/health")[0] == 503
    assert ask("/api/ready")[0] == 503


def test_ready_says_no_while_the_api_is_away_but_health_says_yes(world):
    world.rounds(10)
    world.api.fail()
    world.rounds(30)
    ask, _ = page(world)
    assert ask("/api/ready")[0] == 503
    assert ask("/api/health")[0] == 200


def test_an_announced_maintenance_of_the_api_says_nothing_against_the_poller_and_what_comes_after_it_does(world):
    world.rounds(10)
    ask, _ = page(world)
    told = []
    world.loop.tell_api = lambda error: told.append(error and trouble_of(error))
    world.api.fail(error=ApiMaintenance("it says so"))
    world.rounds(30)
    status, body = ask("/api/ready")
    assert (status, json.loads(body)["api"]) == (200, "maintenance")
    world.api.fail(error=ApiUnavailable("500"))
    world.rounds(60)
    status, body = ask("/api/ready")
    assert (status, json.loads(body)["api"]) == (503, "away")
    world.api.heal()
    world.rounds(60)
    assert json.loads(ask("/api/ready")[1])["api"] == "ok"
    assert list(dict.fromkeys(told)) == [None, "maintenance", "away"]
    assert told[-1] is None


def test_the_page_has_the_metrics_and_no_run_id(world):
    found = world.api.add()
    world.rounds(10)
    text = page(world)[0]("/metrics")[1].decode()
    assert "flowfleet_runs_claimed_total 1.0" in text
    assert found not in text


def service_of(backend="prefect3"):
    """A poller that nothing has started."""
    nobody = SimpleNamespace(
        backend=backend, traits=traits.of(backend), claims=None, ends=None, orders=None, life=None, backlog=None
    )
    return PollerService(
        settings=PollerSettings(host="h", idle_seconds=7.5),
        api=nobody,
        ledger=SimpleNamespace(
            gate=nobody, claims=nobody, roster=nobody, store=None, hints=SimpleNamespace(publish=lambda *_: None)
        ),
        inbox=HintsInbox(),
        api_outage=RetrySchedule("the Prefect API", Time().clock.monotonic),
        publish=lambda _message: None,
        failpoints=Failpoints(),
        metrics=PollerMetrics(),
    )


@pytest.mark.parametrize(
    ("kind", "hurried", "woken"), [("cancel", 1, set()), ("poke", 1, {"poke"}), ("freed", 0, {"freed"})]
)
def test_a_cancel_hurries_the_look_for_cancels_and_a_poke_hurries_the_poll_too(kind, hurried, woken, monkeypatch):
    looks = []
    monkeypatch.setattr(CancellationThread, "hurry", lambda _thread: looks.append(kind))
    service = service_of()
    service._heard(kind)
    assert (len(looks), service.inbox.wait(0)) == (hurried, woken)


def test_a_poke_by_its_page_hurries_the_look_for_cancels(monkeypatch):
    looks = []
    monkeypatch.setattr(CancellationThread, "hurry", lambda _thread: looks.append(True))
    service_of().poke()
    assert looks == [True]


@pytest.mark.parametrize(("backend", "busy"), [("prefect3", 4.0), ("prefect1", 1.0)])
def test_the_loops_pace_is_that_of_the_settings_and_of_the_api(backend, busy):
    pace = service_of(backend).loop.pace
    assert (pace.busy_seconds, pace.idle_seconds) == (busy, 7.5)


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
    world = World.of(slots=1, offer=both, routes=(ROUTE, ELSEWHERE))
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
    assert world.claimed == [backlog[0].run_id, backlog[1].run_id, waiting.run_id]
