"""Shutdown: what becomes of runs at a stop, and what is said of those that are left."""

import logging
from types import SimpleNamespace

import pytest

from flowfleet.ledger.claims import State
from flowfleet.ledger.roster import WorkerRow
from tests.unit.memory_ledger import OFFER, HandClock, a_claim
from workers.deployment import StopReason
from workers.lifecycle.shutdown import WorkerShutdown
from workers.shim import atomic_files
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder


class Part:
    """Whatever is closed, waited for and signed off: it says what it is asked."""

    def __init__(self, said, name):
        self.said, self.name = said, name

    def __getattr__(self, word):
        return lambda *_: self.said.append(f"{self.name} {word}") or True


class World:
    """A shutdown of fakes around a real table of attempts; waiting moves the clock and does what is due by then."""

    def __init__(self, mode, tmp_path, *, crashes=True):
        self.said, self.stopped, self.attempts, self.clock = [], [], Attempts(), HandClock(0.0)
        #: key of a run that was told to stop → when, and why
        self.told = {}
        self.later, self.deaf, self.killed = {}, set(), []
        self.folder = tmp_path
        # a run that is told to stop has ended and is told at once
        supervisor = Part(self.said, "supervisor")
        supervisor.stop = self.stop
        names = ("heartbeat", "pruner", "output", "roster", "deployer", "to_ledger", "to_api")
        self.shutdown = WorkerShutdown(
            row=WorkerRow(worker="w@h", nonce="n", offer=OFFER, routes=(), slots=2, version="0"),
            mode=mode,
            grace=5.0,
            engine_crashes_on_term=crashes,
            attempts=self.attempts,
            supervisor=supervisor,
            **{name: Part(self.said, name) for name in names},
            stop_signals=SimpleNamespace(first_signal=15, finished=lambda: None),
            yielding=Part(self.said, "yielding"),
            clock=self.clock,
            wait=self.wait,
        )

    def stop(self, key, stop):
        self.killed += [key] if stop.kill else []
        self.told[key] = (round(self.clock.now, 1), stop.reason)
        self.stopped.append(key)
        if key not in self.deaf:
            self.attempts.remove(key)

    def wait(self, seconds):
        self.clock.sleep(seconds)
        for at in [at for at in self.later if at <= self.clock.now]:
            self.later.pop(at)()

    def add(self, run_id, state, grace=None, **facts):
        held, folder = a_claim(run_id, state, claim="c", **facts), RunFolder(self.folder / f"{run_id}.c")
        if grace is not None:
            folder.path.mkdir()
            folder.note(stop_grace=grace)
        attempt = Attempt(held=held, folder=folder, started_run=object() if state is State.RUNNING else None)
        self.attempts.begin(attempt)
        return attempt.key

    def begin_running(self, key):
        self.attempts.change(key, started_run=object())
        self.attempts.move(key, State.RUNNING)


@pytest.fixture
def world(request, tmp_path, caplog):
    caplog.set_level(logging.INFO, "workers.lifecycle.shutdown")
    return World(getattr(request, "param", "detach"), tmp_path)


def said(caplog):
    return [record for record in caplog.records if record.name == "workers.lifecycle.shutdown"]


def test_a_stop_that_leaves_runs_tells_by_what_there_is_how_to_end_them(world, caplog):
    world.add("r1", State.RUNNING)
    world.shutdown.run()
    (record,) = said(caplog)
    assert record.runs == "the r1 (r1)"
    assert record.levelname == "WARNING"
    assert "flowfleet cancel" not in record.message
    assert "--on-stop cancel" in record.message
    assert "flowfleet status" in record.message
    assert world.stopped == []


def test_what_runs_have_printed_is_copied_to_the_end_after_the_last_run_is_seen(world):
    world.shutdown.run()
    assert world.said.index("output close") > world.said.index("supervisor close")


@pytest.mark.parametrize("world", ["wait", "cancel"], indirect=True)
def test_a_run_that_begins_while_the_runs_are_being_ended_is_ended_too(world):
    first, late = world.add("r1", State.RUNNING), world.add("r2", State.STARTING)
    world.later[5.5] = lambda: world.begin_running(late)
    world.shutdown.run()
    assert world.stopped == [first, late]
    assert world.attempts.all() == []
    assert world.clock.now < 7


@pytest.mark.parametrize(
    ("world", "word"), [("wait", "waits for its runs"), ("cancel", "ends its runs")], indirect=["world"]
)
def test_a_stop_that_takes_time_says_so_at_once(world, caplog, word):
    world.add("r1", State.RUNNING)
    world.shutdown.run()
    first = said(caplog)[0]
    assert word in first.message
    assert (first.worker, first.runs, first.grace_seconds) == ("w@h", 1, 5.0)


@pytest.mark.parametrize(
    ("world", "ends"), [("wait", {"r1": 5, "r2": 60, "r3": 1}), ("cancel", {})], indirect=["world"]
)
def test_a_stop_waits_for_each_run_as_long_as_it_may_have(world, caplog, ends):
    keys = [world.add("r1", State.RUNNING), world.add("r2", State.RUNNING, 60.0), world.add("r3", State.RUNNING, 1)]
    world.shutdown.run()
    assert said(caplog)[0].grace_seconds == 60.0
    assert {key: why for key, (_, why) in world.told.items()} == dict.fromkeys(keys, StopReason.WORKER)
    for key in keys:
        assert world.told[key][0] == pytest.approx(ends.get(key.partition(".")[0], 0), abs=0.2)


@pytest.mark.parametrize(("world", "seconds"), [("wait", 2 * 60 + 15), ("cancel", 60 + 15)], indirect=["world"])
def test_a_run_that_does_not_end_holds_up_its_worker_no_longer_than_its_time_and_the_time_to_tell(world, seconds):
    world.deaf.add(world.add("r1", State.RUNNING, 60.0))
    world.shutdown.run()
    assert world.clock.now == pytest.approx(seconds, abs=0.2)
    assert len(world.stopped) == 1


@pytest.mark.parametrize("crashes", [True, False])
def test_a_run_that_is_to_be_started_again_gets_no_term_where_its_engine_would_end_it_for_good(tmp_path, crashes):
    world = World("cancel", tmp_path, crashes=crashes)
    begun = [("r1", "report", True), ("r2", "requeue", True), ("of a plugged-in deployer", "requeue", False)]
    keys = [world.add(run_id, State.RUNNING, 9.0, policy=policy) for run_id, policy, _ in begun]
    for key, (*_, by_shim) in zip(keys, begun, strict=True):
        shim = {"shim_started_at": 1.0} if by_shim else {}
        atomic_files.write_json(world.folder / key / "started.json", {"v": 1, "kind": "k", **shim})
    world.shutdown.run()
    assert world.stopped == keys
    assert world.killed == (keys[1:2] if crashes else [])


@pytest.mark.parametrize("world", ["wait", "cancel"], indirect=True)
@pytest.mark.parametrize("away", [True, False])
def test_ends_that_redis_cannot_be_told_are_not_waited_for(world, away):
    world.add("r1", State.RUNNING)
    untold = world.add("r2", State.ENDED)
    object.__setattr__(world.shutdown, "to_ledger", SimpleNamespace(away=away, wait_idle=lambda _seconds: False))
    world.shutdown.run()
    assert [attempt.key for attempt in world.attempts.all()] == [untold]
    # while a run still runs it is waited for, and ended, all the same
    assert world.stopped
    assert (world.clock.now < 7) is away
