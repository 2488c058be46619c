"""Claims that the ledger gives away or loses under a running worker."""

import dataclasses
import shlex
import sys

import pytest

from flowfleet.failpoints import Failpoints
from tests.waiting import stays, until
from workers.runs import cancelling


def given_away(world, message):
    """Another worker has the claim now, as the ledger says."""
    world.ledger.set(world.ledger.claims.get(message.run_id), worker="other@there")
    world.service.heartbeat.nudge()


def test_a_run_that_is_not_ours_any_more_is_stopped_and_not_reported(world, service):
    message = world.begin()
    given_away(world, message)
    folder = world.run_folder(message)
    until(folder.settled, 20, "the run to be stopped and settled")

    assert folder.exit_record()["stopped_by"] == "kill", "no TERM, for which the engine would write Crashed"
    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Launching"]
    assert world.ledger.claims.get(message.run_id).worker == "other@there"
    until(lambda: world.service.attempts.all() == [], 10, "the worker to let go of it")


def test_a_run_that_has_an_end_at_the_api_is_left_alone_and_its_true_exit_is_logged(world, service):
    message = world.begin(5)
    world.api.write(message.run_id, "CRASHED")
    given_away(world, message)
    until(lambda: world.service.attempts.get(message.task_id).fenced, 10, "the worker to know")
    stays(lambda: len(world.service.attempts.running()) == 1, 1.0, "the process to be left alone")
    world.release()
    until(lambda: any("exited with code 5" in line["message"] for line in world.api.logs), 10, "the log line")

    assert world.api.history(message.run_id)[-1] == "Crashed"
    assert world.api.history(message.run_id).count("Crashed") == 1


def name_taken(world, caplog):
    """Another process has signed on over our row, as a machine of the same host name would while we were cut off."""
    other = dataclasses.replace(world._row(), nonce="another-machine")
    while (blocking := world.ledger.roster.sign_on(other, over=world._row())) is not None:
        assert blocking.nonce != other.nonce
    refusal_heard(world, caplog)


def refusal_heard(world, caplog):
    before = caplog.messages.count("claim is not ours any more")
    world.service.heartbeat.nudge()
    until(lambda: caplog.messages.count("claim is not ours any more") > before, 10, "a refused renewal")


def test_runs_of_a_worker_whose_name_was_taken_live_and_end_in_order(world, service, caplog):
    message = world.begin(5)
    name_taken(world, caplog)
    refusal_heard(world, caplog)
    stays(lambda: len(world.service.attempts.running()) == 1, 1.0, "the process to be left alone")
    world.end(message, 5, 30)


def test_a_run_of_a_worker_whose_name_was_taken_is_stopped_once_it_is_handed_out_anew(world, service, caplog):
    message = world.begin()
    world.api.write(message.run_id, "SCHEDULED")
    name_taken(world, caplog)
    refusal_heard(world, caplog)
    stays(lambda: len(world.service.attempts.running()) == 1, 1.0, "the process to be left alone while nobody has it")
    world.api.write(message.run_id, "PENDING", transition_id="00000000-0000-4000-8000-00000000ffff")
    folder = world.run_folder(message)
    until(lambda: folder.exit_record() is not None, 20, "the run to be stopped")
    assert folder.exit_record()["stop_reason"] == "fenced"


def test_a_report_of_a_worker_whose_name_was_taken_is_delivered(world, service, caplog):
    message = world.begin(5)
    world.api.fail("/set_state", times=-1)
    world.release()
    world.wait_state(message, "ended")
    name_taken(world, caplog)
    world.api.heal()
    world.wait_gone(message, 30)

    assert "exited with code 5" in world.told(message)


def test_a_claim_that_redis_has_lost_is_written_again_and_ends_in_order(world, service):
    message = world.begin(4)
    claim = world.ledger.claims.get(message.run_id)
    world.ledger.lose(claim)
    world.service.heartbeat.nudge()
    again = world.wait_state(message, "running")
    assert (again.worker, again.handle, again.due) == (claim.worker, claim.handle, claim.due)
    world.ledger.lose(again)
    world.end(message, 4, 30)


def test_a_worker_whose_row_redis_has_lost_signs_on_again(world, service):
    store = world.ledger.ledger.store
    store.client.delete(store.key(f"worker:{world.worker}"))
    store.client.srem(store.key("workers"), world.worker)
    world.service.heartbeat.nudge()
    row = until(lambda: next(iter(world.ledger.roster.rows()), None), 10, "the row")
    assert row.nonce == "nonce-1"
    until(lambda: world._row().routes == (world.route,), 10, "its routes to be there")


class Meanwhile(Failpoints):
    """At this place the launch waits until somebody's cancel has reached the worker."""

    def __init__(self, world, place):
        super().__init__()
        self.world, self.place, self.message = world, place, None

    def hit(self, name):
        if name == self.place:
            self.world.api.write(self.message.run_id, "CANCELLING")
            assert self.world.ledger.claims.cancel(self.message.run_id).moved
            self.world.service.heartbeat.nudge()
            until(lambda: self.world.service.attempts.get(self.message.task_id).cancelled, 10, "the cancel to arrive")


@pytest.mark.parametrize("place", ["start.after_move", "start.before_fork", "start.after_fork"])
def test_a_cancel_between_the_right_to_start_and_the_running_run_is_not_lost(world, place, monkeypatch):
    monkeypatch.setattr(cancelling, "PATIENCE_SECONDS", 0.1)
    meanwhile = Meanwhile(world, place)
    world.start(failpoints=meanwhile)
    code = f"{world.marking()}\n{world.holding()}"
    message = meanwhile.message = world.claim(world.create(f"{sys.executable} -c {shlex.quote(code)}"))
    world.publisher.publish(message)
    world.wait_gone(message)

    assert world.api.state(message.run_id)["type"] == "CANCELLED"
    if place == "start.after_move":
        assert world.marks() == "", "nothing is started that is known to be cancelled"


def test_a_shut_gate_lets_no_message_in_and_its_opening_does(world, service):
    world.ledger.shut()
    world.service.heartbeat.nudge()
    until(lambda: not world.service.slots.has_room(), 5, "the worker to see the gate")
    world.ledger.open()
    until(world.service.slots.has_room, 5, "the worker to see it open, without a nudge")
