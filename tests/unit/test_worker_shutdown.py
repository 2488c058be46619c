"""Shutdown: what becomes of runs at a stop, and what is said of those that are left."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from flowfleet.flow_run import Offer, Route
from flowfleet.ledger.claims import Claim, State
from flowfleet.ledger.roster import WorkerRow
from workers.lifecycle.shutdown import WorkerShutdown
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder


class Part:
    """Whatever is closed, waited for and signed off."""

    def __init__(self, said, name):
        self.said, self.name = said, name

    def close(self):
        self.said.append(f"{self.name} closed")

    def hurry(self):
        pass

    def nudge(self):
        pass

    def wait_idle(self, _seconds):
        return True

    def sign_off(self, worker, _nonce):
        self.said.append(f"{worker} signed off")


class FakeSupervisor(Part):
    """A run that is told to stop has ended and is told at once."""

    def __init__(self, said, attempts):
        super().__init__(said, "supervisor")
        self.attempts = attempts
        self.stopped = []

    def stop(self, key):
        self.stopped.append(key)
        self.attempts.remove(key)


class FakeStopSignals:
    first_signal = 15

    def finished(self):
        pass


class World:
    """A shutdown of fakes around a real table of attempts; waiting moves the clock and does what is due by then."""

    def __init__(self, mode, tmp_path):
        self.said, self.attempts, self.now = [], Attempts(), 0.0
        self.later = {}
        self.supervisor = FakeSupervisor(self.said, self.attempts)
        self.folder = tmp_path
        offer = Offer(backend="prefect3", pools=("p",))
        self.shutdown = WorkerShutdown(
            row=WorkerRow(worker="w@h", nonce="n", offer=offer, routes=(), slots=2, version="0"),
            mode=mode,
            grace=5.0,
            attempts=self.attempts,
            supervisor=self.supervisor,
            **{name: Part(self.said, name) for name in ("heartbeat", "pruner", "output", "roster", "deployer")},
            to_ledger=Part(self.said, "to_ledger"),
            to_api=Part(self.said, "to_api"),
            stop_signals=FakeStopSignals(),
            clock=lambda: self.now,
            wait=self.wait,
        )

    def wait(self, seconds):
        self.now += seconds
        for at in [at for at in self.later if at <= self.now]:
            self.later.pop(at)()

    def add(self, run_id, state):
        held = Claim(
            run_id=run_id,
            claim="c",
            call="k",
            route=Route("prefect3", "p", "q"),
            name=f"the {run_id}",
            due=datetime(2026, 11, 21, tzinfo=UTC),
            state=state,
        )
        attempt = Attempt(
            held=held,
            folder=RunFolder(self.folder / f"{run_id}.c"),
            started_run=object() if state is State.RUNNING else None,
        )
        self.attempts.begin(attempt)
        return attempt.key

    def begin_running(self, key):
        self.attempts.change(key, started_run=object())
        self.attempts.move(key, State.RUNNING)


def test_a_stop_that_leaves_runs_tells_by_what_there_is_how_to_end_them(tmp_path, caplog):
    world = World("detach", tmp_path)
    world.add("r1", State.RUNNING)
    with caplog.at_level(logging.INFO):
        world.shutdown.run()

    (record,) = [record for record in caplog.records if record.name == "workers.lifecycle.shutdown"]
    assert record.runs == "the r1 (r1)"
    assert record.levelname == "WARNING"
    assert "flowfleet cancel" not in record.message
    assert "--on-stop cancel" in record.message
    assert "flowfleet status" in record.message
    assert world.supervisor.stopped == []


def test_what_runs_have_printed_is_copied_to_the_end_after_the_last_run_is_seen(tmp_path):
    world = World("detach", tmp_path)
    world.shutdown.run()

    assert world.said.index("output closed") > world.said.index("supervisor closed")


@pytest.mark.parametrize("mode", ["wait", "cancel"])
def test_a_run_that_begins_while_the_runs_are_being_ended_is_ended_too(tmp_path, mode):
    world = World(mode, tmp_path)
    first, late = world.add("r1", State.RUNNING), world.add("r2", State.STARTING)
    world.later[5.5] = lambda: world.begin_running(late)
    world.shutdown.run()

    assert world.supervisor.stopped == [first, late]
    assert world.attempts.all() == []
    assert world.now < 7


@pytest.mark.parametrize(("mode", "word"), [("wait", "waits for its runs"), ("cancel", "ends its runs")])
def test_a_stop_that_takes_time_says_so_at_once(tmp_path, caplog, mode, word):
    world = World(mode, tmp_path)
    world.add("r1", State.RUNNING)
    with caplog.at_level(logging.INFO):
        world.shutdown.run()

    first = next(record for record in caplog.records if record.name == "workers.lifecycle.shutdown")
    assert word in first.message
    assert (first.worker, first.runs, first.grace_seconds) == ("w@h", 1, 5.0)
