"""Retry: how long a neighbour is waited for, what ends the wait, and what is said about it."""

import dataclasses
import functools
import logging
import time
from types import SimpleNamespace

import pytest

from flowfleet.errors import ApiMaintenance, ApiRejected, ApiUnavailable, KeyRefused, LedgerUnavailable
from flowfleet.retry import OutageLog, Retry, RetrySchedule, SharedOutage, backoff
from flowfleet.signals import ReloadOnSighup
from poller.hints_inbox import HintsInbox
from tests.unit.memory_ledger import HandClock
from workers.lifecycle import sign_on
from workers.runs.launch_waits import API_RETRY, LEDGER_RETRY


class Clock(HandClock):
    """Moved by hand; sleeping moves it, and is cut short at the moment `until`."""

    until = float("inf")

    def sleep(self, seconds):
        super().sleep(max(0.0, min(seconds, self.until - self.now)))


@pytest.fixture
def clock():
    return Clock()


def timed(retry, clock):
    """The retry by this clock, without jitter."""
    schedule = functools.partial(retry.schedule, clock=clock, jitter=lambda: 1.0)
    return dataclasses.replace(retry, wait=clock.sleep, clock=clock, schedule=schedule)


def failing(*errors):
    """A request that meets these errors, and then is answered; `done` takes how many were sent."""

    def request():
        request.sent += 1
        if request.sent <= len(errors):
            raise errors[request.sent - 1]
        return "done"

    request.sent = 0
    return request


AWAY = ApiUnavailable("x")
REFUSED = KeyRefused("x")
SILENT = LedgerUnavailable("x")


# --- the schedule


def test_the_pause_doubles_up_to_its_limit():
    assert [backoff(tries) for tries in (0, 1, 2, 3, 10, 10_000)] == [0.5, 1.0, 2.0, 4.0, 10.0, 10.0]


def test_an_outage_is_said_at_once_and_each_half_minute_with_the_next_try(caplog, clock):
    outage = RetrySchedule("the Prefect API", clock, lambda: 1.0)
    waits = []
    for _ in range(30):
        outage.failed(AWAY)
        waits.append(outage.wait_seconds())
        clock.now += waits[-1]
    outage.over()
    said = [record for record in caplog.records if record.message == "the Prefect API does not answer, waiting"]
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 10])
    assert max(waits) == pytest.approx(10)
    assert sum(waits) / 30 - 1 <= len(said) <= sum(waits) / 30 + 2
    assert caplog.messages[-1] == "the Prefect API answers again"
    assert outage.count == 1


def test_a_refused_key_waits_a_minute_and_is_said_at_once_also_within_an_outage(caplog, clock):
    outage = RetrySchedule("the Prefect API", clock, lambda: 1.0)
    outage.failed(AWAY)
    for error in (REFUSED, AWAY, REFUSED):  # an API behind two proxies may go on so
        outage.failed(error)
    assert outage.wait_seconds() == 60
    assert outage.key_refused
    assert len(caplog.records) == 2


def test_an_outage_that_several_parts_meet_is_said_once_and_is_over_when_none_is_left_in_it(caplog, clock):
    shared = SharedOutage("Redis", clock)
    jobs, renewals = shared.of("jobs"), shared.of("renewals")
    jobs.passed()
    for one in (jobs, renewals, jobs):
        one.failed(SILENT, next_try=1.0)
    assert (jobs.lasts, shared.of("messages").lasts) == (True, False)
    jobs.passed()
    renewals.failed(SILENT, next_try=1.0)
    assert len(caplog.records) == 1
    assert not jobs.lasts
    renewals.passed()
    assert caplog.messages == ["Redis does not answer, waiting", "Redis answers again"]


def test_requests_that_meet_an_outage_of_others_say_nothing_of_their_own_and_may_leave_it(caplog, clock):
    shared = SharedOutage("Redis", clock)
    jobs, retry = shared.of("jobs"), dataclasses.replace(timed(LEDGER_RETRY, clock), outage=shared)
    jobs.failed(SILENT, next_try=1.0)
    assert retry.ask("Redis", failing(SILENT, SILENT)) == "done"
    with pytest.raises(LedgerUnavailable):
        retry.ask("Redis", failing(*[SILENT] * 1000))  # it is given up after 15 s
    with pytest.raises(ApiRejected):
        retry.ask("Redis", failing(SILENT, ApiRejected("no")))
    assert caplog.messages == ["Redis does not answer, waiting"]
    jobs.passed()
    assert caplog.messages[1:] == ["Redis answers again"]


