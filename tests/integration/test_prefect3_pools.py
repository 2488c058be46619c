"""Pools at a real Prefect 3 server: made, found, listed with all limits, counted without a trace, shown online."""

import dataclasses
import uuid
from dataclasses import replace

import pytest

from flowfleet.api.backlog import Place
from flowfleet.api.life import is_of_fleet
from flowfleet.api.prefect3.pool_template import base_job_template
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, SettingsError
from flowfleet.flow_run import Held, Offer, Route
from tests.integration.claiming import ago
from tests.integration.one_pool import OnePool
from tests.waiting import until


def offer(*pools: str, **fields) -> Offer:
    return Offer(backend="prefect3", pools=pools, **fields)


def test_the_server_says_who_it_is(pool):
    info = pool.client.probe()
    assert info.backend == "prefect3"
    assert info.version.startswith("3.")
    assert abs(info.skew_seconds) < 5


def test_a_missing_pool_is_made_with_our_template(pool):
    made = pool.pool(pool.name)
    assert made["type"] == "flowfleet"
    assert made["base_job_template"] == base_job_template()
    assert pool.offer.pool_ids == (made["id"],)
    assert pool.client.presence.routes(pool.offer) == [Route("prefect3", made["id"], "default")]


def test_a_poller_makes_no_pool(pool):
    with pytest.raises(SettingsError, match=r"no work pool 'nowhere'; start a worker with --pool nowhere"):
        pool.client.presence.resolve(offer("nowhere"), create=False)
    assert pool.pool("nowhere") is None


def test_a_pool_named_prefect_cannot_be_made(pool):
    with pytest.raises(SettingsError, match="'Prefect-mine' cannot be created because Prefect keeps names"):
        pool.client.presence.resolve(offer("Prefect-mine"), create=True)


def test_pool_names_may_have_spaces_and_other_letters(pool):
    name = f"Größe x {uuid.uuid4().hex[:6]}"
    assert pool.client.presence.routes(pool.client.presence.resolve(offer(name), create=True))
    pool.client.presence.online(name, "fleet x", 60)
    pool.client.presence.offline(name, "fleet x")


def test_a_name_that_the_server_refuses_is_told_with_its_reason(pool):
    with pytest.raises(ApiRejected, match=r"work pool 'a & b' cannot be created: .*name: String should match"):
        pool.client.presence.resolve(offer("a & b"), create=True)


def test_a_process_pool_is_served_by_its_own_template(prefect_server):
    pool = OnePool(prefect_server.api_url)
    template = {
        "job_configuration": {"command": "{{ command }}", "env": "{{ env }}", "working_dir": "{{ working_dir }}"},
        "variables": {
            "type": "object",
            "properties": {
                "command": {"type": "string", "default": "uv run python -m prefect.engine"},
                "env": {"type": "object", "default": {"WHO": "pool"}},
                "working_dir": {"type": "string", "default": "/srv"},
            },
        },
    }
    pool.open(type="process", base_job_template=template)
    job = pool.client.jobs.job(pool.create_run(pool.deployment()))
    assert job.command == ("uv", "run", "python", "-m", "prefect.engine")
    assert job.env == {"WHO": "pool"}
    assert job.working_dir == "/srv"


def test_a_pool_of_another_type_is_refused_by_name(prefect_server):
    pool = OnePool(prefect_server.api_url)
    template = {"job_configuration": {"command": "x"}, "variables": {"type": "object", "properties": {}}}
    with pytest.raises(SettingsError, match=r"is of type 'kubernetes', whose job template lacks env, working_dir"):
        pool.open(type="kubernetes", base_job_template=template)


def test_a_worker_makes_no_queue_and_knows_which_exist(pool):
    pool.make_queue(pool.name, "fast")
    asked = offer(pool.name, work_queues=("fast", "other"))
    presence = pool.another_client().presence
    found = presence.resolve(asked, create=True)
    assert presence.work_queues(found) == ("default", "fast")
    assert {route.name for route in presence.routes(found)} == {"default", "fast"}


