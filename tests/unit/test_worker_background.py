"""Background jobs and retries: what is repeated, how often, and what is said about it."""

from __future__ import annotations

import errno
import logging
import threading

import pytest

from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused, LedgerUnavailable, LedgerUnusable
from flowfleet.retry import BoundedRetry, OutageLog, backoff
from tests.waiting import until
from workers import background as background_module
from workers.background import BackgroundJobs


class Clock:
    """Moved by hand; sleeping moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def background():
    made = BackgroundJobs("the API")
    made.start()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(background_module, "backoff", lambda tries, **_: 0.01)
    monkeypatch.setattr(background_module, "KEY_SECONDS", 0.01)


@pytest.mark.parametrize(
    "error", [ApiUnavailable("x"), KeyRefused("x"), LedgerUnavailable("x"), LedgerUnusable("x"), RuntimeError("x")]
)
def test_a_job_is_repeated_until_it_has_been_done(background, error):
    tries = []

    def job():
        tries.append(1)
        if len(tries) < 4:
            raise error

    background.post(job)
    until(background.idle, 20, "the job to be done")
    assert len(tries) == 4


def test_a_definite_no_and_an_endless_fault_are_given_up(background):
    tries = []

    def fault():
        tries.append("fault")
        raise RuntimeError

    def refused():
        tries.append("refused")
        raise ApiRejected("no")

    background.post(fault)
    background.post(refused)
    until(background.idle, 20, "both to be given up")
    assert tries.count("refused") == 1
    assert tries.count("fault") == background_module.FAULTS + 1


def test_trouble_with_the_disk_is_never_given_up(background):
    tries = []

    def full():
        tries.append(1)
        if len(tries) < 3 * background_module.FAULTS:
            raise OSError(errno.ENOSPC, "no space left")

    background.post(full)
    until(background.idle, 10, "the disk to have room")
    assert len(tries) == 3 * background_module.FAULTS


def test_one_job_that_waits_for_its_neighbour_does_not_hold_the_others_up(background, monkeypatch):
    monkeypatch.setattr(background_module, "backoff", lambda tries, **_: 600.0)
    done = threading.Event()

    def away():
        raise ApiUnavailable("away")

    background.post(away)
    background.post(done.set)
    assert done.wait(60)
    assert not background.idle()
    assert not background.wait_idle(0.05)


def test_what_was_put_off_on_purpose_can_be_hurried(background):
    done = threading.Event()
    background.post(done.set, after=600.0)
    background.hurry()
    assert done.wait(60)
    assert background.wait_idle(60.0)


def test_what_waits_for_a_neighbour_that_answers_again_is_tried_at_once(background, monkeypatch):
    monkeypatch.setattr(background_module, "KEY_SECONDS", 600.0)
    tries = []

    def job():
        tries.append(1)
        if len(tries) == 1:
            raise KeyRefused("no")

    background.post(job)
    until(lambda: len(tries) == 1, 20, "the refusal")
    until(lambda: background.retry() or len(tries) == 2, 20, "the second try")


def test_an_outage_is_said_at_once_each_30_s_and_at_its_end(caplog):
    clock = Clock()
    outage = OutageLog("Redis", logging.getLogger("workers.test"), clock)
    with caplog.at_level(logging.INFO):
        for _ in range(61):
            outage.failed(LedgerUnavailable("away"), next_try=1.0)
            clock.now += 1
        assert outage.lasts
        outage.passed()
        outage.passed()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    assert [record.away_seconds for record in caplog.records] == [0, 30, 60, 61]
    assert caplog.records[0].next_try_seconds == 1.0
    assert not outage.lasts


def test_the_pause_doubles_up_to_its_limit():
    assert [backoff(tries) for tries in (0, 1, 2, 3, 10, 10_000)] == [0.5, 1.0, 2.0, 4.0, 10.0, 10.0]


def asked(error, *, times):
    answers = iter([error] * times)

    def ask():
        for failure in answers:
            raise failure
        return "done"

    return ask


def test_a_launch_waits_for_the_ledger_and_for_the_api_but_not_for_ever():
    clock = Clock()
    retry = BoundedRetry(hurried=lambda: False, wait=clock.sleep, clock=clock)
    assert retry.with_ledger(asked(LedgerUnavailable("x"), times=5)) == "done"
    assert retry.with_api(asked(ApiUnavailable("x"), times=5)) == "done"
    began = clock.now
    with pytest.raises(ApiUnavailable):
        retry.with_api(asked(ApiUnavailable("x"), times=1000))
    assert 45 <= clock.now - began <= 55
    began = clock.now
    with pytest.raises(LedgerUnavailable):
        retry.with_ledger(asked(LedgerUnavailable("x"), times=1000))
    assert 15 <= clock.now - began <= 20


def test_a_refused_key_and_a_stop_end_the_waiting():
    clock = Clock()
    retry = BoundedRetry(hurried=lambda: False, wait=clock.sleep, clock=clock)
    with pytest.raises(KeyRefused):
        retry.with_api(asked(KeyRefused("x"), times=1))
    stopping = BoundedRetry(hurried=lambda: True, wait=clock.sleep, clock=clock)
    with pytest.raises(ApiUnavailable):
        stopping.with_api(asked(ApiUnavailable("x"), times=1))
    assert clock.now == 1000.0
