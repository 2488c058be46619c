"""A worker that is cut off from Redis, or comes back to find its run given up: what becomes of the run's process."""

import dataclasses
import os
import signal
import sys

import pytest

from flowfleet.api.life import cut_off_name
from flowfleet.ledger import connect
from flowfleet.ledger.claims import Lease
from tests.processes import alive
from tests.tcp_bridge import TcpBridge
from tests.waiting import SCALE, stays, until
from tests.worker_world import WorkerWorld, command
from workers.reporting.exit_table import GONE_LOOK_SECONDS
from workers.shim.syscalls import boot_clock

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]
#: the switch of a run goes off three seconds before the end of this: a pause of the worker's may last so long less
LEASE = Lease(renew_seconds=0.5, ttl_seconds=11.0, grace_seconds=1.0)
ANOTHER = "00000000-0000-4000-8000-00000000ffff"


class CutWorld(WorkerWorld):
    """A worker that reaches Redis over a link that can be cut; tests, in the place of a leader, reach it directly."""

    def __init__(self, valkey, folder):
        super().__init__(valkey.tcp_url, folder)
        self.bridge = TcpBridge(("127.0.0.1", valkey.port))
        near = valkey.tcp_url.replace(f":{valkey.port}", f":{self.bridge.port}")
        self.near = connect(near, self.ledger.fleet, socket_timeout=1.0)
        self.settings = dataclasses.replace(self.settings, redis=near)
        self.ledger.most = 3
        self.ledger.lead()
        self.ledger.open()
        assert self.ledger.gate.lead(self.ledger.term, self.ledger.gate.leader().nonce, LEASE)

    def begin(self, code=0, gate="gate", **variables):
        message = self.submit(self.holding(code, gate), **variables)
        self.wait_state(message, "running")
        return message

    def cut(self):
        self.bridge.cut()

    def back(self):
        """The link is there again, and the worker has heard of Redis."""
        before = self._row().beat
        self.bridge.mend()
        until(lambda: self._row().beat > before, 20, "a renewal")

    def bury(self, message, state="CRASHED"):
        """What a leader does with a run that it has not heard of for too long."""
        ids = (message.run_id, message.claim)
        claims, term = self.ledger.claims, self.ledger.term
        assert claims.miss(term, *ids).moved
        assert claims.judge(term, *ids, reason="Lost.").moved
        self.api.write(message.run_id, state)
        assert claims.bury(term, *ids, state.lower()).moved
        assert claims.tomb(message.run_id).claim == message.claim

    def lives(self):
        return len(self.service.attempts.running()) == 1

    def stays_alive(self, seconds=2.0):
        stays(self.lives, seconds, "the process to be left alone")

    def wait_exit(self, message, seconds=20):
        """Wait until the run's process is gone whole; its record."""
        folder = self.run_folder(message)
        until(lambda: folder.exit_record() is not None and folder.cleared(), seconds, "the run to end")
        return folder.exit_record()

    def shown(self):
        return sorted(name for name in self.api.workers if "cut off" in name)

    def close(self):
        if self.bridge.closed:
            self.bridge.mend()
        super().close()
        self.near.close()
        self.bridge.close()


@pytest.fixture
def world(valkey, tmp_path):
    made = CutWorld(valkey, tmp_path)
    yield made
    made.close()


def test_a_run_goes_on_while_its_worker_is_cut_off_and_the_pool_shows_that_it_lives(world, service):
    message = world.begin(5)
    world.cut()
    until(world.shown, 20, "a sign of life at the API")
    assert world.shown() == ["flowfleet/" + cut_off_name(world.ledger.fleet, world.worker)]
    world.stays_alive()
    world.back()
    until(lambda: world.shown() == [], 10, "the sign of life to go")
    world.end(message, 5)


