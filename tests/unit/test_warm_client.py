"""The worker's side of a warm parent: it never holds up a stop or a launch, and is tried again after bad luck."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.waiting import until
from workers.deployers.fork_client import ForkClient, ForkServerProgram
from workers.deployers.warm_client import WarmClient
from workers.shim import forkserver, spawn, warm_parent

ROOT = Path(__file__).parents[2]

#: a fork server that greets as a warm parent does, when and how it is told
SERVER = f"""
import os, sys, time
sys.path.append({str(ROOT)!r})
from workers.shim import forkserver, framing
control = forkserver.control_socket(int(sys.argv[1]))
delay, again = open(os.environ["TOLD"]).read().split()
time.sleep(float(delay))
framing.send(control, {{"fit": again == "fit", "why": again, "again": again == "again"}})
forkserver.prepare_process(sys.argv[2], int(sys.argv[3]), name="like-warm", title="")
forkserver.serve(control, unfit=lambda request: "never")
"""


class Fake:
    def __init__(self, folder: Path) -> None:
        self.told = folder / "told"
        self.tell("0 fit")
        (folder / "server.py").write_text(SERVER)
        argv = (sys.executable, str(folder / "server.py"))
        self.program = ForkServerProgram(argv=argv, env={"TOLD": str(self.told)}, name="fake", greeting_seconds=300.0)
        self.warm_clients: list[WarmClient] = []

    def tell(self, words: str) -> None:
        self.told.write_text(words)

    def start(self) -> WarmClient:
        warm_client = WarmClient(ForkClient(program=self.program, on_demand=False))
        self.warm_clients.append(warm_client)
        warm_client.start()
        return warm_client

    def ready(self) -> WarmClient:
        warm_client = self.start()
        until(lambda: warm_client.ready, 10, "the first")
        return warm_client


@pytest.fixture
def fake(tmp_path):
    fake = Fake(tmp_path)
    yield fake
    for warm_client in fake.warm_clients:
        warm_client.close()


def test_a_stop_in_the_moment_of_the_start_waits_for_no_loading(fake):
    fake.tell("300 fit")
    for number in range(8):
        warm_client = fake.start()
        time.sleep(0.0004 * number)
        begun = time.monotonic()
        warm_client.close()
        assert time.monotonic() - begun < 60
        until(lambda warm_client=warm_client: not warm_client._thread.is_alive(), 20, "its thread to end")
        assert warm_client._fork_client.pid is None


def test_a_launch_that_meets_the_loading_goes_cold_soon(fake):
    warm_client = fake.ready()
    fake.tell("300 fit")
    assert warm_client._fork_client._lock.acquire(timeout=60)  # as the loading holds it
    begun = time.monotonic()
    assert warm_client.launch({"run_id": "r"}) is None
    assert time.monotonic() - begun < 60
    warm_client._fork_client._lock.release()


def test_a_launch_without_an_answer_ends_no_parent_that_came_later(fake):
    warm_client = fake.ready()
    fork_client = warm_client._fork_client
    old = fork_client._process
    os.kill(old.pid, 9)
    old.wait()
    fork_client.start()
    fork_client._end(old)
    assert fork_client.pid is not None


def test_what_fails_for_now_is_tried_again_and_what_never_fits_is_not(fake):
    fake.tell("0 again")
    warm_client = fake.start()
    until(lambda: warm_client._failures == {"again"}, 10, "the first try")
    fake.tell("0 fit")
    until(lambda: warm_client.ready, 10, "the second")
    fake.tell("0 never")
    never = fake.start()
    until(lambda: not never._thread.is_alive(), 10, "the end of its thread")
    assert not never.ready


def test_a_python_that_is_too_old_says_so():
    reader, writer = os.pipe()
    warm_parent._refuse(writer)
    assert b"it needs Python 3.9" in os.read(reader, 1000)
    os.close(reader)
    os.close(writer)


def test_a_parent_that_cannot_fork_leaves_the_run_to_the_launcher(monkeypatch):
    ours, theirs = socket.socketpair()

    def full() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", full)
    with ours:
        forkserver._fork_shim(theirs, os.dup(theirs.fileno()), lambda _request: None)
        theirs.close()
        assert ours.recv(100) == b""  # no answer: it is asked of the other one


def test_a_look_that_fails_is_a_reason_to_execute():
    def broken(_request):
        raise RuntimeError("no luck")

    assert spawn._reason(broken, {}) == "RuntimeError: no luck"
