"""Top: the live page over a real terminal: its keys, a Redis that goes and comes, and a terminal left as it was."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading

import pytest

from flowfleet.flow_run import Offer, Route
from flowfleet.ledger import connect
from flowfleet.ledger.roster import WorkerRow
from tests import processes
from tests.valkey import Valkey
from tests.waiting import until
from tests.world import BIN

POOL = "11111111-1111-4111-8111-111111111111"
ROUTE = Route("prefect3", POOL, "default")


class Terminal:
    """A program in a terminal of its own; what it has written, and the page that it shows now."""

    def __init__(self, *argv: str, columns: int = 80, rows: int = 24, **variables: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(theirs)
        env = processes.environment("COLUMNS", "LINES") | {"TERM": "xterm-256color"} | variables
        self.process = subprocess.Popen(
            [BIN / argv[0], *argv[1:]], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        self._theirs, self._written = theirs, bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self.ours, 65536):
                self._written += data

    @property
    def text(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def page(self) -> str:
        """What is on the screen: each page is drawn from the upper left corner on."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.text.rpartition("\x1b[H")[2])

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def shows(self, words: str, seconds: float = 20) -> None:
        until(lambda: words in self.page, seconds, f"{words!r} on the page\n{self.page}")

    def as_before(self) -> bool:
        """Whether the terminal is as the program has found it."""
        left = self.text.endswith("\x1b[?1049l") or "\x1b[?1049l" in self.text[-200:]
        return termios.tcgetattr(self._theirs) == self.settings and left

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(5)
        os.close(self.ours)


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
    assert terminal.process.wait(10) == 0
    until(terminal.as_before, 5, "the terminal to be as before")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, number):
    terminal.process.send_signal(number)
    assert terminal.process.wait(10) == 0
    until(terminal.as_before, 5, "the terminal to be as before")


def test_a_redis_that_goes_is_told_and_the_page_goes_on_when_it_comes_back(terminal, server):
    server.kill()
    terminal.shows("Redis is away")
    assert "worker@h1" in terminal.page, "what was seen last stays"
    server.start()
    until(lambda: "Redis is away" not in terminal.page, 20, "the fleet to be seen again")
    assert "worker@h1" in terminal.page
    assert terminal.process.poll() is None


def test_keys_are_obeyed_while_redis_hangs(terminal, server):
    server.freeze()
    try:
        terminal.press("/hello")
        terminal.shows("filter: hello", 3)
        terminal.shows("Redis is away", 15)
        terminal.press("\rq")
        assert terminal.process.wait(10) == 0
        until(terminal.as_before, 5, "the terminal to be as before")
    finally:
        server.thaw()


def test_a_live_page_without_a_terminal_is_refused_in_a_sentence(server):
    env = processes.environment() | {"FLOWFLEET_REDIS": server.tcp_url}
    for argv in (("top",), ("status", "--watch")):
        done = processes.run(BIN / "flowfleet", *argv, env=env)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: A live view needs a terminal: use flowfleet status")
