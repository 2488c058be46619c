"""Cancelled runs of a real worker and shim: told to the engine, ended whole, hooks once, Cancelled at last.

The engine and its hooks are small programs of these tests, at an API that takes every state.
"""

import os
import signal
import sys
from dataclasses import replace

import pytest

from flowfleet.ledger.claims import CancelHow
from tests.bench_of_runs import patient_fork_client
from tests.processes import alive
from tests.waiting import stays, until
from workers.runs import cancelling
from workers.shim.atomic_files import read_json

#: an engine that takes its control session, and stops its run when it is told so
ENGINE = """
import os, signal, socket, sys, threading, time

def say(word):
    with open(os.environ["MARKS"], "a") as marks:
        marks.write(word + ";")

def listen(up):
    port, token = os.environ["PREFECT__CONTROL_PORT"], os.environ["PREFECT__CONTROL_TOKEN"]
    line = socket.create_connection(("127.0.0.1", int(port)))
    line.sendall(token.encode() + b"\\n")
    up.set()
    if line.recv(1) == b"c":
        say("told")
        line.sendall(b"a")

def session():
    signal.signal(signal.SIGTERM, lambda *_: (say("term"), os._exit(0)))
    up = threading.Event()
    threading.Thread(target=listen, args=(up,), daemon=True).start()
    up.wait()

say("begun")
exec(os.environ["CODE"])
"""
HOOKS = """
import os, sys, time
with open(os.environ["MARKS"], "a") as marks:
    marks.write(f"{sys.argv[1]} in {os.path.basename(os.getcwd())};")
print("a hook speaks")
exec(os.environ.get("HOOK", ""))
"""
FOREVER = "session()\nwhile True: time.sleep(0.05)"


@pytest.fixture
def engine(world, tmp_path):
    """The world's interpreter has our engine and our hooks."""
    starters = tmp_path / "starters"
    starters.mkdir()
    (starters / "prefect3_engine.py").write_text(ENGINE)
    (starters / "prefect3_hooks.py").write_text(HOOKS)
    world.interpreter = replace(world.interpreter, path=sys.executable, starters=starters)
    world.start()
    return world


def begin(world, code=FOREVER, hook="", *, env=(), **variables):
    env = {"CODE": code, "MARKS": str(world.folder / "marks"), "HOOK": hook, **dict(env)}
    message = world.claim(world.create(None, env=env, **variables))
    world.publisher.publish(message)
    world.wait_state(message, "running")
    until(lambda: "begun" in marks(world), 20, "the engine to begin")
    return message


def marks(world):
    path = world.folder / "marks"
    return path.read_text() if path.exists() else ""


def cancel(world, message, *, state="CANCELLING", how=CancelHow.ASKED, why="Ann"):
    """As a user does, and the leader finds it."""
    if state:
        world.api.write(message.run_id, state)
    tell(world, message, how, why)


def tell(world, message, how=CancelHow.ASKED, why="Ann"):
    assert world.ledger.claims.cancel(message.run_id, message.claim, how, why).moved
    world.service.heartbeat.nudge()


def history(world, message):
    return world.api.history(message.run_id)[3:]


def gated(world, then):
    """The code of an engine that does this once the gate is open, and the gate: what has to come before it is there."""
    gate = world.folder / "engine-gate"
    return f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n{then}", gate


def test_a_cancelled_engine_is_told_first_and_its_hook_runs_once_before_cancelled(engine):
    engine.fork_client = patient_fork_client()
    engine.next_worker()
    up = FOREVER.replace("\n", "\nsay('up')\n")
    message = begin(engine, code=up, env={"FLOWFLEET_STOP_GRACE": "300"})
    until(lambda: "up" in marks(engine), 10, "the session")
    cancel(engine, message)
    engine.wait_gone(message)

    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert marks(engine) == "begun;up;told;term;cancellation in work;"
    assert engine.run_folder(message).exit_record()["intent"] == "acknowledged"
    assert engine.told(message).startswith("Cancelled: Ann. The flow run's process was stopped since it was cancelled")
    assert "a hook speaks" in engine.run_folder(message).log.read_text()
    assert not engine.run_folder(message).work.exists()


def test_the_slot_stays_taken_until_the_hook_has_ended(engine):
    gate = engine.folder / "hook-gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    message = begin(engine, hook=wait)
    cancel(engine, message)
    until(lambda: "cancellation" in marks(engine), 20, "the hook to begin")
    engine.service.heartbeat.nudge()
    stays(lambda: engine.service.slots.in_use() == 1, 0.5, "the slot to be taken")
    assert engine.ledger.claims.get(message.run_id).state == "running"
    assert history(engine, message) == ["Cancelling"]
    gate.touch()
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]


