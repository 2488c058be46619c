"""The supervisor and the table of attempts: every end is seen, whatever the others do."""

import os
import time
from functools import partial
from pathlib import Path

import pytest

from flowfleet.ledger.claims import State
from tests.unit.memory_ledger import a_claim
from tests.waiting import until
from workers.deployment import Exit, StopReason
from workers.runs.supervisor import Supervisor
from workers.shim import atomic_files
from workers.shim.syscalls import boot_clock
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder
from workers.stop import Stop


class FakeDeployment:
    """Ends when it is told to; with or without a descriptor; may be broken."""

    def __init__(self, *, descriptor=True, broken=False):
        self.reader, self.writer = os.pipe() if descriptor else (None, None)
        self.exit = None
        self.asked = 0
        self.said = []
        self.broken = broken
        self.handle = {"kind": "fake"}
        self.stop, self.kill, self.close = (partial(self.said.append, word) for word in ("stop", "kill", "close"))

    def fileno(self):
        return self.reader

    def poll(self):
        self.asked += 1
        if self.broken:
            raise OSError("broken")
        return self.exit

    def ring(self):
        os.write(self.writer, b"!")

    def end(self, exit_):
        self.exit = exit_
        if self.writer is not None:
            self.ring()


def attempt(number, started_run=None, state=State.RUNNING, **more):
    folder = RunFolder(Path(f"/nowhere/run{number}.claim"))
    return Attempt(**{"held": a_claim(f"run{number}", state), "folder": folder, "started_run": started_run, **more})


class Watched:
    """A supervisor, its table, and the list of ends."""

    def __init__(self, run_timeout=None):
        self.attempts, self.ends = Attempts(), []
        self.supervisor = Supervisor(self.attempts, self.ends.append, worker="w@h", run_timeout=run_timeout)
        self.supervisor.start()

    def watch(self, started_run=None, number=1, **more):
        one = attempt(number, started_run or FakeDeployment(), **more)
        assert self.attempts.begin(one)
        self.supervisor.watch(one.key)
        return one.started_run


@pytest.fixture
def watched(request):
    watched = Watched(getattr(request, "param", None))
    yield watched
    watched.supervisor.close()


@pytest.mark.parametrize("descriptor", [True, False])
def test_an_end_is_seen_and_handed_on_once(watched, descriptor):
    started_run = watched.watch(FakeDeployment(descriptor=descriptor))
    until(lambda: started_run.asked, 5, "the first look")
    started_run.end(Exit(code=4))
    until(lambda: watched.ends, 5, "the end")
    assert [(one.key, one.exit.code, one.held.state) for one in watched.ends] == [("run1.claim", 4, State.ENDED)]
    assert watched.attempts.occupying() == set()
    assert started_run.said == ["close"]


def test_an_end_before_it_was_watched_is_seen(watched):
    started_run = FakeDeployment()
    started_run.exit = Exit(code=0)
    watched.watch(started_run)
    until(lambda: watched.ends, 5, "the end")


def test_a_leader_that_is_gone_while_its_group_is_not_keeps_the_slot(watched):
    started_run = watched.watch()
    started_run.ring()
    os.read(started_run.reader, 1)
    until(lambda: started_run.asked >= 1, 5, "a look")
    assert watched.attempts.occupying() == {"run1.claim"}
    assert watched.ends == []
    started_run.exit = Exit(signal=9)
    started_run.ring()
    until(lambda: watched.ends, 5, "the end when all of it is gone")


def test_a_descriptor_that_never_stops_ringing_does_not_keep_the_thread_spinning(watched):
    started_run = watched.watch()
    started_run.ring()
    until(lambda: started_run.asked > 50, 5, "the rings to be counted")
    before = started_run.asked
    until(lambda: started_run.asked >= before + 5, 5, "it to be asked on")
    assert started_run.asked < 200, "asked in steps, not as fast as the thread can"
    started_run.exit = Exit(code=1)
    until(lambda: watched.ends, 5, "the end")


def test_a_broken_run_does_not_leave_the_others_unwatched(watched):
    broken, good = watched.watch(FakeDeployment(broken=True)), watched.watch(number=2)
    until(lambda: broken.asked, 5, "the broken one to be asked")
    good.end(Exit(code=0))
    until(lambda: [one.key for one in watched.ends] == ["run2.claim"], 5, "the other's end")


def test_a_run_is_stopped_or_killed_on_demand(watched):
    started_run = watched.watch()
    # its folder cannot be written, and that keeps no run alive
    watched.supervisor.stop("run1.claim", Stop(reason=StopReason.FENCE))
    watched.supervisor.stop("run1.claim", Stop(reason=StopReason.CANCEL, kill=True))
    watched.supervisor.stop("unknown", Stop(reason=StopReason.CANCEL))
    until(lambda: started_run.said == ["stop", "kill"], 5, "both")


@pytest.mark.parametrize("watched", [0.05], indirect=True)
def test_a_run_that_takes_longer_than_the_timeout_is_stopped(watched):
    started_run = watched.watch()
    until(lambda: started_run.said == ["stop"], 5, "the stop")


@pytest.mark.parametrize("watched", [3600], indirect=True)
def test_the_time_of_an_adopted_run_does_not_begin_anew(watched, tmp_path):
    folders = old, young, plugged_in = [RunFolder(tmp_path / f"run{number}.claim") for number in range(3)]
    for folder in folders:
        folder.path.mkdir()
        folder.note(v=1)
    atomic_files.write_json(old.path / "started.json", {"boot_clock": boot_clock() - 3601})
    atomic_files.write_json(young.path / "started.json", {"boot_clock": boot_clock() - 3000})
    long_ago = time.time() - 3601
    os.utime(plugged_in.path / "intent.json", (long_ago, long_ago))
    runs = [watched.watch(number=number, folder=folder, adopted=True) for number, folder in enumerate(folders)]
    until(lambda: runs[0].said == runs[2].said == ["stop"], 5, "the stop of those whose time is over")
    until(lambda: runs[1].asked, 5, "a look at the other")
    assert runs[1].said == []


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
