"""Yields: a worker that is drained, paused or stopped gives back what waits for it alone, and nothing else."""

import random
import threading
import time

import pytest

from flowfleet.broker import queue_key
from flowfleet.ledger.claims import State
from tests.ledger_world import row
from tests.waiting import SCALE, stays, until
from tests.worker_world import command
from workers.lifecycle import yielding


@pytest.fixture
def long_leave(monkeypatch):
    """A stop waits for the API as long as it takes."""
    monkeypatch.setattr(yielding, "LEAVE_SECONDS", 60.0)


def waiting(world, number=1):
    """Runs that are queued, with their messages, for a worker that fetches none just now."""
    slots, looked = world.service.slots, threading.Event()
    has_room = slots.has_room
    world.service.ledger_view.ready.clear()
    # Celery's loop looks for room, and then reads: only from its next look on is no new read begun
    slots.has_room = lambda: (looked.set(), has_room())[1]
    until(looked.is_set, 10, "Celery's loop to look for room")
    client = world.ledger.ledger.store.client
    until(lambda: client.info("clients")["blocked_clients"] == 0, 5, "the read under way to be over")
    messages = [world.submit(world.marking()) for _ in range(number)]
    assert queued(world) == number
    return messages


def queued(world):
    return world.ledger.ledger.store.client.llen(queue_key(world.ledger.fleet, world.route))


def order(world, word):
    assert world.ledger.roster.want(world.worker, word)
    world.service.heartbeat.nudge()


def is_back(world, message):
    return world.api.state(message.run_id)["name"] == "Scheduled" and world.ledger.claims.get(message.run_id) is None


def also_serves(world):
    """Another live worker in the roster that serves the route."""
    other = row("other@h", nonce="n2", routes=(world.route,))
    assert world.ledger.roster.sign_on(other) is None


@pytest.mark.parametrize("word", ["draining", "paused"])
def test_what_waits_goes_back_as_soon_as_its_worker_takes_no_runs_though_a_run_keeps_that_one_for_hours(world, word):
    world.start()
    running = world.begin(3)
    (message,) = waiting(world)
    order(world, word)
    until(lambda: is_back(world, message), 10, "the run to be Scheduled again")

    assert queued(world) == 0
    assert world.ledger.claims.get(running.run_id).state is State.RUNNING
    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Scheduled"]
    record = world.wait_gone(message)
    assert (record["move"], record["by"], record["reason"]) == (
        "drop (worker)", world.worker, f"{world.worker} takes no more runs",
    )  # fmt: skip


def test_a_run_that_was_being_claimed_meanwhile_goes_back_with_the_next_renewal(world, service):
    (outcome,) = world.ledger.claim(world.create("true"))
    claim = outcome.claim
    order(world, "paused")
    until(lambda: service.ledger_view.wanted == "paused", 5, "the order to arrive")
    world.ledger.ask("accept", claim.run_id, claim.claim)
    service.heartbeat.nudge()
    until(lambda: world.ledger.claims.get(claim.run_id) is None, 10, "the claim to be gone")


@pytest.mark.parametrize("mode", ["detach", "wait", "cancel"])
@pytest.mark.usefixtures("long_leave")
def test_a_stop_gives_back_what_waits_before_it_ends_and_takes_its_time_for_nothing_else(world, mode):
    world.start(mode=mode)
    messages = waiting(world, 2)
    began = time.monotonic()
    assert world.stop() == 0
    took = time.monotonic() - began

    assert all(is_back(world, message) for message in messages)
    assert queued(world) == 0
    assert took < 10 * SCALE
    assert world.marks() == ""


def test_a_stop_that_waits_for_its_runs_gives_back_first(world):
    service = world.start(mode="wait")
    world.begin(3)
    (message,) = waiting(world)
    service.stop_signals.request()
    until(lambda: is_back(world, message), 10, "the run to be Scheduled again")
    assert world._thread.is_alive()
    world.release()
    assert world.stop() == 0


@pytest.mark.usefixtures("long_leave")
@pytest.mark.parametrize("number", [10, pytest.param(100, marks=[pytest.mark.stress, pytest.mark.timeout(900)])])
def test_a_message_that_arrives_around_a_stop_is_started_or_given_back_and_never_left(world, number):
    chance = random.Random(4711)
    for _ in range(number):
        world.start()
        message = world.claim(world.create(command(world.marking())))
        before, after = sorted((0.0, chance.uniform(-0.02, 0.3)))
        stop = threading.Timer(-before, world.service.stop_signals.request)
        send = threading.Timer(after, world.publisher.publish, [message])
        for one in (stop, send):
            one.start()
        assert world.stop() == 0
        send.join()
        claim = world.ledger.claims.get(message.run_id)
        assert is_back(world, message) or (claim is not None and claim.state in (State.RUNNING, State.ENDED)), claim
        world.finish(message.run_id)  # else it is due for ever


def test_what_another_live_worker_takes_is_left_to_it(world, service):
    also_serves(world)
    (message,) = waiting(world)
    order(world, "paused")
    until(lambda: service.ledger_view.wanted == "paused", 5, "the order to arrive")
    service.heartbeat.renew()
    stays(lambda: queued(world) == 1, 0.5, "its message waits")
    assert world.stop() == 0
    assert world.ledger.claims.get(message.run_id).state is State.QUEUED
    assert queued(world) == 1


@pytest.mark.usefixtures("long_leave")
def test_a_cancelled_run_that_goes_back_is_told_as_cancelled(world, service):
    (message,) = waiting(world)
    assert world.ledger.claims.cancel(message.run_id).moved
    assert world.stop() == 0
    assert world.api.state(message.run_id)["type"] == "CANCELLED"
    assert world.ledger.claims.get(message.run_id) is None


def test_a_stop_whose_api_is_silent_ends_in_time_and_names_what_is_left_to_the_leader(world, service, caplog):
    (message,) = waiting(world)
    world.api.fail("", "mute", times=-1)
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < yielding.LEAVE_SECONDS + 5 * SCALE
    world.api.heal()
    assert world.ledger.claims.get(message.run_id).state is State.RETURNING
    (said,) = [record for record in caplog.records if "not back at the API yet" in record.message]
    assert message.run_id in said.runs


def test_the_next_worker_finishes_what_a_dead_one_was_handing_back(world, service):
    (message,) = waiting(world)
    also_serves(world)
    world.ledger.roster.sign_off(world.worker, "nonce-1")
    (claim,) = world.ledger.claims.yield_waiting("other@h", "n2", "stopping", "other@h takes no more runs")
    world.ledger.roster.sign_off("other@h", "n2")
    assert claim.run_id == message.run_id
    world.next_worker()
    until(lambda: is_back(world, message), 10, "the run to be Scheduled again")
    record = world.wait_gone(message)
    assert (record["by"], record["reason"]) == (world.worker, "other@h takes no more runs")