def test_a_hook_outlives_its_worker_and_is_not_run_again_by_the_next(engine):
    gate = engine.folder / "hook-gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    message = begin(engine, hook=wait)
    cancel(engine, message)
    until(lambda: "cancellation" in marks(engine), 20, "the hook to begin")
    engine.next_worker()
    stays(lambda: engine.service.slots.in_use() == 1, 0.5, "the slot to be taken")
    gate.touch()
    engine.wait_gone(message)
    assert marks(engine).count("cancellation") == 1
    assert history(engine, message) == ["Cancelling", "Cancelled"]


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("raise SystemExit(3)", "exited with code 3"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("time.sleep(600)", "was stopped since its hooks took too long"),
    ],
)
def test_a_hook_that_fails_or_hangs_is_told_and_changes_no_state(engine, hook, told, monkeypatch):
    message = begin(engine, hook=hook)
    cancel(engine, message)
    until(lambda: "cancellation" in marks(engine), 20, "the hook to begin")
    if "too long" in told:
        monkeypatch.setattr(engine.service.hooks, "seconds", 0.0)
    engine.wait_gone(message, 30)
    assert marks(engine).count("cancellation") == 1
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    line = f"The process of the flow's hooks {told}"
    until(lambda: any(one["message"].startswith(line) for one in engine.api.logs), 10, line)


def in_its_hook(engine):
    """A cancelled run whose hook has begun and stays, and the pid of the hook."""
    message = begin(engine, hook="open(os.environ['MARKS'] + '-hook', 'w').write(str(os.getpid())); time.sleep(600)")
    cancel(engine, message)
    note = engine.folder / "marks-hook"
    return message, int(until(lambda: note.exists() and note.read_text(), 20, "the hook to begin"))


def test_a_hook_is_ended_once_somebody_is_in_a_hurry(engine):
    message, pid = in_its_hook(engine)
    tell(engine, message, CancelHow.OVER)
    until(lambda: not alive(pid), 20, "the hook to be ended")
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    (hooks,) = (engine.run_folder(message).path / "hooks").glob("*/stop.json")
    assert read_json(hooks)["reason"] == "cancelled"


def test_a_hook_of_a_run_that_is_not_ours_any_more_is_ended(engine):
    message, pid = in_its_hook(engine)
    engine.ledger.set(engine.ledger.claims.get(message.run_id), worker="other@there")
    engine.service.heartbeat.nudge()
    until(lambda: not alive(pid), 20, "the hook to be ended")
    (hooks,) = (engine.run_folder(message).path / "hooks").glob("*/stop.json")
    assert read_json(hooks)["reason"] == "fenced"
    until(lambda: engine.service.attempts.all() == [], 20, "the worker to let go of it")
    assert history(engine, message) == ["Cancelling"], "that is for the other worker to tell"


def test_the_slot_stays_taken_while_the_hook_for_a_crash_runs_too(engine):
    gate = engine.folder / "hook-gate"
    wait = f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    code, engine_gate = gated(engine, "os.kill(os.getpid(), 9)")
    message = begin(engine, code=code, hook=wait)
    engine_gate.touch()
    until(lambda: "crashed" in marks(engine), 20, "the hook to begin")
    stays(lambda: engine.service.slots.in_use() == 1, 0.5, "the slot to be taken")
    gate.touch()
    engine.wait_gone(message)
    engine.wait_free()


#: leaves its parent and its session, and ignores TERM
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(15, signal.SIG_IGN)
        open(pids, "a").write(f"{os.getpid()}\\n")
        time.sleep(600)
    os._exit(0)
"""


def with_deaf_children(engine, number, *, more=""):
    """A run with children that ignore TERM, all but the first in sessions of their own, and the file of their pids."""
    pids = engine.folder / "pids"
    child = "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    code = f"""
import subprocess
pids = {str(pids)!r}
for number in range({number}):
    child = subprocess.Popen([sys.executable, "-c", {child!r}], start_new_session=number > 0)
    open(pids, "a").write(f"{{child.pid}}\\n")
{more}{FOREVER}"""
    message = begin(engine, code=code)
    several = number + bool(more)
    until(lambda: pids.exists() and pids.read_text().count("\n") == several, 20, "the children")
    return message, pids


def test_a_cancelled_run_whose_shim_is_dead_is_ended_whole_with_children_in_sessions_of_their_own(engine):
    message, pids = with_deaf_children(engine, 2)
    handle = engine.run_folder(message).started()
    os.kill(handle["pid"], signal.SIGKILL)
    until(lambda: not engine.run_folder(message).shim_alive(), 10, "the shim to be dead")
    cancel(engine, message)
    engine.wait_gone(message, 40)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert [pid for pid in (handle["command_pid"], *map(int, pids.read_text().split())) if alive(pid)] == []


def test_a_command_that_cancels_itself_has_its_time_and_gets_no_signal(engine):
    gate = engine.folder / "gate"
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: open({str(engine.folder / "term")!r}, "w"))
while not os.path.exists({str(gate)!r}): time.sleep(0.02)
"""
    message = engine.submit(code)
    engine.wait_state(message, "running")
    cancel(engine, message)
    until(lambda: engine.run_folder(message).stop_record(), 20, "the stop to be asked for")
    engine.api.write(message.run_id, "CANCELLED")  # as `prefect flow-run execute` does it, and then ends
    gate.touch()
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert not (engine.folder / "term").exists()
    assert engine.run_folder(message).exit_record()["stopped_by"] is None


