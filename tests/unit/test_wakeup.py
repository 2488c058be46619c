"""Wakeup: woken by threads and signal handlers, until it is cleared; and how signals are taken and given back."""

import os
import select
import signal
import threading
import time

import pytest

from flowfleet.signals import restored, take
from flowfleet.wakeup import Wakeup


@pytest.mark.parametrize("respect", [True, False])
def test_a_signal_that_is_ignored_stays_so_where_that_is_wished(respect):
    came = []
    with restored(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        take(signal.SIGUSR1, handler=came.append, respect_ignored=respect)
        signal.raise_signal(signal.SIGUSR1)
    assert came == [signal.SIGUSR1] * (not respect)


def test_signals_do_again_after_a_block_what_they_did_before():
    first, second = [], []
    with restored(signal.SIGUSR1, signal.SIGUSR2):
        take(signal.SIGUSR1, signal.SIGUSR2, handler=first.append, respect_ignored=True)
        with restored(signal.SIGUSR1):
            take(signal.SIGUSR1, handler=second.append, respect_ignored=True)
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
    assert (first, second) == ([signal.SIGUSR1, signal.SIGUSR2], [signal.SIGUSR1])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


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
