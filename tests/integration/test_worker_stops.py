"""Stops and restarts: a worker leaves its runs, and the next one on the host takes them over with their true ends."""

import time
from dataclasses import replace

import pytest

from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Lease
from tests.waiting import SCALE, stays, until
from tests.worker_world import Left
from workers.deployment import StopReason
from workers.runs import launch as launch_module
from workers.shim.syscalls import boot_clock
from workers.stop import Stop


class Crash(Failpoints):
    """The launch breaks off at a place as if its process had died there: nothing after it happens."""

    def hit(self, name):
        if name in self.actions:
            raise Left


def test_a_detached_run_goes_on_and_the_next_worker_reports_its_true_exit(world, service):
    message = world.begin(7)
    before = world.ledger.claims.get(message.run_id)
    began = time.monotonic()
    assert world.stop() == 0
    assert time.monotonic() - began < 5 * SCALE
    assert world.ledger.claims.get(message.run_id).state == "running"

    service = world.start()
    assert {attempt.key for attempt in service.attempts.running()} == {message.task_id}
    assert service.slots.in_use() == 1
    world.end(message, 7)
    assert before.handle["pid"] == world.run_folder(message).started()["pid"]
    assert world.api.history(message.run_id).count("Launching") == 1


def test_cancel_mode_ends_the_runs_before_the_worker_goes(world):
    world.start(mode="cancel")
    message = world.begin()
    assert world.stop() == 0

    assert world.ledger.claims.get(message.run_id) is None
    assert f"was stopped with its worker {world.worker}" in world.told(message)
    assert world.api.state(message.run_id)["type"] == "CRASHED", "nobody has asked for another start"


def test_wait_mode_waits_for_the_runs(world):
    service = world.start(mode="wait")
    message = world.begin(4)
    service.stop_signals.request()
    stays(world._thread.is_alive, 0.7, "the worker waits")
    world.release()
    assert world.stop() == 0

    assert "exited with code 4" in world.told(message)


@pytest.mark.parametrize("mode", ["wait", "cancel"])
def test_a_stopping_worker_serves_no_route_while_it_renews_what_it_still_has(world, mode):
    ignores = "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    world.run_grace = 60.0
    service = world.start(mode=mode)
    message = world.submit(ignores)
    world.wait_state(message, "running")
    log = world.run_folder(message).log
    until(lambda: log.read_text() == "on\n", 5, "the run to take no TERM")
    service.stop_signals.request()
    until(lambda: world._row().routes == (), 5, "the roster to show no route")
    beat = world._row().beat
    service.heartbeat.nudge()
    until(lambda: world._row().beat > beat, 5, "a renewal")

    assert world._row().routes == ()
    until(lambda: service.ledger_view.served == frozenset(), 5, "Celery's loop to serve nothing either")
    assert world.ledger.claims.get(message.run_id).state == "running"
    (outcome,) = world.ledger.claim(world.create("true"))
    assert not outcome.moved, "nothing is claimed for it"
    service.supervisor.stop(message.task_id, Stop(reason=StopReason.CANCEL, kill=True))
    assert world.stop() == 0


