"""What waits and is held back: counted at the API, written into the ledger, and told to people."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from flowfleet.api.backlog import DueRuns, Place
from flowfleet.api.client import RunState, StateType
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused
from flowfleet.flow_run import NOTHING_HELD, Held, Offer, Route
from flowfleet.ledger.api_troubles import STARTING, ApiTrouble
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.roster import RouteDue, WorkerRow
from flowfleet.monitor.doctor import fleet_checks
from flowfleet.monitor.explain import explain
from flowfleet.monitor.metrics import our_version
from flowfleet.monitor.snapshot import RouteQueue, Snapshot, WorkerStatus
from flowfleet.monitor.status import status
from poller.capacity import OfferFilter, listing_plan
from poller.lister import Lister
from poller.listing import Clock, Listing
from poller.metrics import PollerMetrics
from poller.presence import Presence
from tests.lawless_api import LawlessApi
from tests.unit.memory_ledger import OFFER, POOL, ROUTE, MemoryLedger
from tests.unit.poller_world import Labelled, World, route

RUN = "33333333-3333-4333-8333-333333333333"


class Fleet:
    """A leader's listings of one pool at an honest API, with a worker that takes the queue `default` alone."""

    def __init__(self, api: LawlessApi, **offer_filter: tuple[str, ...]) -> None:
        self.api, self.now = api, 1000.0
        self.pool = api.add_pool()
        api._create_queue("flowfleet", {"name": "gpu"})
        self.client = Prefect3(Session(Address(url=api.api_url)))
        self.roster = MemoryLedger().roster
        found = self.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)
        self.offer = replace(found, work_queues=("default",))
        self.roster.add(offer=self.offer, routes=(self.route("default"),))
        self.filter = OfferFilter(**offer_filter)
        clock = Clock(monotonic=lambda: self.now, wall=time.time)
        self.presence = Presence(self.client, self.roster, fleet="f", offer_filter=self.filter, clock=clock.monotonic)
        self.lister = Lister(self.client.backlog, self.presence, clock=clock, metrics=PollerMetrics())
        self.listing = Listing(clock)

    def route(self, queue: str) -> Route:
        return Route("prefect3", str(self.pool["id"]), queue)

    def look(self, seconds: float = 60.0) -> dict[str, RouteDue]:
        """What the leader writes into the ledger after one listing, so long after the one before."""
        self.now += seconds
        self.lister.list(self.plan, self.listing)
        self.lister.count(self.plan, self.listing)
        return {row.route.name: row for row in self.listing.due(time.time())}

    @property
    def plan(self):
        return listing_plan(self.roster.rows(), "prefect3", self.filter)

    def known(self, seconds: float = 0.0) -> set[str]:
        """The queues that are known to the fleet after so long and a look."""
        self.look(seconds)
        self.presence.learn(self.plan.offers + self.plan.idle)
        return {route.name for route in self.roster.known}

    def add(self, queue: str = "default", number: int = 1, due_in: float = -5.0) -> None:
        for _ in range(number):
            self.api.add_run(queue=queue, due_in=due_in)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with LawlessApi(honest=True) as api:
        yield Fleet(api)


def test_runs_of_a_paused_queue_are_held_and_not_due(fleet):
    fleet.add(number=3)
    assert (fleet.look()["default"].due, fleet.look()["default"].held) == (3, Held())
    fleet.api._queue("flowfleet", "default")["is_paused"] = True
    row = fleet.look(10)["default"]
    assert (row.due, row.held, row.oldest) == (0, Held(paused=3), None), "seen at once, for three runs have vanished"
    fleet.api._queue("flowfleet", "default")["is_paused"] = False
    row = fleet.look(4)["default"]
    assert (row.due, row.held) == (3, Held()), "what is listed is paused no longer"


def test_runs_of_a_paused_pool_are_held(fleet):
    fleet.pool["is_paused"] = True
    fleet.add(number=2)
    fleet.add("gpu")
    rows = fleet.look()
    assert {name: (row.due, row.held) for name, row in rows.items()} == {
        "default": (0, Held(paused=2)),
        "gpu": (0, Held(paused=1)),
    }


