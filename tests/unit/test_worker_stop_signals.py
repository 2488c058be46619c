"""Stopping: which code, and how long."""

import pytest
from celery.worker import state as celery_state

from tests.unit.test_worker_consumer import slots
from tests.waiting import stays, until
from workers.lifecycle import stop_signals as stop_signals_module
from workers.lifecycle.stop_signals import StopSignals
from workers.state.attempts import Attempts


@pytest.fixture(autouse=True)
def celery_goes_on():
    yield
    celery_state.should_stop = None


def made(left):
    return StopSignals(slots(1), Attempts(), leave=left.append)


def test_an_end_without_a_signal_stops_in_order_too_and_ends_no_run_and_a_signal_after_it_is_the_first():
    left = []
    stop_signals = made(left)
    stop_signals.end()
    assert stop_signals.wait(60), "whoever waits for a neighbour sees the stop at once"
    assert (stop_signals.slots.stopping, stop_signals.attempts.closed) == (True, True)
    assert stop_signals.first_signal is None  # so that the shutdown leaves the runs, whatever its mode
    stop_signals.request(15)
    assert (stop_signals.first_signal, left) == (15, [])


def test_the_first_request_stops_in_order_and_the_second_hurries():
    left = []
    stop_signals = made(left)
    assert not stop_signals.wait(0)
    stop_signals.request(15)
    assert stop_signals.wait(60), "whoever waits for a neighbour sees the stop at once"
    assert celery_state.should_stop == 0
    assert stop_signals.slots.stopping
    assert stop_signals.attempts.closed
    assert left == []
    stop_signals.request(2)
    assert left == [130]


def test_a_stop_that_hangs_is_ended_by_the_watchdog_and_one_that_is_done_is_not(monkeypatch):
    monkeypatch.setattr(stop_signals_module, "WATCHDOG_SECONDS", 0.05)
    left, quick = [], []
    for seconds_left, is_done in ((left, False), (quick, True)):
        stop_signals = made(seconds_left)
        if is_done:
            stop_signals.finished()
        stop_signals.watch()
        stop_signals.request(15)
    until(lambda: left == [0], 5, "the watchdog")
    assert quick == []


def test_only_a_stop_that_leaves_its_runs_is_watched(monkeypatch):
    monkeypatch.setattr(stop_signals_module, "WATCHDOG_SECONDS", 0.05)
    left, watched = [], []
    for seconds_left, guarded in ((left, False), (watched, True)):
        stop_signals = StopSignals(slots(1), Attempts(), leave=seconds_left.append, guarded=guarded)
        stop_signals.watch()
        stop_signals.request(15)
    until(lambda: watched == [0], 5, "the watchdog of the other")
    stays(lambda: left == [], 0.3, "a stop that waits for its runs to be left alone")