def test_a_claim_says_by_which_lease_its_worker_counts_until_that_has_heard_of_another(world, service):
    first = world.begin()
    claims, gate, leader = world.ledger.claims, world.ledger.gate, world.ledger.gate.leader()
    assert claims.get(first.run_id).ttl == LEASE.ttl_seconds
    assert gate.lead(world.ledger.term, leader.nonce, dataclasses.replace(LEASE, ttl_seconds=4.0))
    until(lambda: claims.get(first.run_id).ttl == 4.0, 10, "the worker to say that it has heard the new lease")


@pytest.mark.parametrize("state", ["CANCELLED", "CANCELLING", "gone"])
def test_a_worker_that_is_cut_off_ends_what_is_cancelled_or_deleted(world, service, state):
    message = world.begin()
    other = world.begin(4, "another gate")
    world.cut()
    if state == "gone":
        del world.api.runs[message.run_id]
    else:
        world.api.write(message.run_id, state)
    assert world.wait_exit(message)["stop_reason"] == "cancelled"
    world.back()
    world.wait_gone(message, 20 + GONE_LOOK_SECONDS)
    if state != "gone":
        assert world.api.state(message.run_id)["type"] == "CANCELLED"
    assert world.lives(), "the other one is not touched"
    world.release("another gate")
    world.wait_gone(other)


@pytest.mark.parametrize("begun", [True, False], ids=["it runs", "it waits for its process"])
def test_a_worker_that_is_cut_off_ends_what_is_handed_out_anew_and_reports_nothing_of_it(world, service, begun):
    message = world.begin()
    world.cut()
    world.api.write(message.run_id, "CRASHED")
    world.api.write(message.run_id, "SCHEDULED", "AwaitingRetry")
    until(world.shown, 20, "the worker to know that it is cut off")
    world.stays_alive(1.5)
    world.api.write(message.run_id, "PENDING", transition_id=ANOTHER)
    if begun:
        world.api.write(message.run_id, "RUNNING")
    history = world.api.history(message.run_id)
    assert world.wait_exit(message)["stop_reason"] == "fenced"
    world.back()
    until(lambda: world.service.attempts.all() == [], 20, "the worker to let go of it")
    assert world.api.history(message.run_id) == history


def test_nothing_ends_while_redis_and_the_api_are_both_away(world, service):
    message = world.begin(6)
    world.api.fail("", times=-1)
    world.cut()
    until(lambda: world.api.counted("/flow_runs/filter") > 0, 20, "the API to be asked")
    world.stays_alive(3.0)
    world.api.heal()
    world.back()
    world.end(message, 6, 40)


# -- the dead man's switch


def test_a_run_that_is_to_be_started_again_ends_with_its_lease_and_is_then_scheduled_once_more(world, service):
    message = world.begin(on_lost_run="requeue")
    claim = world.ledger.claims.get(message.run_id)
    assert (claim.policy, claim.switch) == ("requeue", True)
    stays(world.lives, LEASE.ttl_seconds, "the lease to be renewed")
    world.cut()
    begun = boot_clock()
    record = world.wait_exit(message)
    assert boot_clock() - begun < LEASE.ttl_seconds + 2 * SCALE
    assert (record["stop_reason"], record["signal"]) == ("dead-mans-switch", 9)
    world.back()
    assert world.wait_gone(message)["reason"] == "again"
    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
    assert "dead man's switch" in world.told(message)


def test_a_run_whose_shim_is_frozen_is_killed_by_its_worker_when_its_lease_is_over(world, service):
    message = world.begin(on_lost_run="requeue")
    handle = world.ledger.claims.get(message.run_id).handle
    os.kill(handle["pid"], signal.SIGSTOP)
    stays(lambda: world.lives() and alive(handle["command_pid"]), LEASE.ttl_seconds, "the lease to be renewed")
    world.cut()
    until(lambda: not alive(handle["command_pid"]), LEASE.ttl_seconds + 2, "the run to be killed")
    folder = world.run_folder(message)
    until(lambda: folder.exit_record() is not None, 20, "its end to be seen")
    assert folder.exit_record()["stop_reason"] == "dead-mans-switch"
    world.back()
    world.wait_gone(message)
    assert "dead man's switch" in world.told(message)