def test_a_crash_hook_runs_where_our_crashed_is_taken_and_never_where_the_engine_wrote_it(engine):
    code, gate = gated(engine, "os.kill(os.getpid(), 9)")
    message = begin(engine, code=code)
    gate.touch()
    engine.wait_gone(message)
    assert history(engine, message) == ["Crashed"]
    assert marks(engine) == "begun;crashed in work;"

    gate.unlink()
    other = begin(engine, code=gated(engine, "os._exit(1)")[0])
    engine.api.write(other.run_id, "CRASHED")
    gate.touch()
    engine.wait_gone(other)
    assert marks(engine).count("crashed") == 1


def test_a_run_without_its_engine_has_no_hooks(engine, monkeypatch):
    monkeypatch.setattr(cancelling, "PATIENCE_SECONDS", 0.5)
    message = engine.submit(engine.holding(), env={"FLOWFLEET_STOP_GRACE": "300"})
    engine.wait_state(message, "running")
    cancel(engine, message)
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert "was stopped since it was cancelled (SIGTERM)" in engine.told(message)
    assert marks(engine) == ""


def test_nothing_is_stopped_before_the_api_shows_it_and_a_restart_loses_nothing(engine):
    message = begin(engine)
    tell(engine, message)
    until(lambda: engine.service.attempts.get(message.task_id).cancelled, 10, "the cancel to arrive")
    stays(lambda: engine.run_folder(message).stop_record() is None, 1.0, "the run to be left alone")
    engine.next_worker()
    engine.api.write(message.run_id, "CANCELLING")
    engine.service.heartbeat.nudge()
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]


def test_a_cancel_while_the_worker_is_away_is_carried_out_by_the_next(engine):
    message = begin(engine)
    engine.stop()
    engine.api.write(message.run_id, "CANCELLING")
    assert engine.ledger.claims.cancel(message.run_id, message.claim).moved
    engine.start()
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert marks(engine).count("cancellation") == 1


def test_an_api_that_is_away_delays_a_cancel_and_loses_it_not(engine):
    message = begin(engine)
    engine.api.write(message.run_id, "CANCELLING")
    engine.api.fail("/flow_runs/filter", times=-1)
    tell(engine, message)
    until(lambda: engine.api.counted("/flow_runs/filter") >= 2, 20, "the API to be asked")
    assert engine.run_folder(message).stop_record() is None
    engine.api.heal()
    engine.service.to_api.retry()
    engine.wait_gone(message, 40)
    assert history(engine, message) == ["Cancelling", "Cancelled"]


def test_a_run_that_is_cancelled_at_the_api_is_killed_and_nothing_is_written_over_that(engine):
    message = begin(engine, code="signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER)
    cancel(engine, message, state="CANCELLED", how=CancelHow.OVER)
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelled"]
    assert engine.run_folder(message).exit_record()["stopped_by"] == "kill"
    assert "cancellation" not in marks(engine)
    told = lambda: [line["message"] for line in engine.api.logs if "since it was cancelled" in line["message"]]  # noqa: E731
    until(lambda: len(told()) == 1, 20, "a line on the run's log page")


def test_a_cancel_in_a_hurry_kills_what_was_asked_politely_before(engine):
    engine.run_grace = 60.0
    engine.next_worker()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('deaf')\nwhile True: time.sleep(0.05)"
    message = begin(engine, code=deaf)
    until(lambda: "deaf" in marks(engine), 20, "the engine to take no TERM")
    cancel(engine, message)
    until(lambda: engine.run_folder(message).stop_record(), 10, "the polite stop")
    tell(engine, message, CancelHow.OVER)
    engine.wait_gone(message)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert "cancellation" not in marks(engine), "no hook keeps somebody waiting who is in a hurry"


def test_children_that_ignore_the_end_have_sessions_of_their_own_or_are_daemons_are_gone_at_cancelled(engine):
    message, pids = with_deaf_children(engine, 3, more=DAEMON)
    cancel(engine, message)
    engine.wait_gone(message, 30)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert [pid for pid in map(int, pids.read_text().split()) if alive(pid)] == []


def test_a_report_that_is_refused_for_a_cancel_is_told_as_cancelled_also_after_a_restart(engine):
    code, gate = gated(engine, "os._exit(7)")
    message = begin(engine, code=code)
    engine.api.fail("/set_state", times=-1)
    engine.api.fail("bulk_set_state", times=-1)
    gate.touch()
    until(lambda: engine.state.outbox.get(message.run_id, message.claim), 20, "the report to be on the disk")
    engine.stop()
    engine.api.heal()
    engine.api.write(message.run_id, "CANCELLING")
    engine.api.honest = True
    engine.start()
    engine.wait_gone(message, 40)
    assert history(engine, message) == ["Cancelling", "Cancelled"]
    assert "exited with code 7" in engine.told(message)
    assert marks(engine).count("cancellation") == 1