def test_pools_that_are_missing_are_told_and_not_made(pool):
    presence = pool.client.presence
    assert presence.missing_pools(offer(pool.name, "nowhere")) == ("nowhere",)
    assert pool.pool("nowhere") is None
    with pytest.raises(SettingsError, match="'Prefect-mine' cannot be created"):
        presence.missing_pools(offer("Prefect-mine"))


def test_a_named_queue_that_does_not_exist_is_looked_for_once_a_minute_and_served_when_it_is_made(pool, monkeypatch):
    now = [0.0]
    asked = replace(pool.offer, work_queues=("late",))
    client = pool.another_client(clock=lambda: now[0])
    looked = [0]
    post = Session.post

    def counting(session, path, body=None, **how):
        looked[0] += path.endswith("/queues/filter")
        return post(session, path, body, **how)

    monkeypatch.setattr(Session, "post", counting)
    for _ in range(6):
        assert client.backlog.due([asked], within_seconds=1, limit=50) == []
        now[0] += 9.0
    assert looked[0] == 1
    pool.make_queue(pool.name, "late")
    run = pool.scheduled(pool.deployment(work_queue_name="late"), ago(2))
    now[0] += 10.0
    (found,) = client.backlog.due([asked], within_seconds=1, limit=50)
    assert [each.run_id for each in found.runs] == [run]


def test_only_the_named_queues_are_served(prefect_server):
    pool = OnePool(prefect_server.api_url).open(work_queues=("fast",))
    scheduled = {queue: pool.scheduled(pool.deployment(work_queue_name=queue), ago(2)) for queue in ("fast", "default")}
    assert [run.run_id for run in pool.due()] == [scheduled["fast"]]
    routes = pool.client.presence.routes(pool.offer)
    assert [route.name for route in routes] == ["default", "fast"], "those that nobody takes are to be seen, too"
    assert [route.name for route in routes if pool.offer.serves(route)] == ["fast"]
    everything = Offer(backend="prefect3", pools=pool.offer.pools, pool_ids=pool.offer.pool_ids)
    found = pool.client.backlog.due([pool.offer, everything], within_seconds=1, limit=50)
    assert {each.route.name for each in found} == {"fast", "default"}


def test_a_queue_that_was_deleted_does_not_stop_the_poll(prefect_server):
    pool = OnePool(prefect_server.api_url).open(work_queues=("fast", "default"))
    run = pool.scheduled(pool.deployment(), ago(2))
    assert [each.run_id for each in pool.due()] == [run]
    assert {route.name for route in pool.client.presence.routes(pool.offer)} == {"fast", "default"}
    pool.call("DELETE", f"/work_pools/{pool.name}/queues/fast")
    pool.due()
    assert pool.client.presence.changed(pool.offer)
    assert {route.name for route in pool.client.presence.routes(pool.offer)} == {"default"}
    assert [each.run_id for each in pool.due()] == [run]


def test_a_queue_made_later_is_known_at_once(pool):
    pool.due()
    pool.make_queue(pool.name, "new")
    run = pool.scheduled(pool.deployment(work_queue_name="new"), ago(2))
    (found,) = pool.due()
    assert (found.run_id, found.route.name) == (run, "new")


def test_other_answers_tell_that_a_queue_was_renamed_or_that_the_pool_is_gone(pool):
    presence, backlog = pool.client.presence, pool.client.backlog
    pool.make_queue(pool.name, "old")
    pool.scheduled(pool.deployment(work_queue_name="old"), ago(2))
    assert {route.name for route in presence.routes(pool.offer)} == {"default", "old"}
    backlog.count_due([pool.offer])
    assert not presence.changed(pool.offer)
    pool.call("PATCH", f"/work_pools/{pool.name}/queues/old", {"name": "new"})
    (found,) = backlog.count_due([pool.offer])
    assert (found.route.name, presence.changed(pool.offer)) == ("new", True)
    assert {route.name for route in presence.routes(pool.offer)} == {"default", "new"}
    assert not presence.changed(pool.offer)
    pool.call("DELETE", f"/work_pools/{pool.name}")
    assert pool.due() == []
    assert presence.changed(pool.offer)
    assert presence.routes(pool.offer) == []


