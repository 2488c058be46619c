"""Broken messages in a route's queue: each is refused, counted and acknowledged, and the worker lives on."""

from __future__ import annotations

import base64
import json
import pickle
import uuid

import pytest

from flowfleet.broker import key_prefix, queue_key, queue_name
from tests.waiting import until
from tests.worker_world import WorkerWorld


def envelope(route, *, body=None, raw_body=None, headers=None, content_type="application/json", encoding="utf-8"):
    """A Celery envelope as kombu writes it, good unless told otherwise."""
    run, claim = str(uuid.uuid4()), str(uuid.uuid4())
    kwargs = {"v": 1, "run_id": run, "claim": claim, "route": str(route)}
    content = json.dumps(body if body is not None else [[], kwargs, {"callbacks": None}])
    name = queue_name(route)
    return {
        "body": base64.b64encode(raw_body if raw_body is not None else content.encode()).decode(),
        "content-encoding": encoding,
        "content-type": content_type,
        "headers": {"lang": "py", "task": "flowfleet.launch", "id": f"{run}.{claim}", **(headers or {})},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": name, "routing_key": name},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def broken(route):
    """Name → what lies in the queue."""
    good = {"v": 1, "run_id": str(uuid.uuid4()), "claim": str(uuid.uuid4()), "route": str(route)}
    no_headers = envelope(route)
    del no_headers["headers"]
    bare_body = envelope(route) | {"body": "hi"}
    no_tag = envelope(route)
    del no_tag["properties"]
    return {
        "bytes that are no JSON": b"\x00\x01 not json",
        "not UTF-8": b"\xff\xfe\xfa",
        "a JSON list": b"[1, 2, 3]",
        "a JSON number": b"7",
        "nested without end": b"[" * 3000,
        "a body that is no base64": json.dumps(bare_body).encode(),
        "no headers": json.dumps(no_headers).encode(),
        "no properties": json.dumps(no_tag).encode(),
        "an empty object": b"{}",
        "pickled": json.dumps(
            envelope(route, raw_body=pickle.dumps([[], good, {}]), content_type="application/x-python-serialize")
        ).encode(),
        "a body of bytes that are no text": json.dumps(envelope(route, raw_body=b"\xff\x00\xfe")).encode(),
        "oversized": json.dumps(envelope(route, body=[[], good | {"route": "x" * 100_000}, {}])).encode(),
        "unknown version": json.dumps(envelope(route, body=[[], good | {"v": 99}, {}])).encode(),
        "unknown task": json.dumps(envelope(route, headers={"task": "os.system"})).encode(),
        "one key more": json.dumps(envelope(route, body=[[], good | {"command": "rm"}, {}])).encode(),
        "with arguments": json.dumps(envelope(route, body=[["rm"], good, {}])).encode(),
        "with a callback": json.dumps(envelope(route, body=[[], good, {"callbacks": [{"task": "x"}]}])).encode(),
        "with an eta": json.dumps(envelope(route, headers={"eta": "2099-01-01T00:00:00+00:00"})).encode(),
        "with a time limit": json.dumps(envelope(route, headers={"timelimit": 5})).encode(),
        "with two time limits": json.dumps(envelope(route, headers={"timelimit": [5, 5]})).encode(),
        "with an eta of no time": json.dumps(envelope(route, headers={"eta": 0})).encode(),
        "another id": json.dumps(envelope(route, headers={"id": str(uuid.uuid4())})).encode(),
        "a body hi": json.dumps(envelope(route, body="hi")).encode(),
    }


@pytest.fixture
def world(valkey, tmp_path):
    made = WorkerWorld(valkey.tcp_url, tmp_path, slots=2)
    yield made
    made.close()


def test_the_worker_lives_through_every_kind_and_its_prefetch_is_whole(world, valkey, tmp_path):
    service = world.start()
    kinds = broken(world.route)
    fleet, route = world.ledger.fleet, world.route
    with valkey.client() as client:
        for number, (kind, item) in enumerate(kinds.items(), start=1):
            client.lpush(queue_key(fleet, route), item)
            until(
                lambda number=number: world.ledger.claims.counts().get("messages-refused") == number,
                10,
                f"the message ({kind}) to be refused and counted",
            )
        until(lambda: client.llen(queue_key(fleet, route)) == 0, 5, "the queue to be empty")
        assert client.hlen(key_prefix(fleet) + "unacked") == 0
        assert client.zcard(key_prefix(fleet) + "unacked_index") == 0
    assert world.code is None, "the worker lives"
    assert service.metrics.refused._value.get() == len(kinds)
    go = tmp_path / "go"
    code = f"import os,time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\nraise SystemExit(5)"
    messages = [world.submit(code) for _ in range(2)]
    for message in messages:
        world.wait_state(message, "running")  # both at once: not one slot is gone
    with valkey.client() as client:
        assert client.hlen(key_prefix(fleet) + "unacked") == 0
    go.touch()
    for message in messages:
        world.wait_gone(message)
        assert "exited with code 5" in world.api.state(message.run_id)["message"]
    assert world.stop() == 0