@pytest.mark.parametrize("owner", ["pool", "queue"])
def test_what_a_limit_leaves_no_room_for_is_held_and_due_is_what_the_api_hands_out(fleet, owner):
    limited = fleet.pool if owner == "pool" else fleet.api._queue("flowfleet", "default")
    limited["concurrency_limit"] = 2
    fleet.add(number=5)
    row = fleet.look()["default"]
    assert (row.due, row.at_least, row.held) == (2, False, Held(limit=3))
    claimed = [run.run_id for run in fleet.listing.runs()]
    fleet.listing.gone(claimed)
    (row,) = fleet.listing.due(time.time())
    assert (row.due, row.held) == (0, Held(limit=3)), "what is claimed is held back no longer"


def test_a_run_that_waits_for_a_slot_of_its_deployment_is_held_by_a_limit(fleet):
    fleet.add(due_in=20)
    (run,) = fleet.api.runs.values()
    assert fleet.look()["default"].held == Held()
    run["state"]["name"] = "AwaitingConcurrencySlot"
    assert fleet.look()["default"].held == Held(limit=1)


def test_runs_of_a_queue_that_no_worker_takes_are_due_there(fleet):
    fleet.add("gpu", number=2)
    fleet.add(number=1)
    rows = fleet.look()
    assert {name: row.due for name, row in rows.items()} == {"gpu": 2, "default": 1}
    assert fleet.roster.known == {fleet.route("gpu"), fleet.route("default")}
    assert fleet.api.counted("get_scheduled") == 1, "a listing names the queue that is served, and no other"


@pytest.mark.parametrize("why", [{"shut": "the container engine is away"}, {"wanted": "paused"}, {"live": False}])
def test_what_waits_while_the_only_worker_takes_none_is_due(fleet, why):
    fleet.roster.change(**why)
    fleet.add(number=2)
    fleet.add("gpu")
    assert {name: (row.due, row.held) for name, row in fleet.look().items()} == {
        "default": (2, Held()),
        "gpu": (1, Held()),
    }
    fleet.pool["is_paused"] = True
    assert fleet.look(10)["default"].held == Held(paused=2)


def test_a_poller_with_a_work_queue_of_its_own_leaves_others_alone():
    with LawlessApi(honest=True) as api:
        fleet = Fleet(api, work_queues=("default",))
        fleet.add("gpu")
        fleet.add()
        assert set(fleet.look()) == {"default"}


def test_more_than_one_answer_lists_is_counted_to_the_run(fleet):
    fleet.add(number=230)
    row = fleet.look()["default"]
    assert (row.due, row.at_least) == (230, False)
    fleet.listing.gone([run.run_id for run in fleet.listing.runs()])
    (row,) = fleet.listing.due(time.time())
    assert (row.due, row.at_least) == (30, False)


def test_a_quiet_fleet_is_asked_no_more_often_for_what_is_held(fleet):
    fleet.look()
    before = fleet.api.counted()
    for _ in range(12):
        assert fleet.look(10) == {}
    assert fleet.api.counted() - before == 12
    assert fleet.api.counted("flow_runs/count") >= 3
    fleet.add(due_in=-1)
    fleet.add("gpu")
    rows = [fleet.look(10) for _ in range(8)]
    assert rows[0]["default"].due == 1, "a count that finds something is followed by the listing at once"
    assert rows[-1]["gpu"].due == 1


def test_a_run_that_comes_soon_is_listed_though_the_count_came_first(fleet):
    for _ in range(3):
        fleet.look(10)
    fleet.add(due_in=20)
    for _ in range(3):
        fleet.look(10)
    assert len(fleet.listing.runs()) == 1


def test_what_waits_for_a_worker_that_takes_none_now_is_due():
    world = World.of(shut="the container engine does not answer")
    world.api.add_many(3)
    world.rounds(60)
    assert [(row.route, row.due) for row in world.roster.noted] == [(ROUTE, 3)]


def test_at_prefect_1_a_full_window_is_counted_and_what_no_worker_can_start_is_unserved():
    world = Labelled()
    world.worker("x", slots=0)
    runs = [world.api.add() for _ in range(30)]
    world.api.unfit[runs[0]] = "it asks for Docker"
    listed = world.api._of_route
    world.api._of_route = lambda where, here: replace(listed(where, here[:25]), at_least=len(here) >= 25)
    world.api.count_due = lambda *_, **__: [DueRuns(route=route("x"), runs=(), due=len(runs))]
    world.rounds(30)
    (row,) = world.roster.noted
    assert (row.due, row.at_least, row.held) == (30, False, Held(unserved=1))


