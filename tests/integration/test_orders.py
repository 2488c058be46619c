"""What people order of single runs, at a real Prefect 3 server and at a Prefect 1 API: cancel, start again, find."""

import uuid

import pytest

from flowfleet.api.client import StateType, Verdict
from flowfleet.api.prefect3 import orders
from flowfleet.api.prefect3.fence import Fence
from flowfleet.commands.failed_runs import FAILED
from flowfleet.flow_run import Route
from tests.integration.claiming import ago
from tests.integration.one_pool import MARK

ELSEWHERE = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def deployment(pool):
    return pool.deployment()


def at_prefect3(pool, deployment, *states, mark=None):
    """A run that has had these states, each a type with a name and perhaps details, and an infrastructure mark."""
    run_id = pool.scheduled(deployment, ago(2))
    if mark:
        pool.call("PATCH", f"/flow_runs/{run_id}", {"infrastructure_pid": mark})
    for kind, name, *details in states:
        state = {"type": kind, "name": name, "state_details": details[0] if details else {}}
        pool.call("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})
    return run_id


RUNNING = ("RUNNING", "Running")
PAUSED = ("PAUSED", "Paused", {"pause_reschedule": False})
SUSPENDED = ("PAUSED", "Suspended", {"pause_reschedule": True})
RETRY = ("SCHEDULED", "AwaitingRetry", {"scheduled_time": ago(-60).isoformat()})
CANCELS = {
    "scheduled": ((), None, "Cancelled"),
    "scheduled, with the mark of a process": ((), "flowfleet:test:h:1", "Cancelling"),
    "submitted": ((("PENDING", "Submitted"),), None, "Cancelling"),
    "running": ((RUNNING,), None, "Cancelling"),
    "paused": ((RUNNING, PAUSED), None, "Cancelling"),
    "suspended": ((RUNNING, SUSPENDED), "flowfleet:test:h:1", "Cancelled"),
    "awaiting its retry": ((RUNNING, RETRY), None, "Cancelled"),
    "awaiting its retry in a process": ((RUNNING, RETRY), "flowfleet:test:h:1", "Cancelling"),
}


# cancel


@pytest.mark.parametrize(("states", "mark", "becomes"), CANCELS.values(), ids=list(CANCELS))
def test_a_run_of_prefect_3_is_cancelling_or_cancelled_at_once_as_its_server_wants_it(
    pool, deployment, states, mark, becomes
):
    run_id = at_prefect3(pool, deployment, *states, mark=mark)
    answer = pool.client.orders.cancel(run_id, "by u@h: wrong input")
    assert (answer.verdict, answer.state.name) == (Verdict.ACCEPTED, becomes)
    assert pool.state(run_id)["name"] == becomes
    assert pool.state(run_id)["message"] == "by u@h: wrong input"
    again = pool.another_client().orders.cancel(run_id, "by v@h")
    assert (again.verdict, pool.history(run_id).count("Cancelling")) == (Verdict.ACCEPTED, becomes == "Cancelling")


def test_a_waiting_run_of_prefect_3_that_is_claimed_while_it_is_cancelled_is_cancelling(pool, deployment, monkeypatch):
    run_id = at_prefect3(pool, deployment)
    bulk, claims = pool.client.orders.writes.fence.bulk, [lambda: pool.set_state(run_id, "PENDING", "Submitted")]

    def claimed_before(*call, **options):
        if claims:
            claims.pop()()
        return bulk(*call, **options)

    monkeypatch.setattr(Fence, "bulk", lambda self, *call, **options: claimed_before(*call, **options))
    answer = pool.client.orders.cancel(run_id, "by u@h")
    assert (answer.verdict, answer.state.name, claims) == (Verdict.ACCEPTED, "Cancelling", [])
    assert pool.state(run_id)["message"] == "by u@h"


@pytest.mark.parametrize("kind", ["COMPLETED", "FAILED", "CRASHED"])
def test_an_end_at_prefect_3_is_not_covered_by_a_cancel(pool, deployment, kind):
    run_id = at_prefect3(pool, deployment, RUNNING, (kind, None))
    answer = pool.client.orders.cancel(run_id, "by u@h")
    assert (answer.verdict, answer.state.kind) == (Verdict.REFUSED, kind)
    assert pool.state(run_id)["type"] == kind


@pytest.mark.parametrize(
    ("kind", "becomes"), [("Running", "Cancelling"), ("Submitted", "Cancelled"), ("Scheduled", "Cancelled")]
)
def test_a_run_of_prefect_1_is_cancelled_by_its_servers_own_order(server, kind, becomes):
    run_id = server.scheduled()
    server.api.write(run_id, kind)
    for _ in range(2):
        answer = server.client.orders.cancel(run_id, "by u@h")
        assert (answer.verdict, answer.state.name, server.api.state(run_id)) == (Verdict.ACCEPTED, becomes, becomes)
    assert server.api.history(run_id)[-1:] == [becomes]
    assert server.api.counted("cancel_flow_run") == 1


def test_an_end_at_prefect_1_is_not_covered_by_a_cancel(server):
    run_id = server.scheduled()
    server.api.write(run_id, "Success")
    answer = server.client.orders.cancel(run_id, "by u@h")
    assert (answer.verdict, answer.state.kind) == (Verdict.REFUSED, StateType.COMPLETED)
    assert server.api.counted("cancel_flow_run") == 0


def test_an_order_that_gets_no_answer_is_unsure_and_one_for_no_run_says_so(server, pool):
    run_id = server.scheduled()
    server.api.write(run_id, "Running")
    server.api.faults.lost("cancel_flow_run", times=-1)
    assert server.client.orders.cancel(run_id, "by u@h").verdict is Verdict.UNSURE
    server.api.faults.heal()
    for client in (server.client, pool.client):
        nobody = str(uuid.uuid4())
        assert client.orders.cancel(nobody, "by u@h").gone
        assert client.orders.restart(nobody, "by u@h", MARK).gone


# which runs are under a cancel


def test_prefect_3_tells_which_of_our_runs_are_cancelling_whoever_has_more(pool, deployment):
    mine, theirs, well = (at_prefect3(pool, deployment, RUNNING) for _ in range(3))
    over = at_prefect3(pool, deployment, RUNNING, ("CANCELLED", "Cancelled"))
    for run_id in (mine, theirs):
        pool.client.orders.cancel(run_id, "by u@h")
    route = Route("prefect3", pool.offer.pool_ids[0], "default")
    found = pool.client.orders.under_cancel(dict.fromkeys([mine, well, over, str(uuid.uuid4())], route))
    assert list(found) == [mine]
    assert (found[mine].kind, found[mine].message) == (StateType.CANCELLING, "by u@h")


def test_of_many_runs_of_prefect_3_the_cancelling_ones_are_found_by_their_pools_page_by_page(
    pool, deployment, monkeypatch
):
    monkeypatch.setattr(orders, "_PAGE", 2)
    runs = [at_prefect3(pool, deployment, RUNNING) for _ in range(7)]
    for run_id in runs[:5]:
        pool.client.orders.cancel(run_id, "by u@h")
    route = Route("prefect3", pool.offer.pool_ids[0], "default")
    assert set(pool.client.orders.under_cancel(dict.fromkeys(runs[1:], route))) == set(runs[1:5])
    away = Route("prefect3", ELSEWHERE, "default")
    assert pool.client.orders.under_cancel(dict.fromkeys(runs, away)) == {}


def test_a_real_server_takes_the_largest_page_that_is_asked_for(pool):
    route = Route("prefect3", pool.offer.pool_ids[0], "default")
    for number in (200, 201):
        assert pool.client.orders.under_cancel({str(uuid.uuid4()): route for _ in range(number)}) == {}


def test_prefect_1_tells_cancelling_and_cancelled_runs_in_one_request(server):
    runs = [server.scheduled() for _ in range(3)]
    route = server.listed(runs[0]).route
    server.api.write(runs[0], "Running")
    for run_id in runs[:2]:
        server.api.cancel(run_id)
    asked = server.api.counted("flow_run")
    found = server.client.orders.under_cancel(dict.fromkeys(runs, route))
    kinds = {run_id: state.kind for run_id, state in found.items()}
    assert kinds == {runs[0]: StateType.CANCELLING, runs[1]: StateType.CANCELLED}
    assert server.api.counted("flow_run") == asked + 1


# start again


@pytest.mark.parametrize("kind", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"])
def test_a_run_of_prefect_3_that_has_ended_is_due_now_and_can_be_claimed_again(pool, deployment, kind):
    run_id = at_prefect3(pool, deployment, RUNNING, (kind, None), mark="flowfleet:test:h:1")
    answer = pool.client.orders.restart(run_id, "by u@h", MARK)
    assert answer.verdict is Verdict.ACCEPTED
    assert pool.run(run_id)["infrastructure_pid"] is None
    assert pool.state(run_id)["message"] == "flowfleet test by u@h"
    pool.claimed(run_id)
    assert pool.history(run_id)[-2:] == ["Scheduled", "Submitted"]


def test_a_run_of_prefect_3_that_waits_for_later_is_due_now(pool, deployment):
    run_id = pool.scheduled(deployment, ago(-3600))
    assert pool.client.orders.restart(run_id, "by u@h", MARK).verdict is Verdict.ACCEPTED
    assert run_id in [run.run_id for run in pool.due(within=0)]


@pytest.mark.parametrize(
    "states",
    [(("PENDING", "Submitted"),), (RUNNING,), (RUNNING, PAUSED), (RUNNING, SUSPENDED), (("CANCELLING", None),)],
)
def test_a_run_of_prefect_3_that_may_be_under_way_is_not_started_again(pool, deployment, states):
    run_id = at_prefect3(pool, deployment, *states, mark="flowfleet:test:h:1")
    before = pool.history(run_id)
    assert pool.client.orders.restart(run_id, "by u@h", MARK).verdict is Verdict.REFUSED
    assert pool.history(run_id) == before
    assert pool.run(run_id)["infrastructure_pid"]


@pytest.mark.parametrize("kind", ["COMPLETED", "CANCELLED", "FAILED", "CRASHED", None])
def test_a_run_of_prefect_3_is_started_again_in_no_other_state_than_is_meant(pool, deployment, kind):
    run_id = at_prefect3(pool, deployment, *([RUNNING, (kind, None)] if kind else []))
    before = pool.history(run_id)
    answer = pool.client.orders.restart(run_id, "by u@h", MARK, FAILED)
    meant = kind in ("FAILED", "CRASHED")
    assert answer.verdict is (Verdict.ACCEPTED if meant else Verdict.REFUSED)
    assert pool.history(run_id) == [*before, *(["Scheduled"] if meant else [])]
    assert meant or answer.state.kind == (kind or "SCHEDULED")


@pytest.mark.parametrize("kind", ["Success", "Cancelled", "Failed", None])
def test_a_run_of_prefect_1_is_started_again_in_no_other_state_than_is_meant(server, kind):
    run_id = server.scheduled()
    if kind:
        server.api.write(run_id, kind)
    before = server.api.history(run_id)
    answer = server.client.orders.restart(run_id, "by u@h", MARK, FAILED)
    assert answer.verdict is (Verdict.ACCEPTED if kind == "Failed" else Verdict.REFUSED)
    assert (server.api.history(run_id) == before) is (kind != "Failed")


@pytest.mark.parametrize("kind", ["Failed", "Cancelled", "Success"])
def test_a_run_of_prefect_1_that_has_ended_is_due_with_the_tasks_that_have_not_succeeded(server, kind):
    flow = server.api.add_flow("two", tasks=("task", "other"))
    run_id = server.api.add_run(flow, labels=["x"], start=ago(60))
    server.api.write(run_id, "Running")
    server.api.write_task(run_id, "Success", slug="task")
    server.api.write_task(run_id, "Success" if kind == "Success" else "Failed", slug="other")
    server.api.write(run_id, kind)
    answer = server.client.orders.restart(run_id, "by u@h", MARK)
    assert (answer.verdict, server.api.state(run_id)) == (Verdict.ACCEPTED, "Scheduled")
    states = {task["slug"]: task["state"] for task in server.api.task_runs(run_id)}
    assert states == {"task": "Success", "other": "Success" if kind == "Success" else "Pending"}
    server.claimed(server.listed(run_id))


def test_a_run_of_prefect_1_that_is_claimed_before_it_is_read_again_was_started_again(server):
    run_id = server.scheduled()
    server.api.write(run_id, "Failed")
    server.meanwhile("set_flow_run_states", lambda: server.api.write(run_id, "Submitted"), after=True)
    assert server.client.orders.restart(run_id, "by u@h", MARK).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("kind", ["Submitted", "Running", "Cancelling"])
def test_a_run_of_prefect_1_that_may_be_under_way_is_not_started_again(server, kind):
    run_id = server.scheduled()
    server.api.write(run_id, kind)
    assert server.client.orders.restart(run_id, "by u@h", MARK).verdict is Verdict.REFUSED
    assert server.api.state(run_id) == kind


# find


def ids(client, text):
    return list(client.orders.find(text).names)


def test_runs_are_found_by_name_by_id_and_unfinished_ones_by_a_part_of_their_id(pool, deployment, server):
    ended = at_prefect3(pool, deployment, RUNNING, ("COMPLETED", None))
    waits, runs = pool.scheduled(deployment, ago(2)), at_prefect3(pool, deployment, RUNNING)
    assert ended in ids(pool.client, pool.run(ended)["name"])
    assert ids(pool.client, ended.upper()) == [ended]
    assert waits in ids(pool.client, waits[:13])
    assert ids(pool.client, waits[-12:]) == [waits]
    assert ids(pool.client, runs[-12:]) == [runs]
    assert ids(pool.client, ended[-12:]) == []
    assert ids(pool.client, "no such run") == []

    there, over = server.scheduled(), server.scheduled()
    server.api.write(there, "Running")
    server.api.write(over, "Success")
    assert ids(server.client, server.api.run(there)["name"]) == [there]
    for text in (there, there.upper(), there[:8], there[-8:]):
        assert ids(server.client, text) == [there]
    assert ids(server.client, over) == [over]
    assert ids(server.client, over[-8:]) == []
    assert ids(server.client, "no such run") == []


def test_a_part_of_an_id_is_looked_for_page_by_page_and_a_search_that_is_cut_says_so(
    pool, deployment, server, monkeypatch
):
    monkeypatch.setattr("flowfleet.api.found._PAGE", 2)
    monkeypatch.setattr("flowfleet.api.found._MOST_PAGES", 1000)  # the real server has runs of other tests, too
    waiting = {pool.client: [pool.scheduled(deployment, ago(2)) for _ in range(5)]}
    waiting[server.client] = [server.scheduled() for _ in range(5)]
    for client, runs in waiting.items():
        for run_id in runs:
            assert ids(client, run_id[-12:]) == [run_id]
    monkeypatch.setattr("flowfleet.api.found._MOST_PAGES", 2)
    for client in waiting:
        found = client.orders.find("0" * 12)
        assert (found.names, found.cut_at) == ({}, 4)


def test_of_many_runs_of_one_name_some_are_told_and_that_there_may_be_more(pool, deployment, server, monkeypatch):
    name = f"daily-{uuid.uuid4()}"
    pairs = (
        [pool.scheduled(deployment, ago(2)) for _ in range(2)],
        [server.scheduled(flow_run_name=name) for _ in range(2)],
    )
    for run_id in pairs[0]:
        pool.call("PATCH", f"/flow_runs/{run_id}", {"name": name})
    for client, both in ((pool.client, pairs[0]), (server.client, pairs[1])):
        assert set(ids(client, name)) == set(both)
    monkeypatch.setattr("flowfleet.api.found._NAMESAKES", 2)
    for client in (pool.client, server.client):
        assert client.orders.find(name).cut_at == 2