class Thawed(Failpoints):
    """At this place so much time passes for the launch as if the worker had been frozen past its lease."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.ahead = 0.0
        monkeypatch.setattr(launch_module, "boot_clock", lambda: boot_clock() + self.ahead)

    def hit(self, name):
        if name == "start.after_move":
            self.ahead = Lease().ttl_seconds


def test_a_worker_that_thaws_past_its_lease_starts_nothing_and_hands_the_run_back(world, monkeypatch):
    world.start(failpoints=Thawed(monkeypatch))
    message = world.run(world.marking())
    world.wait_handed_back(message)

    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Launching", "Scheduled"]
    assert "too late" in world.told(message)
    assert world.marks() == ""


class LateDeployer:
    """Its orders come to the shim when their time is over, as if the worker had been frozen in the fork."""

    def __init__(self, deployer):
        self.deployer = deployer

    def start(self, spec):
        return self.deployer.start(replace(spec, not_after=boot_clock() - 1.0))

    def adopt(self, folder):
        return self.deployer.adopt(folder)


def test_a_start_that_comes_too_late_at_its_shim_is_handed_back_and_no_fault_of_the_run(world, service):
    object.__setattr__(service.launch, "deployer", LateDeployer(service.launch.deployer))
    message = world.run(world.marking())

    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Launching", "Scheduled"]
    assert world.marks() == ""


@pytest.mark.parametrize("place", ["take.after_folder", "take.after_move", "start.after_move", "start.before_fork"])
def test_a_launch_that_breaks_off_before_the_fork_is_handed_back_by_the_next_worker(world, place):
    world.start(failpoints=Crash({place: "raise"}))
    message = world.submit(world.marking())
    state = "queued" if place == "take.after_folder" else "taken" if place == "take.after_move" else "starting"
    folder = world.run_folder(message)
    until(folder.path.exists, 10, "the run's folder")
    world.wait_state(message, state)
    world.next_worker()
    # one that was never taken is yielded by the stop, and only its folder is left to the next worker
    world.wait_gone(message)
    until(lambda: not folder.path.exists(), 10, "the folder to be removed")
    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
    assert world.marks() == ""


@pytest.mark.parametrize("place", ["start.after_fork", "start.after_running"])
def test_a_launch_that_breaks_off_after_the_fork_is_adopted_by_the_next_worker(world, place):
    world.start(failpoints=Crash({place: "raise"}))
    message = world.submit(f"{world.marking()}; raise SystemExit(6)")
    until(world.marks, 10, "the run to begin")
    world.next_worker()
    world.wait_gone(message)

    assert world.marks() == "ran;"
    assert "exited with code 6" in world.told(message)


@pytest.mark.parametrize("place", ["take.after_move", "start.after_move", "start.before_fork"])
def test_a_fault_of_ours_before_the_fork_hands_the_run_back_at_once(world, place):
    world.start(failpoints=Failpoints({place: "raise"}))
    message = world.run(world.marking())
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
    assert world.marks() == ""


def test_a_fault_of_ours_after_the_fork_loses_nothing(world):
    world.start(failpoints=Failpoints({"start.after_fork": "raise"}))
    message = world.run("import time; time.sleep(0.3); raise SystemExit(6)")

    assert "exited with code 6" in world.told(message)


def test_a_start_that_failed_unsaid_is_told_by_the_next_worker(world):
    world.start(failpoints=Failpoints({"end.before_record": "raise"}))
    message = world.submit_command("/no/such/program")
    folder = world.run_folder(message)
    until(lambda: folder.exit_record() is not None, 10, "the failed start to be on disk")
    world.next_worker()
    world.wait_gone(message)

    assert "/no/such/program" in world.told(message)


@pytest.mark.parametrize("place", ["end.before_report", "end.after_report", "end.after_record"])
def test_an_end_that_breaks_off_is_told_by_the_next_worker(world, place):
    world.start(failpoints=Failpoints({place: "raise"}))
    message = world.submit("raise SystemExit(8)")
    world.wait_state(message, "ended")
    world.wait_free()
    world.stop()
    assert world.ledger.claims.get(message.run_id).state == "ended"
    world.start()
    world.wait_gone(message)

    assert "exited with code 8" in world.told(message)
    assert world.api.history(message.run_id).count("Crashed") >= 1
    assert list(world.state.outbox) == []


def kept(world, where="", status=503):
    """A run whose end the API does not take, with the report of it on disk."""
    world.start()
    message = world.begin(3)
    world.api.fail(where, "status", times=-1, status=status)
    world.release()
    (report,) = until(lambda: list(world.state.outbox), 30, "the report to be on disk")
    assert "exited with code 3" in report["message"]
    return message


def test_a_report_is_on_disk_and_sent_again_until_the_api_takes_it(world):
    # a 500 is never asked again by the session: each try is one of the report itself
    message = kept(world, "set_state", 500)
    sent = world.api.counted("set_state")
    until(lambda: world.api.counted("set_state") > sent, 20, "the report to be sent again")
    assert world.ledger.claims.get(message.run_id).state == "ended"
    until(lambda: world.service.slots.in_use() == 0, 5, "the slot to be free, though the end is not told yet")
    world.api.heal()
    world.wait_gone(message, 40)

    assert "exited with code 3" in world.told(message)
    assert list(world.state.outbox) == []


def test_an_end_while_the_api_is_away_is_on_disk_and_told_when_it_is_back(world):
    message = kept(world)
    world.api.heal()
    world.wait_gone(message, 60)

    assert "exited with code 3" in world.told(message)
    assert list(world.state.outbox) == []


def test_an_end_that_was_only_kept_does_not_overwrite_what_the_engine_has_said(world):
    message = kept(world)
    world.stop()
    world.api.write(message.run_id, "SCHEDULED", "AwaitingRetry")
    world.api.heal()
    world.start()
    world.wait_gone(message, 60)

    assert world.api.state(message.run_id)["name"] == "AwaitingRetry"
    assert list(world.state.outbox) == []


def test_a_draining_worker_takes_nothing_and_ends_when_it_is_empty(world, service):
    message = world.begin(2)
    assert world.ledger.roster.want(world.worker, "draining")
    world.service.heartbeat.nudge()
    until(lambda: world.service.ledger_view.wanted == "draining", 5, "the order to arrive")
    assert not world.service.slots.has_room()
    assert world.code is None
    world.release()
    world.wait_ended()

    assert world.code == 0
    assert world.ledger.claims.get(message.run_id) is None
    assert not service.draining.from_start


def test_a_worker_that_was_drained_before_adopts_what_it_had_and_says_why_it_ends(world, service, caplog):
    message = world.begin(2)
    world.stop()
    assert world.ledger.roster.want(world.worker, "draining", "kernel upgrade")
    service = world.start()
    world.end(message, 2)
    world.wait_ended()

    assert service.draining.from_start
    (said,) = [record for record in caplog.records if "drained before" in record.message]
    assert (said.resume, said.note) == (f"worker resume {world.worker}", "kernel upgrade")


def test_a_worker_that_was_drained_before_stays_until_the_reports_on_its_disk_are_told(world):
    message = kept(world, "set_state", 500)
    world.stop()
    assert world.ledger.roster.want(world.worker, "draining")
    world.start()
    stays(world._thread.is_alive, 3, "it waits for the API")
    world.api.heal()
    world.wait_gone(message, 60)
    world.wait_ended()
    assert list(world.state.outbox) == []
