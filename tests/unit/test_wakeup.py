"""Wakeup: woken by threads and signal handlers, until it is cleared."""

import os
import select
import threading
import time

import pytest

from flowfleet.wakeup import Wakeup


@pytest.fixture
def wakeup():
    made = Wakeup()
    yield made
    made.close()


def test_many_wakes_are_one_and_never_block(wakeup):
    for _ in range(100_000):
        wakeup.wake()
    assert select.select([wakeup], [], [], 0)[0]
    wakeup.clear()
    assert not select.select([wakeup], [], [], 0)[0]


def test_a_wait_ends_with_a_wake_or_with_its_time(wakeup):
    assert not wakeup.wait(0.01)
    threading.Timer(0.05, wakeup.wake).start()
    began = time.monotonic()
    assert wakeup.wait(60)
    assert wakeup.wait(), "a wake stays until it is cleared"
    assert time.monotonic() - began < 30
    wakeup.clear()
    assert not wakeup.wait(0)


def test_a_closed_wakeup_leaves_no_descriptor():
    wakeup = Wakeup()
    reader = wakeup.fileno()
    assert select.select([wakeup], [], [], 0) == ([], [], [])
    wakeup.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