def test_a_run_that_asks_for_no_policy_has_no_switch_and_one_that_asks_for_an_unknown_one_does_not_begin(
    world, service
):
    message = world.begin()
    assert not world.ledger.claims.get(message.run_id).switch
    assert not (world.run_folder(message).path / "lease.json").exists()
    other = world.submit("pass", on_lost_run="again")
    world.wait_gone(other)
    assert "give report or requeue" in world.told(other)


def test_a_run_that_was_started_again_as_often_as_it_may_be_is_reported_and_needs_no_switch(world, service):
    world.ledger.most = 0
    message = world.begin(on_lost_run="requeue")
    assert world.ledger.claims.get(message.run_id).policy == "report"
    assert not world.service.attempts.get(message.task_id).held.switch
    assert not (world.run_folder(message).path / "lease.json").exists()


def test_the_next_worker_renews_the_lease_of_a_run_with_a_switch(world, service):
    message = world.begin(4, on_lost_run="requeue")
    world.next_worker()
    stays(world.lives, LEASE.ttl_seconds, "the lease to be renewed")
    world.end(message, 4)


# -- given up


def test_a_buried_run_is_left_to_its_end_which_becomes_a_line_of_its_log_and_opens_its_tombstone(world, service):
    message = world.begin(5)
    world.cut()
    world.bury(message)
    world.back()
    until(lambda: world.service.attempts.get(message.task_id).fenced, 20, "the worker to know")
    world.stays_alive()
    assert world.ledger.claims.tomb(message.run_id) is not None
    world.release()
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the tombstone to go")
    until(lambda: any("exited with code 5" in line["message"] for line in world.api.logs), 10, "the log line")
    assert world.api.history(message.run_id)[-1] == "Crashed"


def test_a_buried_run_that_was_cancelled_is_killed(world, service):
    message = world.begin()
    world.cut()
    world.bury(message, "CANCELLED")
    world.back()
    assert world.wait_exit(message)["stop_reason"] == "fenced"
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the tombstone to go")
    assert world.api.history(message.run_id)[-1] == "Cancelled"


def test_a_buried_run_that_somebody_restarts_by_hand_makes_way_for_its_next_attempt(world, service):
    message = world.begin()
    world.cut()
    world.bury(message)
    world.back()
    until(lambda: world.service.attempts.get(message.task_id).fenced, 20, "the worker to know")
    world.api.write(message.run_id, "SCHEDULED", "AwaitingRetry")
    assert world.wait_exit(message)["stop_reason"] == "fenced"
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the tombstone to go")
    assert world.api.history(message.run_id)[-1] == "AwaitingRetry"


def test_the_report_of_a_host_that_comes_back_after_its_run_was_buried_and_claimed_anew_is_dropped(world, service):
    """A frozen host: its run ends with its lease at the thaw, when another worker has the run already."""
    run = world.create(command(world.holding()), on_lost_run="requeue")
    message = world.claim(run)
    world.publisher.publish(message)
    world.wait_state(message, "running")
    handle = world.ledger.claims.get(message.run_id).handle
    for pid in (handle["pid"], handle["command_pid"]):
        os.kill(pid, signal.SIGSTOP)
    world.cut()
    world.api.fail("", times=-1)  # a frozen worker asks nobody anything
    ids, claims, term = (message.run_id, message.claim), world.ledger.claims, world.ledger.term
    assert claims.miss(term, *ids).moved
    assert claims.judge(term, *ids, proof="it has ended itself", reason="Lost.").moved
    assert claims.bury(term, *ids, "again").moved
    world.api.write(message.run_id, "SCHEDULED", "AwaitingRetry")
    (anew,) = world.ledger.claim(run, call=ANOTHER)
    assert anew.moved
    world.api.write(message.run_id, "PENDING", transition_id=ANOTHER)
    world.api.write(message.run_id, "RUNNING")
    history, folder = world.api.history(message.run_id), world.run_folder(message)
    until(lambda: folder.exit_record() is not None, LEASE.ttl_seconds + 20, "the run to end")
    assert folder.exit_record()["stop_reason"] == "dead-mans-switch"
    world.api.heal()
    world.back()
    until(lambda: world.service.attempts.all() == [], 20, "the worker to let go of it")
    assert world.state.outbox.get(*ids) is None
    assert world.api.history(message.run_id) == history
    assert claims.get(message.run_id).claim == anew.claim.claim