def test_at_prefect_1_a_run_that_somebody_else_has_taken_costs_no_count():
    world = Labelled()
    world.worker("x", slots=0)
    run = world.api.add()
    world.rounds(30)
    del world.api.runs[run]
    world.rounds(60)
    assert world.api.count("count_due") == 0
    assert [row.due for row in world.roster.noted] == []


CANNOT_COUNT = [
    ApiUnavailable("500", answered=True),
    ApiUnavailable("no answer within 10 s", timed_out=True),
    ApiUnavailable("no answer"),
    KeyRefused("403"),
    ApiRejected("422"),
]


@pytest.mark.parametrize("error", CANNOT_COUNT, ids=repr)
@pytest.mark.parametrize("begun", [0, 120], ids=["from the begin", "later"])
def test_an_api_that_cannot_count_has_its_runs_claimed_and_its_fleet_shown_all_the_same(error, begun):
    world = World.of(slots=10)
    world.rounds(begun)
    world.api.fail("count_due", error=error, seconds=10.0 if getattr(error, "timed_out", False) else 0.0)
    world.api.asked.clear()
    for _ in range(6):
        run = world.api.add()
        world.rounds(30)
        assert world.claimed[-1] == run
        world.claims.done(run)
    assert len(world.claimed) == 6
    assert world.api.count("online") >= 3
    assert world.api.count("count_due") <= (4 if isinstance(error, ApiUnavailable) else 10), "ever less often"
    assert not world.loop.api_outage.away


@pytest.mark.parametrize("error", CANNOT_COUNT[:2], ids=repr)
def test_an_api_that_cannot_count_is_no_outage_though_no_worker_lives(error):
    world = World.of(live=False)
    world.api.fail("count_due", error=error)
    world.rounds(120, beat=False)
    assert not world.loop.api_outage.away
    assert world.api.count("count_due") <= 4


def test_an_api_that_gives_no_answer_is_an_outage_though_no_worker_lives(caplog):
    world = World.of(live=False)
    world.api.fail("count_due")
    world.rounds(60, beat=False)
    assert world.loop.api_outage.away
    assert "answers again" not in caplog.text


def test_the_last_counts_stand_while_the_api_cannot_count(fleet):
    fleet.pool["is_paused"] = True
    fleet.add(number=2)
    assert fleet.look()["default"].held == Held(paused=2)
    fleet.api.fail("flow_runs/count", times=100)
    assert fleet.look()["default"].held == Held(paused=2)
    assert fleet.look(40)["default"].held == Held(paused=2)


def test_what_a_worker_leaves_behind_is_due_at_once_and_no_limit_holds_it(fleet):
    fleet.pool["concurrency_limit"] = 20
    fleet.add(number=5)
    assert fleet.look()["default"].due == 5
    fleet.add(number=2)
    fleet.roster.change(live=False)
    row = fleet.look(5)["default"]
    assert (row.due, row.held) == (7, Held())


def test_what_a_worker_comes_for_is_as_many_as_are_listed(fleet):
    fleet.add("gpu", number=2)
    assert fleet.look()["gpu"].due == 2
    fleet.add("gpu", number=10)
    fleet.roster.change(offer=replace(fleet.offer, work_queues=()))
    row = fleet.look(5)["gpu"]
    assert (row.due, row.at_least) == (12, False)


def test_a_run_that_fell_due_after_the_count_is_not_taken_off_it_when_it_is_claimed(fleet):
    fleet.pool["concurrency_limit"] = 2
    fleet.add(number=3)
    assert fleet.look()["default"].held == Held(limit=1)
    (early, _) = fleet.listing.runs()
    late = replace(early, run_id=RUN, due=datetime.now(UTC) + timedelta(seconds=20))
    fleet.listing.renew([DueRuns(route=early.route, runs=(early, late), due=1)], fleet.now, 200, fleet.plan.offers)
    fleet.listing.gone([RUN])
    (row,) = fleet.listing.due(time.time())
    assert (row.due, row.held) == (1, Held(limit=2))


def test_a_row_of_a_later_version_is_read_and_an_earlier_one_too():
    row = RouteDue(route=ROUTE, due=2, at_least=True, oldest=None, at=5.0, held=Held(paused=1))
    assert RouteDue.read(ROUTE, row.to_json()) == row
    later = row.to_json()[:-1] + ', "new": 1}'
    assert RouteDue.read(ROUTE, later.replace('"limit"', '"weather": 1, "limit"')) == row
    assert RouteDue.read(ROUTE, '{"due": 2, "at_least": true, "oldest": null, "at": 5.0}') == replace(row, held=Held())


