"""TcpBridge: a relay that answers for the server, and one whose answers come late."""

import time
from collections.abc import Iterator

import pytest
import requests

from tests.chaos.cells import UNAVAILABLE
from tests.loopback import Loopback
from tests.tcp_bridge import TcpBridge


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def bridge(seen: list[str]) -> Iterator[TcpBridge]:
    server = Loopback(lambda method, path, _body, _headers: seen.append(f"{method} {path}"))
    server.start()
    made = TcpBridge(("127.0.0.1", server.server_port))
    yield made
    made.close()
    server.stop()


def post(bridge: TcpBridge, session: requests.Session) -> int:
    # larger than one read of the relay, so that a link that is closed too early is reset
    return session.post(f"http://127.0.0.1:{bridge.port}/x", json={"text": "x" * 200_000}, timeout=20).status_code


def test_a_bridge_answers_so_many_requests_itself_and_the_server_sees_nothing_of_them(bridge, seen):
    with requests.Session() as session:
        session.trust_env = False
        assert post(bridge, session) == 200
        bridge.answer(UNAVAILABLE, 2)
        assert bridge.answers_left == 2
        # one over a link that stands, one over a new one
        assert [post(bridge, session) for _ in range(3)] == [503, 503, 200]
    assert bridge.answers_left == 0
    assert seen == ["POST /x"] * 2


def test_answers_of_the_server_come_late(bridge, seen):
    bridge.late_answers = 0.3
    begun = time.monotonic()
    with requests.Session() as session:
        session.trust_env = False
        assert post(bridge, session) == 200
    assert time.monotonic() - begun >= 0.3
    assert seen == ["POST /x"]
