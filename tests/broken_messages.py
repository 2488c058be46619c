"""Broken messages: all kinds of what has no business in a route's queue, each made of a good message."""

import base64
import json
import pickle
import uuid
from typing import Any


def decoded(message: str | bytes) -> str:
    """The body of a Celery envelope as text."""
    return base64.b64decode(json.loads(message)["body"]).decode()


def broken(message: str | bytes) -> dict[str, bytes]:
    """Name → what lies in the queue."""
    good = json.loads(message)
    kwargs = json.loads(decoded(message))[1]

    def envelope(body: Any = None, headers: Any = None, **change: Any) -> bytes:
        text = body if isinstance(body, bytes) else json.dumps([[], kwargs, {}] if body is None else body).encode()
        changed = {"body": base64.b64encode(text).decode(), "headers": {**good["headers"], **(headers or {})}, **change}
        return json.dumps({**good, **changed}).encode()

    def with_kwargs(**change: Any) -> bytes:
        return envelope([[], {**kwargs, **change}, {}])

    def without(name: str) -> bytes:
        return json.dumps({key: value for key, value in good.items() if key != name}).encode()

    pickled = {"content-type": "application/x-python-serialize"}
    return {
        "not UTF-8": b"\xff\xfe\x00\x80",
        "not JSON": b"hello there",
        "bytes that are no JSON": b"\x00\x01 not json",
        "a JSON list": b"[1, 2, 3]",
        "a JSON number": b"17",
        "nested without end": b"[" * 3000,
        "an empty object": b"{}",
        "no headers": without("headers"),
        "empty headers": json.dumps({**good, "headers": {}}).encode(),
        "no properties": without("properties"),
        "a body that is no base64": json.dumps({**good, "body": "hi"}).encode(),
        "a body that is text": envelope("hi"),
        "a body that is not JSON": envelope(b"{nope"),
        "a body of bytes that are no text": envelope(b"\xff\x00\xfe"),
        "pickled": envelope(pickle.dumps([[], kwargs, {}]), **pickled),
        "pickled, in binary": envelope(pickle.dumps([[], kwargs, {}]), **pickled, **{"content-encoding": "binary"}),
        "oversized": with_kwargs(route="x" * 100_000),
        "far oversized": with_kwargs(route="prefect3/" + "x" * 20_000_000),
        "of an unknown version": with_kwargs(v=99),
        "an unknown task": envelope(headers={"task": "os.system"}),
        "one key more": with_kwargs(command="rm -rf /"),
        "no such route": with_kwargs(route="../../etc"),
        "another run than its id says": with_kwargs(run_id=str(uuid.uuid4())),
        "another id": envelope(headers={"id": str(uuid.uuid4())}),
        "arguments": envelope([["rm"], kwargs, {}]),
        "callbacks": envelope([[], kwargs, {"callbacks": [{"task": "x"}]}]),
        "an eta": envelope(headers={"eta": "2099-01-01T00:00:00+00:00"}),
        "an eta of no time": envelope(headers={"eta": 0}),
        "a time limit": envelope(headers={"timelimit": 5}),
        "two time limits": envelope(headers={"timelimit": [5, 5]}),
    }