def test_an_offer_of_other_queues_is_no_reason_to_forget_a_count():
    listing = Listing(Clock(monotonic=lambda: 0.0, wall=time.time))
    listing.renew((), 0.0, served=[replace(OFFER, work_queues=("other",))])
    listing.tally([DueRuns(route=ROUTE, runs=(), due=4)], 0.0)
    (row,) = listing.due(0.0)
    assert (row.route.scope, row.due) == (POOL, 4)


# --- which queues there are


def test_a_queue_that_no_worker_takes_is_known_too(fleet):
    assert fleet.known() == {"default", "gpu"}


def test_a_poller_with_a_work_queue_of_its_own_knows_no_other():
    with LawlessApi(honest=True) as api:
        assert Fleet(api, work_queues=("default",)).known() == {"default"}


def test_a_renamed_queue_is_gone_within_two_minutes_though_nothing_waits(fleet):
    fleet.known()
    fleet.api._queue("flowfleet", "gpu")["name"] = "tpu"
    assert [fleet.known(40) for _ in range(3)][-1] == {"default", "tpu"}


def test_a_renamed_queue_where_runs_wait_is_gone_with_the_next_count(fleet):
    fleet.add("gpu")
    assert fleet.known() == {"default", "gpu"}
    fleet.api._queue("flowfleet", "gpu")["name"] = "tpu"
    for run in fleet.api.runs.values():
        run["work_queue_name"] = "tpu"
    assert fleet.known(30) == {"default", "tpu"}
    assert set(fleet.look(0)) == {"tpu"}


def test_a_deleted_pool_is_gone_at_the_next_listing_and_others_stay(fleet):
    other = Route("prefect3", POOL, "default")
    fleet.roster.known.add(other)
    fleet.known()
    fleet.api.pools.clear()
    fleet.api.queues.clear()
    fleet.known(10)
    assert fleet.roster.known == {other}


# --- what people are told


def page(snapshot, width=160):
    out = io.StringIO()
    Console(file=out, width=width, no_color=True).print(status(snapshot, width=width))
    return out.getvalue()


def snapshot(*queues: RouteQueue, rows=(), **facts) -> Snapshot:
    return Snapshot(
        at=1000.0,
        fleet="default",
        redis_version="9.1.0",
        gate_open=True,
        leader=Leader(name="agent", host="host-1", nonce="n", term=3, beat=9),
        queues=queues,
        workers=tuple(WorkerStatus(row=row, busy=0, seen_seconds_ago=1.5) for row in rows),
        claims=(),
        **({"due_at": 998.0} | facts),
    )


def queue(due=0, held=NOTHING_HELD, name="default", **facts) -> RouteQueue:
    known = {"at_least": False, "oldest_due_seconds": None, "depth": 0, "oldest_age_seconds": None}
    route = Route("prefect3", POOL, name)
    return RouteQueue(route=route, due=due, held=held, **({"eligible_workers": 1} | known | facts))


WORKER = WorkerRow(worker="w@host-1", nonce="n", offer=OFFER, routes=(ROUTE,), slots=4, version=our_version())


@pytest.mark.parametrize(
    ("held", "head", "cell", "sentence"),
    [
        (Held(paused=5), "held 5", "5", "5 runs wait on flowfleet/default, whose pool or queue is paused."),
        (Held(limit=1), "held 1", "1", "1 run waits on flowfleet/default, where a limit of the pool, the queue or"),
    ],
)
def test_status_and_doctor_never_say_due_0_of_runs_that_are_held(held, head, cell, sentence):
    shown = snapshot(queue(held=held), rows=[WORKER])
    text = page(shown)
    assert f"\n{head}   claimed 0" in text
    assert "due 0" not in text
    assert sentence in text
    assert f"flowfleet/default    0     {cell}" in text
    assert "due 3   held" in page(snapshot(queue(due=3, held=held), rows=[WORKER]))
    assert next(check.found for check in fleet_checks(shown) if check.name == "held").startswith(sentence)
    assert shown.to_json()["queues"][0]["held"] == asdict(held)


def test_what_no_worker_takes_is_due_and_said():
    shown = snapshot(queue(due=2, held=Held(unserved=2), eligible_workers=0), rows=[WORKER])
    text = page(shown)
    assert "\ndue 2   claimed" in text
    assert "2 runs wait on flowfleet/default, which no worker takes now." in text
    assert [check.name for check in fleet_checks(shown) if check.verdict == "warn"] == ["unserved"]


