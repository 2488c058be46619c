"""How a shim stops a run: patience, then TERM and KILL for every descendant, wherever it has gone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes
from tests.bench_of_runs import DEAF, BenchOfRuns, read_pid
from tests.waiting import until
from workers.deployment import StartedRun, StartSpec, StopReason
from workers.shim.stopping import Stopping
from workers.stop import Stop

ROOT = Path(__file__).parents[2]

#: a command and a child of it that has left its group in this or that way; the child's pid is in the file
FAMILY = """
import os, signal, sys, time
place, hears = sys.argv[1], sys.argv[2] == "hears"

def heard(*_):
    print("child heard", flush=True)
    os._exit(0)

def leave():
    if place == "group":
        os.setpgid(0, 0)
    if place in ("session", "daemon"):
        os.setsid()
    if place == "daemon" and os.fork():
        os._exit(0)

def loop():
    while True:
        time.sleep(0.05)

child = os.fork()
if child == 0:
    leave()
    signal.signal(signal.SIGTERM, heard if hears else signal.SIG_IGN)
    with open("../../../pid.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("../../../pid.new", "../../../pid")
    loop()

def end(*_):
    print("command heard", flush=True)
    pid = int(open("../../../pid").read())
    while os.path.exists(f"/proc/{pid}"):
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.02)
    os._exit(5)

signal.signal(signal.SIGTERM, end)
while not os.path.exists("../../../pid"):
    time.sleep(0.02)