def counted(pool, monkeypatch):
    """Every listing that our client asks for from now on: the queues that it names."""
    asked = []
    post = Session.post

    def counting(session, path, body=None, **how):
        if path.endswith("get_scheduled_flow_runs"):
            asked.append(body.get("work_queue_names"))
        return post(session, path, body, **how)

    monkeypatch.setattr(Session, "post", counting)
    return asked


@pytest.fixture
def crowded(prefect_server):
    """Three queues: `first` has more runs than one answer lists, `last` has two."""
    pool = OnePool(prefect_server.api_url).open()
    for name, priority in (("first", 1), ("middle", 2), ("last", 3)):
        pool.make_queue(pool.name, name, priority=priority)
    busy, quiet = (pool.deployment(work_queue_name=name) for name in ("first", "last"))
    for _ in range(7):
        pool.scheduled(busy, ago(20))
    for _ in range(2):
        pool.scheduled(quiet, ago(10))
    return pool


@pytest.mark.parametrize("named", [(), ("first", "last")])
def test_a_crowded_queue_does_not_hide_what_is_due_on_another(crowded, monkeypatch, named):
    asked = counted(crowded, monkeypatch)
    offer = dataclasses.replace(crowded.offer, work_queues=named)
    found = {each.route.name: each for each in crowded.client.backlog.due([offer], within_seconds=1, limit=6)}

    assert set(found) == {"first", "last"}
    assert (found["last"].due, found["last"].at_least, len(found["last"].runs)) == (2, False, 2)
    assert found["first"].at_least
    # what the server put first stays whole and first
    assert len(found["first"].runs) == 6
    assert [each.room for each in found.values()] == [None, None]
    # one for all, one for each queue that it did not show in full, none for the one that filled it
    assert sorted(asked[1:]) == ([["default"], ["last"], ["middle"]] if not named else [["last"]])


def test_an_answer_that_lists_everything_is_one_request(crowded, monkeypatch):
    asked = counted(crowded, monkeypatch)
    found = crowded.client.backlog.due([crowded.offer], within_seconds=1, limit=50)

    assert {each.route.name: (each.due, each.at_least) for each in found} == {"first": (7, False), "last": (2, False)}
    assert len(asked) == 1


def test_of_many_queues_some_are_asked_at_a_time_and_each_gets_its_turn(crowded, monkeypatch):
    monkeypatch.setattr("flowfleet.api.prefect3.backlog.MOST_QUEUES", 1)
    asked = counted(crowded, monkeypatch)
    seen = set()
    for _ in range(3):
        found = crowded.client.backlog.due([crowded.offer], within_seconds=1, limit=6)
        seen |= {each.route.name for each in found}
    assert len(asked) == 6
    assert seen == {"first", "last"}


@pytest.fixture
def limited(prefect_server):
    """A pool with a limit and two queues, `high` before `low`."""
    pool = OnePool(prefect_server.api_url).open()
    for name, priority in (("high", 1), ("low", 2)):
        pool.make_queue(pool.name, name, priority=priority)
    return pool


def test_a_run_that_is_not_due_yet_hides_no_due_one_behind_the_pools_limit(limited):
    later = limited.scheduled(limited.deployment(work_queue_name="high"), ago(-40))
    now = limited.scheduled(limited.deployment(work_queue_name="low"), ago(2))
    limited.change_pool(limited.name, concurrency_limit=1)

    high, low = limited.client.backlog.due([limited.offer], within_seconds=60, limit=50)

    assert ([run.run_id for run in high.runs], high.due, high.oldest) == ([later], 0, None)
    assert ([run.run_id for run in low.runs], low.due) == ([now], 1)
    assert (high.room, low.room) == (1, 1)


def test_a_queue_that_fills_the_pools_limit_hides_no_other(limited):
    high, low = (limited.deployment(work_queue_name=name) for name in ("high", "low"))
    for deployment in (high, high, high, low, low, low):
        limited.scheduled(deployment, ago(2))
    limited.change_pool(limited.name, concurrency_limit=2)

    found = limited.client.backlog.due([limited.offer], within_seconds=60, limit=50)

    assert [(each.route.name, len(each.runs), each.at_least, each.room) for each in found] == [
        ("high", 2, True, 2),
        ("low", 2, True, 2),
    ]