def test_a_fleet_where_nothing_waits_says_so():
    text = page(snapshot(queue(), rows=[WORKER]))
    assert "\ndue 0   claimed" in text
    assert "runs wait" not in text


def test_of_many_queues_three_are_named_and_all_counted():
    many = [queue(held=Held(paused=2), name=f"q{number}") for number in range(5)]
    shown = page(snapshot(*many, rows=[WORKER]))
    assert "10 runs wait on flowfleet/q0, flowfleet/q1, flowfleet/q2 and 2 more, whose pool" in shown


def test_at_least_none_is_never_said():
    text = page(snapshot(queue(at_least=True), rows=[WORKER]))
    assert "due ?   claimed" in text
    assert "flowfleet/default    ?     -" in text
    text = page(snapshot(queue(due=200, at_least=True), rows=[WORKER]))
    assert "due at least 200   claimed" in text
    assert "flowfleet/default  200+" in text


def test_old_numbers_are_shown_with_their_age_and_never_as_none():
    away = {"due_at": 930.0, "api_troubles": (ApiTrouble(part="leader", trouble="away"),)}
    text = page(snapshot(queue(), rows=[WORKER], **away))
    assert "due ? (as of 1m 10s ago)   claimed 0" in text
    assert "The Prefect API does not answer: the lead poller" in text
    text = page(snapshot(queue(due=4), rows=[WORKER], **away))
    assert "due 4 (as of 1m 10s ago)   claimed 0" in text
    assert "due ?   claimed 0" in page(snapshot(queue(), rows=[WORKER], due_at=None)), "nobody has asked yet"
    assert snapshot(queue(), **away).to_json()["due_at"] == "1970-01-01T00:15:30.000Z"


def test_a_poller_that_waits_for_the_api_is_not_taken_for_none():
    shown = replace(
        snapshot(queue(), api_troubles=(ApiTrouble(part=STARTING, trouble="away"),), due_at=None), leader=None
    )
    text = page(shown)
    assert "no lead poller" in text
    assert "No poller claims runs now: one that starts waits for the Prefect API." in text
    assert "The Prefect API does not answer: a poller that starts" in text
    found = next(check for check in fleet_checks(shown) if check.name == "poller's api")
    assert (found.verdict, found.found) == ("warn", "The Prefect API does not answer the poller.")


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ("away", "the Prefect API does not answer the poller."),
        ("key-refused", "the Prefect API refuses the key of the poller."),
        ("maintenance", "the Prefect API is in maintenance, and the poller waits for its end."),
    ],
)
def test_what_keeps_the_poller_from_the_api_explains_why_a_run_waits(trouble, sentence):
    due = RunState(
        run_id=RUN, run_name="r", kind=StateType.SCHEDULED, name="Scheduled", scheduled=datetime.fromtimestamp(940, UTC)
    )
    place = Place(route=ROUTE, pool="flowfleet")
    shown = snapshot(queue(), rows=[WORKER], api_troubles=(ApiTrouble(part="leader", trouble=trouble),))
    assert explain(RUN, shown, None, due, place).sentence == f"It has been due for 1m 0s and {sentence}"
    assert explain(RUN, replace(shown, leader=None), None, due, place).sentence.endswith("in the fleet default.")
    elsewhere = replace(shown, api_troubles=(ApiTrouble(part="w@host-1", trouble=trouble),))
    assert explain(RUN, elsewhere, None, due, place).sentence.endswith("nothing hinders it.")


def test_a_run_that_awaits_a_slot_is_explained_by_its_deployments_limit():
    state = RunState(run_id=RUN, run_name="r", kind=StateType.SCHEDULED, name="AwaitingConcurrencySlot")
    sentence = explain(RUN, snapshot(queue(held=Held(limit=1))), None, state).sentence
    assert sentence == "It waits for a slot at the API: its deployment has reached its concurrency limit."


def test_a_run_whose_place_is_not_known_is_explained_by_what_is_held():
    due = RunState(
        run_id=RUN, run_name="r", kind=StateType.SCHEDULED, name="Scheduled", scheduled=datetime.fromtimestamp(940, UTC)
    )
    found = explain(RUN, snapshot(queue(held=Held(paused=2)), rows=[WORKER]), None, due)
    assert "(2 runs wait on flowfleet/default, whose pool or queue is paused)" in found.sentence
    assert found.evidence["queues"][0]["held"] == {"paused": 2, "limit": 0, "unserved": 0}
