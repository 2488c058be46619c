"""The supervisor and the table of attempts: every end is seen, whatever the others do."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowfleet.flow_run import Route
from flowfleet.ledger.claims import Claim, State
from tests.waiting import until
from workers.deployment import Exit
from workers.runs.supervisor import Supervisor
from workers.shim import atomic_files
from workers.shim.syscalls import boot_clock
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder

ROUTE = Route("prefect3", "11111111-1111-4111-8111-111111111111", "default")


class FakeDeployment:
    """Ends when it is told to; with or without a descriptor; may be broken."""

    def __init__(self, *, descriptor=True, broken=False):
        self.reader, self.writer = os.pipe() if descriptor else (None, None)
        self.exit = None
        self.asked = 0
        self.said = []
        self.broken = broken
        self.handle = {"kind": "fake"}

    def fileno(self):
        return self.reader

    def poll(self):
        self.asked += 1
        if self.broken:
            raise OSError("broken")
        return self.exit

    def begun(self):
        return True

    def ring(self):
        os.write(self.writer, b"!")

    def end(self, exit_):
        self.exit = exit_
        if self.writer is not None:
            self.ring()

    def stop(self):
        self.said.append("stop")

    def kill(self):
        self.said.append("kill")

    def close(self):
        self.said.append("close")


def attempt(number, started_run=None, state=State.RUNNING):
    held = Claim(
        run_id=f"run{number}",
        claim="claim",
        call="call",
        route=ROUTE,
        name=f"n{number}",
        due=datetime(2026, 1, 1, tzinfo=UTC),
        state=state,
    )
    return Attempt(held=held, folder=RunFolder(Path(f"/nowhere/run{number}.claim")), started_run=started_run)


@pytest.fixture
def watched():
    """A supervisor, its table, and the list of ends."""
    attempts, ends = Attempts(), []
    supervisor = Supervisor(attempts, ends.append, run_timeout=None)
    supervisor.start()
    yield supervisor, attempts, ends
    supervisor.close()


def watch(supervisor, attempts, one):
    assert attempts.begin(one)
    supervisor.watch(one.key)
    return one.started_run


@pytest.mark.parametrize("descriptor", [True, False])
def test_an_end_is_seen_and_handed_on_once(watched, descriptor):
    supervisor, attempts, ends = watched
    started_run = watch(supervisor, attempts, attempt(1, FakeDeployment(descriptor=descriptor)))
    until(lambda: started_run.asked, 5, "the first look")
    started_run.end(Exit(code=4))
    until(lambda: ends, 5, "the end")
    assert [(one.key, one.exit.code, one.held.state) for one in ends] == [("run1.claim", 4, State.ENDED)]
    assert attempts.occupying() == set()
    assert started_run.said == ["close"]


def test_an_end_before_it_was_watched_is_seen(watched):
    supervisor, attempts, ends = watched
    started_run = FakeDeployment()
    started_run.exit = Exit(code=0)
    watch(supervisor, attempts, attempt(1, started_run))
    until(lambda: ends, 5, "the end")


def test_a_leader_that_is_gone_while_its_group_is_not_keeps_the_slot(watched):
    supervisor, attempts, ends = watched
    started_run = watch(supervisor, attempts, attempt(1, FakeDeployment()))
    started_run.ring()
    os.read(started_run.reader, 1)
    until(lambda: started_run.asked >= 1, 5, "a look")
    assert attempts.occupying() == {"run1.claim"}
    assert ends == []
    started_run.exit = Exit(signal=9)
    started_run.ring()
    until(lambda: ends, 5, "the end when all of it is gone")


def test_a_descriptor_that_never_stops_ringing_does_not_keep_the_thread_spinning(watched):
    supervisor, attempts, ends = watched
    started_run = watch(supervisor, attempts, attempt(1, FakeDeployment()))
    started_run.ring()
    until(lambda: started_run.asked > 50, 5, "the rings to be counted")
    before = started_run.asked
    until(lambda: started_run.asked >= before + 5, 5, "it to be asked on")
    assert started_run.asked < 200, "asked in steps, not as fast as the thread can"
    started_run.exit = Exit(code=1)
    until(lambda: ends, 5, "the end")


def test_a_broken_run_does_not_leave_the_others_unwatched(watched):
    supervisor, attempts, ends = watched
    broken = watch(supervisor, attempts, attempt(1, FakeDeployment(broken=True)))
    good = watch(supervisor, attempts, attempt(2, FakeDeployment()))
    until(lambda: broken.asked, 5, "the broken one to be asked")
    good.end(Exit(code=0))
    until(lambda: [one.key for one in ends] == ["run2.claim"], 5, "the other's end")


def test_a_run_is_stopped_or_killed_on_demand(watched):
    supervisor, attempts, _ = watched
    started_run = watch(supervisor, attempts, attempt(1, FakeDeployment()))
    supervisor.stop("run1.claim")
    supervisor.stop("run1.claim", kill=True)
    supervisor.stop("unknown")
    until(lambda: started_run.said == ["stop", "kill"], 5, "both")


def test_a_run_that_takes_longer_than_the_timeout_is_stopped():
    attempts = Attempts()
    supervisor = Supervisor(attempts, lambda _: None, run_timeout=0.05)
    supervisor.start()
    started_run = watch(supervisor, attempts, attempt(1, FakeDeployment()))
    until(lambda: started_run.said == ["stop"], 5, "the stop")
    supervisor.close()


def test_the_time_of_an_adopted_run_does_not_begin_anew(tmp_path):
    attempts = Attempts()
    supervisor = Supervisor(attempts, lambda _: None, run_timeout=3600)
    supervisor.start()
    old, young, plugged_in = (RunFolder(tmp_path / f"run{number}.claim") for number in range(3))
    for folder in (old, young, plugged_in):
        folder.path.mkdir()
        folder.note(v=1)
    atomic_files.write_json(old.path / "started.json", {"boot_clock": boot_clock() - 3601})
    atomic_files.write_json(young.path / "started.json", {"boot_clock": boot_clock() - 3000})
    long_ago = time.time() - 3601
    os.utime(plugged_in.path / "intent.json", (long_ago, long_ago))
    started_runs = []
    for number, folder in enumerate((old, young, plugged_in)):
        one = replace(attempt(number, FakeDeployment()), folder=folder, adopted=True)
        started_runs.append(watch(supervisor, attempts, one))
    until(lambda: started_runs[0].said == started_runs[2].said == ["stop"], 5, "the stop of those whose time is over")
    until(lambda: started_runs[1].asked, 5, "a look at the other")
    assert started_runs[1].said == []
    supervisor.close()


def test_nothing_begins_after_the_close_but_adopted_runs():
    attempts = Attempts()
    attempts.close()
    assert not attempts.begin(attempt(1))
    assert attempts.all() == []


def test_a_state_never_goes_back_and_each_change_may_free_a_slot():
    changes = []
    attempts = Attempts(on_change=lambda: changes.append(1))
    attempts.begin(attempt(1, state=State.TAKEN))
    attempts.move("run1.claim", State.RUNNING, handle={"pid": 1})
    attempts.move("run1.claim", State.STARTING)
    now = attempts.get("run1.claim")
    assert (now.held.state, now.held.handle) == (State.RUNNING, {"pid": 1})
    assert attempts.remove("run1.claim").key == "run1.claim"
    assert attempts.move("run1.claim", State.ENDED) is None
    assert len(changes) == 3


def test_the_latest_proof_of_life_counts():
    attempts = Attempts()
    attempts.prove(["a"], 10.0)
    attempts.prove(["a"], 7.0)
    assert attempts.proof("a") == 10.0
    assert attempts.proof("b") is None
