"""Background jobs: what is repeated, how often, and what is said about it."""

import errno
import threading

import pytest

from flowfleet.errors import (
    ApiMaintenance,
    ApiRejected,
    ApiUnavailable,
    KeyRefused,
    LedgerBehind,
    LedgerUnavailable,
    LedgerUnusable,
)
from tests.unit.test_retry import failing
from tests.waiting import until
from workers import background as background_module
from workers.background import BackgroundJobs


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
    ("error", "times"),
    [
        (ApiUnavailable("x"), 3),
        (KeyRefused("x"), 3),
        (LedgerUnavailable("x"), 3),
        (LedgerBehind("x"), 3),
        (LedgerUnusable("x"), 3),
        (RuntimeError("x"), 3),
        # trouble with the disk is never given up
        (OSError(errno.ENOSPC, "no space left"), 3 * background_module.FAULTS),
    ],
)
def test_a_job_is_repeated_until_it_has_been_done(background, error, times):
    job = failing(*[error] * times)
    background.post(job)
    until(lambda: background.wait_idle(0), 20, "the job to be done")
    assert job.sent == times + 1


def test_a_ledger_that_has_to_be_told_again_is_not_called_away(background, caplog):
    caplog.set_level("INFO")
    background.post(failing(LedgerBehind("it has lost the run")))
    until(lambda: background.wait_idle(0), 20, "the job to be done")
    assert [record.message for record in caplog.records] == ["told again"]
    assert not background.away


def test_a_definite_no_and_an_endless_fault_are_given_up(background):
    fault, refused = failing(*[RuntimeError()] * 1000), failing(ApiRejected("no"))
    background.post(fault)
    background.post(refused)
    until(lambda: background.wait_idle(0), 20, "both to be given up")
    assert (refused.sent, fault.sent) == (1, background_module.FAULTS + 1)


def test_a_refusal_is_an_answer_and_ends_the_outage(background, monkeypatch):
    monkeypatch.setattr(background_module, "backoff", lambda tries, **_: 0.0)
    background.post(failing(ApiUnavailable("away"), ApiRejected("no")))
    until(lambda: background.wait_idle(0), 20, "it to be given up")
    assert not background.away


def test_one_job_that_waits_for_its_neighbour_does_not_hold_the_others_up(background, monkeypatch):
    monkeypatch.setattr(background_module, "backoff", lambda tries, **_: 600.0)
    done = threading.Event()
    background.post(failing(ApiUnavailable("away")))
    background.post(done.set)
    assert done.wait(60)
    assert not background.wait_idle(0.05)


def test_what_was_put_off_on_purpose_can_be_hurried(background):
    done = threading.Event()
    background.post(done.set, after=600.0)
    background.hurry()
    assert done.wait(60)
    assert background.wait_idle(60.0)


def test_what_waits_for_a_neighbour_that_answers_again_is_tried_at_once(background, monkeypatch):
    monkeypatch.setattr(background_module, "KEY_SECONDS", 600.0)
    job = failing(KeyRefused("no"))
    background.post(job)
    until(lambda: job.sent == 1, 20, "the refusal")
    until(lambda: background.retry() or job.sent == 2, 20, "the second try")


@pytest.mark.parametrize("error", [ApiUnavailable("429", retry_after_seconds=600.0), ApiMaintenance("it says so")])
def test_what_an_api_asks_for_is_asked_of_all_jobs_and_ends_with_another_key(background, monkeypatch, error):
    monkeypatch.setattr(background_module, "backoff", lambda tries, **_: 600.0)
    first, later = failing(error), threading.Event()
    background.post(first)
    # its thread has noted the answer too: else it would put off what is hurried below
    until(lambda: first.sent == 1 and not background._busy, 20, "the first to wait for its next try")
    background.post(later.set)
    assert not later.wait(0.3)
    assert background.error is error
    background.retry()
    assert later.wait(60)
    until(lambda: first.sent == 2, 20, "the second try")
    until(lambda: background.error is None, 20, "it to be over")