print("ready", flush=True)
loop()
"""
PLACES = ("group", "session", "daemon")


def family(bench: BenchOfRuns, place: str, child: str, **changes) -> StartSpec:
    spec = bench.python(FAMILY, **changes)
    return bench.spec(*spec.argv, place, child, **changes)


def ask(started_run: StartedRun, bench: BenchOfRuns, spec: StartSpec, **how) -> None:
    bench.folder(spec).write_stop(Stop(reason=StopReason.CANCEL, **how), "worker@here")
    if how.get("kill"):
        started_run.kill()
    else:
        started_run.stop()


def is_obeyed(shim: int) -> bool:
    """Whether a shim has acted on the TERM that was sent to it: it has taken the signal, and sleeps again."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{shim}/status").read_text().splitlines())
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return status["State"].startswith("S") and not pending >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize("place", PLACES)
def test_a_term_reaches_every_descendant_once(full_bench, tmp_path, place):
    spec = family(full_bench, place, "hears")
    started_run = full_bench.start_ready(spec)
    ask(started_run, full_bench, spec)
    # the command goes on until its child is gone
    end = full_bench.end_of(started_run)
    assert (end.code, end.stopped_by) == (5, "term")
    assert sorted(line for line in end.last_lines if "heard" in line) == ["child heard", "command heard"]
    assert not processes.alive(read_pid(tmp_path / "pid"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", [{"kill": True}, {}], ids=["at once", "after the grace"])
def test_a_kill_reaches_descendants_that_take_no_term(full_bench, tmp_path, place, how):
    spec = family(full_bench, place, "is deaf", stop_grace=0.3)
    started_run = full_bench.start_ready(spec)
    child = read_pid(tmp_path / "pid")
    ask(started_run, full_bench, spec, **how)
    end = full_bench.end_of(started_run)
    assert (end.signal, end.stopped_by) == (9, "kill")
    assert not processes.alive(child)


#: a process tree whose command and whose other child, in a session of its own, are told apart by who is killed
TREE = """
import json, os, signal, sys, time
from workers.shim import process_tree

def forked(leave):
    pid = os.fork()
    if pid == 0:
        leave()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    while os.getpgid(pid) != pid:
        time.sleep(0.01)
    return pid

command, other = forked(lambda: os.setpgid(0, 0)), forked(os.setsid)
process_tree.ProcessTree(command, proc=True, subreaper=True).kill_all()
deadline = time.monotonic() + 20
ended = {}
while time.monotonic() < deadline and len(ended) < 2:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        ended[pid] = os.waitstatus_to_exitcode(status)
    else:
        time.sleep(0.05)
if other not in ended:
    os.kill(other, signal.SIGKILL)
print(json.dumps([ended.get(command), ended.get(other)]))
"""


def test_a_kill_does_not_wait_for_the_end_of_the_command_with_those_that_have_left_its_group():
    done = subprocess.run([sys.executable, "-c", TREE], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == [-9, -9]


def test_what_forks_again_and_again_while_it_is_killed_is_killed_too(full_bench):
    # it has a child, which has another one, and so on: each in a session of its own, and the one above ends at once
    code = """
import os, time
print("ready", flush=True)
for _ in range(400 if os.fork() == 0 else 0):
    os.setsid()
    time.sleep(0.01)
    if os.fork():
        os._exit(0)
time.sleep(600)
"""
    spec = full_bench.python(code)
    started_run = full_bench.start_ready(spec)
    ask(started_run, full_bench, spec, kill=True)
    assert full_bench.end_of(started_run).signal == signal.SIGKILL
    assert full_bench.living(spec) == []
    assert full_bench.folder(spec).cleared()


# -- patience


def test_a_command_that_cancels_itself_has_its_time_without_a_term(bench):
    os.mkfifo(bench.path / "gate")
    spec = bench.sh("trap 'exit 9' TERM; echo ready; read _ < ../../../gate; exit 0")
    started_run = bench.start_ready(spec)
    ask(started_run, bench, spec, patience=600.0)
    # of a stop that is read after the end of the command nothing is told: nobody has stopped that
    until(lambda: is_obeyed(started_run.handle["pid"]), 20, "the shim to read it")
    with (bench.path / "gate").open("w") as gate:
        gate.write("go\n")
    end = bench.end_of(started_run)
    assert (end.code, end.stopped_by, end.stop_reason) == (0, None, "cancelled")


@pytest.mark.parametrize("shim", ["alive", "killed"])
def test_a_command_that_does_not_cancel_itself_gets_its_term_after_its_time(full_bench, shim):
    spec = full_bench.sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", stop_grace=600.0)
    started_run = full_bench.start_ready(spec)
    if shim == "killed":
        full_bench.kill_shim(started_run, spec)
    before = time.monotonic()
    ask(started_run, full_bench, spec, patience=0.5)
    end = full_bench.end_of(started_run)
    assert (end.code in (9, None), end.stopped_by, end.stop_reason) == (True, "term", "cancelled")
    assert time.monotonic() - before >= 0.5


def test_a_kill_ends_the_patience(bench):
    spec = bench.sh(DEAF, stop_grace=600.0)
    started_run = bench.start_ready(spec)
    ask(started_run, bench, spec, patience=600.0)
    ask(started_run, bench, spec, kill=True)
    end = bench.end_of(started_run)
    assert (end.signal, end.stopped_by) == (9, "kill")


# -- the order of the steps, with what is done noted


class Tree:
    def __init__(self):
        self.done: list[str] = []

    def signal_all(self, number):
        self.done.append(signal.Signals(number).name)

    def kill_all(self):
        self.done.append("kill")


class Session:
    def __init__(self, *, connected=True):
        self.connected, self.answered = connected, False

    def tell_cancel(self):
        return self.connected


def stop(session=None, grace=10.0):
    tree = Tree()
    return tree, Stopping(tree, session, grace, hit=tree.done.append)


def test_intent_patience_term_and_kill_come_in_this_order_each_when_it_is_due():
    tree, stopping = stop(session := Session())
    stopping.ask({"reason": "cancelled", "intent": True, "patience": 20}, 100.0, kill=False)
    assert (tree.done, stopping.due, stopping.by) == ([], 101.0, None)
    session.answered = True
    stopping.go_on(100.2)
    assert (tree.done, stopping.due) == ([], 120.2)
    stopping.go_on(120.1)
    assert tree.done == []
    stopping.go_on(120.2)
    assert (tree.done, stopping.due, stopping.by) == (["SIGTERM", "cancel.after_term"], 130.2, "term")
    stopping.go_on(130.2)
    assert (tree.done[2:], stopping.by) == (["kill"], "kill")
    stopping.go_on(stopping.due)
    assert tree.done[2:] == ["kill", "kill"], "again and again, until the command is gone"


def test_a_stop_that_asks_for_less_patience_shortens_it_and_one_that_asks_for_more_does_not():
    tree, stopping = stop()
    stopping.ask({"patience": 20}, 100.0, kill=False)
    stopping.ask({"patience": 50}, 105.0, kill=False)
    assert stopping.due == 120.0
    stopping.ask({"reason": "worker-stopped"}, 106.0, kill=False)
    assert (tree.done, stopping.by, stopping.record["reason"]) == (["SIGTERM"], "term", "worker-stopped")


def test_one_grace_is_all_that_a_run_gets_however_often_it_is_asked():
    tree, stopping = stop()
    for at in (100.0, 105.0, 109.0):
        stopping.ask({}, at, kill=False)
    assert (tree.done, stopping.due) == (["SIGTERM"], 110.0)


def test_a_stop_can_cut_the_grace_of_a_run_also_while_that_runs():
    tree, stopping = stop(grace=3600.0)
    stopping.ask({"reason": "cancelled", "most_grace": 240}, 100.0, kill=False)
    assert (tree.done, stopping.due) == (["SIGTERM", "cancel.after_term"], 340.0)
    tree, stopping = stop(grace=3600.0)
    stopping.ask({"reason": "worker-stopped"}, 100.0, kill=False)
    stopping.ask({"reason": "cancelled", "most_grace": 240}, 200.0, kill=False)
    stopping.ask({"reason": "worker-stopped"}, 210.0, kill=False)
    assert (tree.done, stopping.due) == (["SIGTERM"], 440.0)
    tree, stopping = stop(grace=10.0)
    stopping.ask({"reason": "cancelled", "most_grace": 240}, 100.0, kill=False)
    assert stopping.due == 110.0, "it makes none longer"


@pytest.mark.parametrize("session", [None, Session(connected=False)])
def test_without_anybody_to_tell_the_term_comes_at_once(session):
    tree, stopping = stop(session)
    stopping.ask({"intent": True}, 100.0, kill=False)
    assert tree.done == ["SIGTERM"]


@pytest.mark.parametrize("record", [{"patience": None}, {"patience": "x"}, {"patience": -5}, {"patience": True}, {}])
def test_the_reason_of_an_older_worker_or_a_broken_one_asks_for_no_patience(record):
    tree, stopping = stop()
    stopping.ask(record, 100.0, kill=False)
    stopping.go_on(101.0)
    assert tree.done == ["SIGTERM"]


def test_a_reason_that_says_kill_is_obeyed_whatever_the_signal_was():
    tree, stopping = stop()
    stopping.ask({"kill": True}, 100.0, kill=False)
    assert tree.done == ["kill"]
