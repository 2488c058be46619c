"""Top: the live page over a real terminal: its keys, a Redis that goes and comes, and a terminal left as it was."""

import contextlib
import re
import signal

import pytest

from flowfleet.flow_run import Offer, Route
from flowfleet.ledger import connect
from flowfleet.ledger.roster import WorkerRow
from tests import processes
from tests.terminal import Terminal
from tests.valkey import Valkey
from tests.waiting import SCALE, until
from tests.world import BIN

POOL = "11111111-1111-4111-8111-111111111111"
ROUTE = Route("prefect3", POOL, "default")


@pytest.fixture
def server():
    with Valkey.private(tcp=True, aof=True) as server:
        with contextlib.closing(connect(server.tcp_url, "default")) as ledger:
            offer = Offer(backend="prefect3", pools=("flowfleet",), pool_ids=(POOL,))
            row = WorkerRow(worker="worker@h1", nonce="n", offer=offer, routes=(ROUTE,), slots=2, version="0.1.0")
            ledger.roster.sign_on(row)
        yield server


@pytest.fixture
def terminal(server):
    made = Terminal("flowfleet", "top", FLOWFLEET_REDIS=server.tcp_url)
    try:
        made.shows("worker@h1")
        yield made
    finally:
        made.close()


def test_the_page_has_its_keys_fills_another_size_and_is_left_by_q(terminal):
    terminal.shows("q quit   s sort")
    terminal.press("/x")
    terminal.shows("filter: x")
    terminal.press("\x1b")
    terminal.shows("q quit")
    terminal.resize(60, 12)
    until(lambda: len(terminal.page.split("\n")) == 12, 10, "a page of 12 lines")
    terminal.press("q")
    assert terminal.process.wait(10 * SCALE) == 0
    until(terminal.as_before, 5, "the terminal to be as before")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, number):
    terminal.process.send_signal(number)
    assert terminal.process.wait(10 * SCALE) == 0
    until(terminal.as_before, 5, "the terminal to be as before")


def test_a_redis_that_goes_is_told_and_the_page_goes_on_when_it_comes_back(terminal, server):
    server.kill()
    # on one page: the last one may be half read
    until(lambda: re.search("Redis is away.*worker@h1", terminal.page, re.DOTALL), 20, "what was seen last to stay")
    server.start()
    until(lambda: re.match("(?!.*Redis is away).*worker@h1", terminal.page, re.DOTALL), 20, "the fleet to be seen")
    assert terminal.process.poll() is None


def test_keys_are_obeyed_while_redis_hangs(terminal, server):
    server.freeze()
    try:
        terminal.press("/hello")
        terminal.shows("filter: hello", 3)
        terminal.shows("Redis is away", 15)
        terminal.press("\rq")
        assert terminal.process.wait(10 * SCALE) == 0
        until(terminal.as_before, 5, "the terminal to be as before")
    finally:
        server.thaw()


def test_a_live_page_without_a_terminal_is_refused_in_a_sentence(server):
    env = processes.environment() | {"FLOWFLEET_REDIS": server.tcp_url}
    for argv in (("top",), ("status", "--watch")):
        done = processes.run(BIN / "flowfleet", *argv, env=env)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: A live view needs a terminal: use flowfleet status")
