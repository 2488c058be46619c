"""Slots: what counts as in use, when a message is fetched, and which messages may pass."""

import json
import random
import uuid
from types import SimpleNamespace

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer

from flowfleet.errors import BadMessage, FleetError
from workers.lifecycle.consumer import Slots, guard_read, require_hooks, waiting_consumer
from workers.lifecycle.messages import check_message


def slots(number, *keys, accepting=True, on_refused=pytest.fail):
    """The slots of a worker that holds these runs."""
    attempts = SimpleNamespace(occupying=lambda: set(keys))
    ledger_view = SimpleNamespace(accepting=accepting, routes=frozenset)
    return Slots(number, ledger_view, attempts, on_serving=lambda _routes: None, on_refused=on_refused)


@pytest.fixture(autouse=True)
def no_requests():
    celery_state.requests.clear()
    yield
    celery_state.requests.clear()


def test_a_task_that_hands_its_run_over_is_counted_once():
    two = slots(2, "run.claim")
    celery_state.requests["run.claim"] = object()
    assert two.in_use() == 1
    celery_state.requests["other.claim"] = object()
    assert two.in_use() == 2
    assert not two.has_room()


@pytest.mark.parametrize(("keys", "room"), [((), True), (("a",), True), (("a", "b"), False), (("a", "b", "c"), False)])
def test_more_adopted_runs_than_slots_let_nothing_in(keys, room):
    assert slots(2, *keys).has_room() is room


def test_a_worker_that_stops_or_does_not_accept_fetches_nothing(monkeypatch):
    monkeypatch.setattr(celery_state, "should_stop", None)
    two = slots(2)
    two.stop()
    assert not two.has_room()
    assert not slots(2, accepting=False).has_room()


def message(**changes):
    """Headers, body, content type and encoding of a good message, changed."""
    run, claim = str(uuid.uuid4()), str(uuid.uuid4())
    kwargs = {"v": 1, "run_id": run, "claim": claim, "route": f"prefect3/{uuid.uuid4()}/default"}
    parts = {
        "headers": {"task": "flowfleet.launch", "id": f"{run}.{claim}", "eta": None},
        "body": json.dumps([[], kwargs, {"callbacks": None, "chord": None}]),
        "content_type": "application/json",
        "content_encoding": "utf-8",
    }
    return parts | changes


def test_a_good_message_passes():
    parts = message()
    assert check_message(**parts).task_id == parts["headers"]["id"]


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": None},
        {"headers": {"task": "other", "id": "x"}},
        {"content_type": "application/x-python-serialize"},
        {"content_encoding": "binary"},
        {"body": None},
        {"body": "hi"},
        {"body": "[" * 2000},
        {"body": b"\xff\xfe"},
        {"body": "x" * 5000},
        {"body": "7"},
        {"body": "[[], {}, {}]"},
        {"body": "[[], [], {}]"},
        {"body": "[[], {}]"},
        {"body": "{}"},
    ],
)
def test_everything_else_is_refused(changes):
    with pytest.raises(BadMessage):
        check_message(**message(**changes))


@pytest.mark.parametrize("limit", [5, [5, None], [None, 5], [], 0, "x"])
def test_a_time_limit_is_refused_and_none_passes(limit):
    parts = message()
    parts["headers"]["timelimit"] = [None, None]
    check_message(**parts)
    parts["headers"]["timelimit"] = limit
    with pytest.raises(BadMessage, match="time limit"):
        check_message(**parts)


class FakeMessage:
    """As kombu hands it to Celery's handler."""

    def __init__(self, parts):
        self.__dict__.update(parts)
        self.acknowledged = False

    def ack_log_error(self, _logger, _errors):
        self.acknowledged = True


class FakeRequest:
    def __init__(self, task_id):
        self.id = task_id


@pytest.mark.parametrize("copy", [False, True], ids=["it gives its slot back", "a copy leaves that of the first alone"])
def test_a_message_that_celery_cannot_read_is_acknowledged(copy):
    heard, bad = [], FakeMessage(message())
    one = slots(1, on_refused=heard.append)
    request = FakeRequest(bad.headers["id"])
    if copy:
        celery_state.task_reserved(request)

    def handler(_one):
        celery_state.task_reserved(request)
        raise TypeError("cannot unpack")

    assert one.wrap(handler)(bad) is None
    assert bad.acknowledged
    assert heard == ["Celery cannot read it (TypeError)"]
    assert one.has_room() is not copy


def test_a_celery_without_the_hooks_is_refused_by_name(monkeypatch):
    require_hooks()
    monkeypatch.delattr(Consumer, "add_task_queue")
    with pytest.raises(FleetError, match=r"lacks celery Consumer\.add_task_queue"):
        require_hooks()


def test_the_pause_before_each_new_try_is_said_and_grows_from_one_second_to_five(monkeypatch):
    monkeypatch.setattr(celery_state, "should_stop", None)
    said, slept = [], []
    outage = SimpleNamespace(failed=lambda error, next_try: said.append((error, next_try)), passed=said.clear)
    kind = waiting_consumer(outage, slept.append, random.Random(1))
    waiting = object.__new__(kind)
    waiting.conninfo = SimpleNamespace(as_uri=lambda: "redis://h:1/0")
    for _ in range(200):
        waiting.on_connection_error_before_connected(ConnectionError("READONLY"))
    assert slept == [seconds for _, seconds in said]
    assert 1 <= min(slept) < 1.2
    assert slept[0] <= 2
    assert slept[1] <= 4
    assert 4.5 < max(slept) <= 5
    assert str(said[0][0]) == "Redis at redis://h:1/0 does not answer (READONLY)"
    waiting._proved(waiting.failures - 1)
    assert said, "what failed since then proves nothing"
    waiting._proved(waiting.failures)
    assert not said
    monkeypatch.setattr(celery_state, "should_stop", 0)
    with pytest.raises(WorkerShutdown):
        waiting.on_connection_error_before_connected(ConnectionError("READONLY"))


@pytest.mark.parametrize("item", [b"[" * 3000, b"7x", b"\xff"])
def test_what_is_no_json_is_refused_and_ends_no_worker(item):
    said = []
    assert guard_read(lambda **_: json.loads(item), said.append)() is True
    assert len(said) == 1