def test_a_run_tells_where_it_waits_and_what_holds_it_back_there(pool):
    pool.make_queue(pool.name, "fast")
    deployment = pool.deployment(work_queue_name="fast")
    run, other = pool.scheduled(deployment, ago(2)), pool.scheduled(deployment, ago(2))
    place = pool.client.backlog.place(run)
    assert place == Place(route=Route("prefect3", pool.offer.pool_ids[0], "fast"), pool=pool.name)
    pool.set_state(other, "RUNNING")
    pool.change_queue(pool.name, "fast", concurrency_limit=1)
    assert pool.client.backlog.place(run).limit == "the queue fast is at its limit of 1"
    pool.change_pool(pool.name, concurrency_limit=1)
    assert pool.client.backlog.place(run).limit == f"the pool {pool.name} is at its limit of 1"
    pool.change_queue(pool.name, "fast", is_paused=True)
    assert pool.client.backlog.place(run).paused == "queue"
    pool.change_pool(pool.name, is_paused=True)
    assert pool.client.backlog.place(run).paused == "pool"
    assert pool.client.backlog.place(str(uuid.uuid4())) is None


def test_due_tells_how_many_and_since_when(pool):
    deployment = pool.deployment()
    oldest = ago(100)
    pool.scheduled(deployment, oldest)
    for _ in range(2):
        pool.scheduled(deployment, ago(5))
    pool.scheduled(deployment, ago(-30))
    (found,) = pool.client.backlog.due([pool.offer], within_seconds=60, limit=50)
    assert (len(found.runs), found.due, found.oldest, found.at_least) == (4, 3, oldest, False)
    (cut,) = pool.client.backlog.due([pool.offer], within_seconds=60, limit=2)
    assert (len(cut.runs), cut.due, cut.at_least) == (2, 2, True)


def test_the_pools_limit_holds(pool):
    deployment = pool.deployment()
    for _ in range(4):
        pool.scheduled(deployment, ago(2))
    pool.change_pool(pool.name, concurrency_limit=2)
    first, second = pool.due()
    pool.claimed(first.run_id)
    assert [run.run_id for run in pool.due()] == [second.run_id]
    pool.claimed(second.run_id)
    assert pool.due() == []


def test_a_queues_limit_and_priority_hold(pool):
    pool.make_queue(pool.name, "first", priority=1, concurrency_limit=1)
    low, high = pool.deployment(), pool.deployment(work_queue_name="first")
    for _ in range(2):
        pool.scheduled(low, ago(60))
        pool.scheduled(high, ago(2))
    assert [run.route.name for run in pool.due()] == ["first", "default", "default"]


def counts(pool):
    """What a client that knows nothing yet counts, by queue."""
    found = OnePool(pool.api_url).client.backlog.count_due([pool.offer], within_seconds=60)
    return {each.route.name: each for each in found}


def test_paused_pools_and_queues_hand_out_nothing_and_what_waits_there_is_held(pool):
    pool.make_queue(pool.name, "other")
    for _ in range(2):
        pool.scheduled(pool.deployment(), ago(2))
    pool.scheduled(pool.deployment(work_queue_name="other"), ago(2))
    pool.change_queue(pool.name, "default", is_paused=True)
    assert [run.route.name for run in pool.due()] == ["other"]
    found = counts(pool)
    assert (found["default"].due, found["default"].oldest, found["default"].held) == (0, None, Held(paused=2))
    assert (found["other"].due, found["other"].held) == (1, Held())
    pool.change_queue(pool.name, "default", is_paused=False)
    pool.change_pool(pool.name, is_paused=True)
    assert pool.due() == []
    assert {name: (each.due, each.held) for name, each in counts(pool).items()} == {
        "default": (0, Held(paused=2)),
        "other": (0, Held(paused=1)),
    }


def test_a_count_says_where_a_limit_may_hold_runs_back(pool):
    pool.make_queue(pool.name, "other", concurrency_limit=1)
    pool.scheduled(pool.deployment(), ago(2))
    pool.scheduled(pool.deployment(work_queue_name="other"), ago(2))
    assert {name: each.limited for name, each in counts(pool).items()} == {"default": False, "other": True}
    pool.change_pool(pool.name, concurrency_limit=0)
    assert {name: each.limited for name, each in counts(pool).items()} == {"default": True, "other": True}


