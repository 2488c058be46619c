"""An API that gives no answer: told to the fleet while it is waited for, also by a poller that starts."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.contact import FAILING_SECONDS, SILENT_SECONDS, Contact
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiUnavailable, KeyRefused, LedgerUnavailable
from flowfleet.retry import Retry, RetrySchedule, trouble_of
from poller.cli import ConnectedApi, wait_for_api
from poller.silence import SilenceWatch
from tests.lawless_api import LawlessApi
from tests.waiting import until


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Hands()


@pytest.fixture
def contact(clock):
    return Contact(clock)


def test_nothing_is_told_while_nothing_is_asked(contact, clock):
    clock.now += 1000
    assert contact.trouble is None
    contact.failed(ApiUnavailable("500"))
    assert contact.trouble is None, "whoever asked tells it, and nobody waits now"


def test_a_request_that_hangs_is_told_of_before_its_time_is_over(contact, clock):
    with contact.asking():
        clock.now += SILENT_SECONDS - 0.1
        assert contact.trouble is None
        clock.now += 0.2
        assert str(contact.trouble) == "the Prefect API has not answered for 8 s"
    assert contact.trouble is None


def test_a_request_whose_tries_fail_is_told_of_soon_with_its_error(contact, clock):
    error = ApiUnavailable("connection refused")
    with contact.asking():
        contact.failed(error)
        assert contact.trouble is None, "a busy server answers the next try"
        clock.now += FAILING_SECONDS
        assert contact.trouble is error
        contact.answered()
        assert contact.trouble is None


def test_a_slow_answer_is_no_trouble_while_others_are_answered(contact, clock):
    with contact.asking():
        for _ in range(20):
            clock.now += 5
            with contact.asking():
                contact.answered()
            assert contact.trouble is None
        clock.now += SILENT_SECONDS
        assert contact.trouble is not None


def test_the_sessions_of_a_process_tell_their_contact_of_tries_and_answers():
    with LawlessApi(honest=True) as api:
        found = []
        contact = Contact()
        contact.failed = lambda error: found.append(trouble_of(error))
        contact.answered = lambda: found.append("ok")
        client = Prefect3(Session(Address(url=api.api_url), pause=lambda _: None, contact=contact))
        api.fail("admin/version", times=1)
        client.probe()
        assert found[:2] == ["away", "ok"]
        assert contact._begun == {}


class Teller:
    def __init__(self) -> None:
        self.told = []
        self.away = False

    def tell(self, error):
        if self.away:
            raise LedgerUnavailable("Redis is away")
        self.told.append(error and trouble_of(error))


def test_a_watch_tells_trouble_and_leaves_good_news_to_others_until_it_ends():
    teller, met = Teller(), [None, ApiUnavailable("x"), None]
    watch = SilenceWatch(lambda: met.pop(0), teller.tell)
    for _ in range(3):
        watch.look()
    assert teller.told == ["away"]
    met.append(ApiUnavailable("y"))
    teller.away = True
    watch.look()  # an outage of Redis ends no watch
    teller.away = False
    met += [None] * 100
    watch.start()
    watch.stop()
    assert teller.told[-1] is None


@contextmanager
def waiting(connect, monkeypatch):
    """A poller that waits for the API; what it has told, and how it ended."""
    teller, ended, stop = Teller(), [], threading.Event()
    monkeypatch.setattr("poller.cli.TroubleTeller", lambda **_: teller)
    monkeypatch.setattr("poller.silence.LOOK_SECONDS", 0.01)
    retry = Retry(wait=lambda seconds: stop.wait(min(seconds, 0.02)), stopped=stop.is_set)
    contact = Contact()

    def wait():
        try:
            ended.append(wait_for_api(lambda: connect(contact), retry, RetrySchedule("the Prefect API"), contact, None))
        except ApiUnavailable as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield teller, ended, stop
    finally:
        stop.set()
        thread.join(20)


CONNECTED = ConnectedApi(api=None, settings=None, skew_seconds=0.0)


@pytest.mark.parametrize(("error", "word"), [(ApiUnavailable("x"), "away"), (KeyRefused("401"), "key-refused")])
def test_a_poller_that_waits_for_the_api_says_so_and_takes_it_back(error, word, monkeypatch):
    here = threading.Event()

    def connect(_):
        if here.is_set():
            return CONNECTED
        raise error

    with waiting(connect, monkeypatch) as (teller, ended, _):
        until(lambda: teller.told, 10, "the trouble to be told")
        assert set(teller.told) == {word}
        here.set()
        until(lambda: ended, 10, "the poller to be connected")
    assert ended == [CONNECTED]
    assert teller.told[-1] is None


def test_a_poller_whose_first_request_hangs_says_so(monkeypatch):
    monkeypatch.setattr("flowfleet.api.transport.contact.SILENT_SECONDS", 0.05)
    over = threading.Event()

    def connect(contact):
        with contact.asking():
            over.wait(20)
        return CONNECTED

    with waiting(connect, monkeypatch) as (teller, _, _):
        until(lambda: teller.told, 10, "the silence to be told")
        over.set()
    assert teller.told[0] == "away"


def test_a_stop_while_the_api_is_away_takes_it_back_too(monkeypatch):
    def connect(_):
        raise ApiUnavailable("x")

    with waiting(connect, monkeypatch) as (teller, ended, stop):
        until(lambda: teller.told, 10, "the trouble to be told")
        stop.set()
        until(lambda: ended, 10, "the poller to end")
    assert teller.told[-1] is None