def test_an_outage_whose_only_witness_has_left_is_over_with_the_next_answer(caplog, clock):
    shared = SharedOutage("Redis", clock)
    shared.of("a launch").failed(SILENT, next_try=1.0)
    shared.of("a launch").left()
    assert caplog.messages == ["Redis does not answer, waiting"]
    shared.of("jobs").passed()
    assert caplog.messages[1:] == ["Redis answers again"]


@pytest.mark.parametrize(("hours", "told"), [(0, 5.0), (10, None)])
def test_an_outage_that_nobody_has_met_for_long_is_told_without_its_length(caplog, clock, hours, told):
    shared = SharedOutage("the Prefect API", clock)
    shared.of("a launch").failed(SILENT, next_try=1.0)
    shared.of("a launch").left()
    clock.now += hours * 3600 + 5
    shared.of("jobs").passed()
    assert getattr(caplog.records[-1], "away_seconds", None) == told


def test_an_outage_that_is_met_hours_after_another_was_left_is_a_new_one(caplog, clock):
    shared = SharedOutage("the Prefect API", clock)
    shared.of("a launch").failed(SILENT, next_try=1.0)
    shared.of("a launch").left()
    clock.now += 36_000
    shared.of("another").failed(SILENT, next_try=1.0)
    assert [record.away_seconds for record in caplog.records] == [0.0, 0.0]
    clock.now += 7200
    shared.of("jobs").failed(SILENT, next_try=1.0)
    assert caplog.records[-1].away_seconds == 7200, "somebody has waited for its end all the while"


def test_an_announced_maintenance_is_waited_for_without_end_and_an_outage_after_it_is_counted_anew(caplog, clock):
    ten_minutes = [ApiMaintenance("it says so", retry_after_seconds=30)] * 20
    retry = timed(Retry(limit_seconds=5.0), clock)
    assert retry.ask("the Prefect API", failing(*ten_minutes)) == "done"
    assert clock.now >= 600
    assert 20 <= sum("does not answer" in message for message in caplog.messages) <= 21

    caplog.clear()
    with pytest.raises(ApiUnavailable, match="x"):
        retry.ask("the Prefect API", failing(*ten_minutes, *[AWAY] * 20))
    away = [record for record in caplog.records if record.error == "x"]
    assert away[0].away_seconds == 0


@pytest.mark.parametrize(("asked", "waits"), [(None, 1), (0.5, 1), (60, 60), (10**9, 3600)])
def test_an_api_that_asks_for_patience_gets_it_within_reason(asked, waits, clock):
    outage = RetrySchedule("the Prefect API", clock, lambda: 1.0)
    outage.failed(ApiUnavailable("429", retry_after_seconds=asked))
    assert outage.wait_seconds() == waits


def test_a_hurry_ends_the_pause_and_a_new_outage_begins_with_the_first(clock):
    woken = []
    outage = RetrySchedule(
        "Redis", clock, lambda: 0.0, first_seconds=0.2, longest_seconds=5.0, wake=lambda: woken.append(clock.now)
    )
    outage.failed(SILENT)
    outage.failed(SILENT)
    assert (outage.may_ask(), outage.wait_seconds()) == (False, pytest.approx(0.4 * 0.7))
    outage.hurry()
    assert (outage.may_ask(), outage.wait_seconds(), woken) == (True, 0.0, [1000])
    outage.over()
    outage.failed(SILENT)
    assert outage.wait_seconds() == pytest.approx(0.2 * 0.7)


# --- the log