def test_a_run_that_its_deployments_limit_has_put_off_is_held(pool):
    deployment = pool.deployment(concurrency_limit=1)
    first, second = (pool.scheduled(deployment, ago(2)) for _ in range(2))
    pool.claimed(first)
    answer = pool.set_state(second, "PENDING")
    assert answer["state"]["name"] == "AwaitingConcurrencySlot"
    assert counts(pool)["default"].held == Held(limit=1)


def test_of_more_runs_than_one_answer_lists_each_queue_is_counted(pool, monkeypatch):
    monkeypatch.setattr("flowfleet.api.prefect3.tally.LIST_LIMIT", 3)
    pool.make_queue(pool.name, "other")
    for _ in range(4):
        pool.scheduled(pool.deployment(), ago(20))
    for _ in range(2):
        pool.scheduled(pool.deployment(work_queue_name="other"), ago(2))
    pool.scheduled(pool.deployment(work_queue_name="other"), ago(-30))
    found = counts(pool)
    assert {name: (each.due, each.at_least) for name, each in found.items()} == {
        "default": (4, False),
        "other": (2, False),
    }
    monkeypatch.setattr("flowfleet.api.prefect3.tally.MOST_QUEUES", 0)
    assert sorted((each.due, each.at_least) for each in counts(pool).values()) == [(0, True), (3, True)]


def test_counting_tells_number_and_age_and_marks_nothing_ready(pool):
    pool.make_queue(pool.name, "other")
    oldest = ago(77)
    pool.scheduled(pool.deployment(), oldest)
    pool.scheduled(pool.deployment(), ago(3))
    pool.scheduled(pool.deployment(), ago(-300))
    pool.scheduled(pool.deployment(work_queue_name="other"), ago(3))
    counted = {each.route.name: each for each in pool.client.backlog.count_due([pool.offer])}
    assert {name: each.due for name, each in counted.items()} == {"default": 2, "other": 1}
    assert counted["default"].oldest == oldest
    assert pool.call("GET", f"/work_pools/{pool.name}/queues/default")["status"] == "NOT_READY"
    pool.due()
    until(
        lambda: pool.call("GET", f"/work_pools/{pool.name}/queues/default")["status"] == "READY",
        20,
        "polling to mark the queue READY, which counting must not",
    )


def test_other_workers_that_are_online_in_a_pool_are_rivals_and_those_that_are_not_are_none(pool):
    def beat(name: str, interval: float) -> None:
        body = {"name": name, "heartbeat_interval_seconds": interval}
        pool.call("POST", f"/work_pools/{pool.name}/workers/heartbeat", body)

    assert pool.client.backlog.rivals([pool.offer]) == []
    pool.client.presence.online(pool.name, "flowfleet-test", 30)
    beat("stock", 30)
    found = {rival.name: rival for rival in pool.client.backlog.rivals([pool.offer, pool.offer])}
    assert set(found) == {"stock", "flowfleet-test"}
    assert (found["stock"].pool, found["stock"].type) == (pool.name, "worker")
    assert abs((found["stock"].seen - ago(0)).total_seconds()) < 60
    own = [name for name in ("stock", "flowfleet-test", "flowfleet-test2") if is_of_fleet("test", name)]
    assert own == ["flowfleet-test"]
    gone = dataclasses.replace(pool.offer, pools=(f"{pool.name}-gone",))
    assert pool.client.backlog.rivals([gone]) == [], "a pool that was deleted holds up nobody"


def test_the_pool_shows_one_worker_online_until_it_is_signed_off(pool):
    def online() -> list[str]:
        workers = pool.call("POST", f"/work_pools/{pool.name}/workers/filter", {})
        return [worker["name"] for worker in workers if worker["status"] == "ONLINE"]

    pool.client.presence.online(pool.name, "flowfleet default", 60.0)
    pool.client.presence.online(pool.name, "flowfleet default", 60.0)
    assert online() == ["flowfleet default"]
    pool.client.presence.offline(pool.name, "flowfleet default")
    assert online() == []
    pool.client.presence.offline(pool.name, "flowfleet default")