@pytest.mark.parametrize("told", ["CRASHED", "CANCELLED"])
def test_no_hook_runs_on_a_host_whose_run_was_told_as_lost(world, tmp_path, caplog, told):
    marks, starters = tmp_path / "marks", tmp_path / "starters"
    starters.mkdir()
    (starters / "prefect3_engine.py").write_text("import os; exec(os.environ['CODE'])")
    (starters / "prefect3_hooks.py").write_text(f"open({str(marks)!r}, 'w')")
    world.interpreter = dataclasses.replace(world.interpreter, path=sys.executable, starters=starters)
    world.start()
    message = world.claim(world.create(None, env={"CODE": world.holding(5)}))
    world.publisher.publish(message)
    world.wait_state(message, "running")
    assert world.run_folder(message).is_engine()
    world.cut()
    world.bury(message, told)
    world.back()
    until(lambda: "claim is not ours any more" in caplog.messages, 20, "the worker to know")
    world.release()
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the tombstone to go")
    until(lambda: world.service.attempts.all() == [], 20, "the worker to let go of it")
    assert not marks.exists()
    assert not (world.run_folder(message).path / "hooks").exists(), "not even one that is ended at once"


def test_a_judged_run_of_which_the_api_knows_nothing_yet_goes_on(world, service):
    message = world.begin()
    world.cut()
    ids = (message.run_id, message.claim)
    assert world.ledger.claims.miss(world.ledger.term, *ids).moved
    assert world.ledger.claims.judge(world.ledger.term, *ids, reason="Lost.").moved
    world.back()
    world.stays_alive()
    assert not world.service.attempts.get(message.task_id).fenced
    world.api.write(message.run_id, "CANCELLED")
    assert world.wait_exit(message)["stop_reason"] == "fenced"


def test_a_forgotten_run_is_killed_and_nobody_is_told_of_it(world, service, caplog):
    message = world.begin()
    world.cut()
    world.ledger.give_up(world.ledger.claims.get(message.run_id))
    history, lines = world.api.history(message.run_id), len(world.api.logs)
    world.back()
    world.wait_exit(message)
    until(lambda: world.service.attempts.all() == [], 20, "the worker to let go of it")
    assert world.api.history(message.run_id) == history
    assert not any("earlier attempt" in line["message"] for line in world.api.logs[lines:])
    (said,) = [record for record in caplog.records if record.message == "run is ended since it is not ours any more"]
    assert "worker forget" in said.run


def test_a_host_that_is_asked_for_a_run_that_has_ended_says_so(world, service):
    message = world.begin(5)
    world.cut()
    world.bury(message)
    world.back()
    until(lambda: world.service.attempts.get(message.task_id).fenced, 20, "the worker to know")
    tomb = world.ledger.ledger.store.client.hget(world.ledger.ledger.store.key("tombs"), message.run_id)
    world.release()
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the tombstone to go")
    # as an older snapshot of Redis would bring it back
    world.ledger.ledger.store.client.hset(world.ledger.ledger.store.key("tombs"), message.run_id, tomb)
    until(lambda: world.ledger.claims.tomb(message.run_id) is None, 20, "the host to say it again")


def test_a_worker_tells_an_emptied_redis_by_which_id_it_was_known(world):
    world.start()
    (before,) = world.ledger.gate.ledgers()
    until(lambda: world.service.ledger_view.ledgers == (before,), 20, "the worker to hear of it")
    client, key = world.ledger.ledger.store.client, world.ledger.ledger.store.key
    client.delete(*client.keys(key("*")))
    world.ledger.lead()  # a poller that remembers nothing
    until(lambda: before in world.ledger.gate.ledgers(), 20, "the worker to tell")
    assert len(world.ledger.gate.ledgers()) == 2