def test_an_outage_is_said_at_once_each_30_s_and_at_its_end(caplog, clock):
    outage = OutageLog("Redis", clock)
    with caplog.at_level(logging.INFO):
        for _ in range(61):
            outage.failed(SILENT, next_try=1.0)
            clock.now += 1
        assert outage.lasts
        outage.passed()
        outage.passed()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    assert [record.away_seconds for record in caplog.records] == [0, 30, 60, 61]
    assert {record.neighbour for record in caplog.records} == {"Redis"}
    assert caplog.records[0].next_try_seconds == 1.0
    assert not outage.lasts


# --- asking until there is an answer


@pytest.mark.parametrize(
    ("retry", "errors", "seconds"),
    [
        (Retry(), (AWAY, AWAY, AWAY), 1 + 2 + 4),
        (Retry(), (REFUSED, SILENT), 60 + 2),
        (sign_on.RETRY, (SILENT, SILENT), 2 + 2),
        (sign_on.RETRY, (REFUSED, AWAY), 60 + 2),
        (sign_on.RETRY, (ApiUnavailable("429", retry_after_seconds=3600),), 30),
        (LEDGER_RETRY, (SILENT,) * 5, 0.5 + 1 + 2 + 2 + 2),
        (API_RETRY, (AWAY,) * 5, 0.5 + 1 + 2 + 4 + 5),
    ],
)
def test_a_neighbour_is_asked_until_it_answers(retry, errors, seconds, clock):
    request = failing(*errors)
    assert timed(retry, clock).ask("Redis", request) == "done"
    assert (request.sent, clock.now) == (len(errors) + 1, pytest.approx(1000 + seconds))


@pytest.mark.parametrize(("retry", "error", "seconds"), [(LEDGER_RETRY, SILENT, 15), (API_RETRY, AWAY, 45)])
def test_a_launch_waits_for_redis_and_for_the_api_but_not_for_ever(retry, error, seconds, clock, caplog):
    with pytest.raises(type(error)):
        timed(retry, clock).ask("Redis", failing(*[error] * 1000))
    assert clock.now == pytest.approx(1000 + seconds)
    assert set(caplog.messages) == {"Redis does not answer, waiting"}


def test_an_api_that_asks_for_more_patience_than_there_is_is_asked_once_more_at_the_end(clock):
    request = failing(*[ApiUnavailable("429", retry_after_seconds=600)] * 2)
    with pytest.raises(ApiUnavailable):
        timed(API_RETRY, clock).ask("the Prefect API", request)
    assert (request.sent, clock.now) == (2, 1045)


@pytest.mark.parametrize(
    ("retry", "error"),
    [
        (API_RETRY, REFUSED),  # which says nothing about a run
        (Retry(limit_seconds=0.0), AWAY),
        (Retry(), ApiRejected("waiting does not cure it")),
        (Retry(stopped=lambda: True), AWAY),
    ],
)
def test_some_errors_are_not_waited_for(retry, error, clock, caplog):
    request = failing(error)
    with pytest.raises(type(error)):
        timed(retry, clock).ask("the Prefect API", request)
    assert (request.sent, clock.now, caplog.records) == (1, 1000, [])


def test_a_stop_ends_the_wait_and_nothing_more_is_asked(clock):
    clock.until = 1005
    request = failing(*[AWAY] * 9)
    with pytest.raises(ApiUnavailable):
        timed(Retry(stopped=lambda: clock.now >= 1005), clock).ask("the Prefect API", request)
    assert (request.sent, clock.now) == (3, 1005)


def test_other_credentials_end_the_wait_after_a_refused_key(clock):
    clock.until = 1005
    request = failing(REFUSED)
    assert timed(Retry(), clock).ask("the Prefect API", request) == "done"
    assert (request.sent, clock.now) == (2, 1005)


def test_a_hangup_and_a_poke_end_the_wait_at_once():
    began = time.monotonic()
    reload, inbox = ReloadOnSighup(lambda: inbox.put("poke"), look_seconds=0.0), HintsInbox()
    for wait in (reload.wait, inbox.wait):
        request = failing(REFUSED)

        def asked(request=request):
            reload.look(SimpleNamespace(key_refused=True, renew=lambda: True))
            return request()

        assert Retry(wait=wait).ask("the Prefect API", asked) == "done"
    assert time.monotonic() - began < 30
