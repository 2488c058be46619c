"""The control session with real engines of Prefect 3 and a real server: what they say of an end, and of a cancel."""

import os
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import processes
from tests.bench_of_runs import FULL, BenchOfRuns, patient_fork_client, read_pid
from tests.integration.one_pool import OnePool
from tests.prefect_server import PrefectServer
from tests.waiting import until
from workers import shim
from workers.deployment import Exit, StartedRun, StopReason
from workers.state.run_folders import RunFolder
from workers.stop import Stop

FLOW = """
import contextlib, os, signal, subprocess, sys, time
from prefect import flow

# the engine waits a second for the shim's hello, and one for its word that the receipt has come: too short for a
# busy machine
with contextlib.suppress(ImportError):
    from prefect._internal import control_listener as control
    control._NEGOTIATION_RESPONSE_TIMEOUT = control._RECEIPT_ACK_TIMEOUT = 60.0
    if getattr(control, "_negotiation_deadline", None) is not None:
        control._negotiation_deadline += 60.0

def note(word):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(word + "\\n")

def hook(name):
    return lambda flow, run, state: note(f"{name}: {state.name}")

@flow(on_cancellation=[hook("on_cancellation")], on_crashed=[hook("on_crashed")], on_failure=[hook("on_failure")])
def go():
    note("ran")
"""
#: goes on until it is stopped, with a child that has left its group and takes no TERM. It says "held" where a stop
#: finds its `finally`: the child is there before the call that starts it returns.
HELD = """
child = "trap '' TERM; echo $$ > $NOTES.pid; while :; do sleep 0.1; done"
subprocess.Popen(["setsid", "sh", "-c", child])
try:
    note("held")
    time.sleep(300)
finally:
    note("cleaned up")
"""


class OneEngine:
    """A real engine below a real shim, without a worker."""

    def __init__(self, server: PrefectServer, bench: BenchOfRuns, pool: OnePool, folder: Path, body: str) -> None:
        folder.mkdir()
        (folder / "flow.py").write_text(FLOW + textwrap.indent(body, "    "))
        self.api = OnePool(server.api_url)  # requests of its own: several engines run at once
        self._bench = bench
        self._notes = folder / "notes"
        self._notes.touch()
        deployment = self.api.deploy(folder.name, pool.name, "flow.py:go", str(folder))
        self.run_id = self.api.create_run(deployment)
        self.api.set_state(self.run_id, "PENDING")
        job = pool.client.jobs.job(self.run_id)
        argv = pool.client.jobs.engine_command(sys.executable, job, "", Path(shim.__file__).parent)
        env = {**server.environment(), **job.engine_env, "NOTES": str(self._notes)}
        self._spec = bench.spec(*argv, env=env, control=pool.client.traits.engine_takes_session, stop_grace=60.0)

    def start(self) -> StartedRun:
        return self._bench.start(self._spec)

    def start_held(self) -> StartedRun:
        started_run = self.start()
        until(lambda: "held" in self.notes, 60, "the flow to go on until it is stopped")
        return started_run

    def end(self, started_run: StartedRun) -> Exit:
        return self._bench.end_of(started_run, 60)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self._spec.folder)

    @property
    def notes(self) -> list[str]:
        return self._notes.read_text().split("\n")[:-1]

    @property
    def child(self) -> int:
        return read_pid(Path(f"{self._notes}.pid"))


@pytest.fixture
def engines(prefect_server: PrefectServer, pool: OnePool, tmp_path: Path) -> Iterator:
    bench = BenchOfRuns(tmp_path / "bench", FULL, patient_fork_client())
    yield lambda name, body: OneEngine(prefect_server, bench, pool, tmp_path / name, body)
    bench.close()
    bench.fork_client.close()


def test_engines_say_how_they_have_ended_and_those_that_say_nothing_have_no_receipt(engines):
    bodies = {
        "completed": "return 1",
        "failed": "raise ValueError('no')",
        "crashed": "sys.exit(3)",
        "silent": "os._exit(0)",
    }
    made = {name: engines(name, body) for name, body in bodies.items()}
    with ThreadPoolExecutor(2) as several:
        ends = dict(zip(made, several.map(lambda engine: engine.end(engine.start()), made.values()), strict=True))
    # whatever the end is, an engine that has told it exits 0
    assert {name: end.code for name, end in ends.items()} == dict.fromkeys(made, 0)
    assert ends["silent"].receipt is None
    for name in ("completed", "failed", "crashed"):
        state = made[name].api.state(made[name].run_id)
        said = ends[name].receipt
        assert (state["type"], state["id"], state["name"]) == (said["state_type"], said["state_id"], said["state_name"])
        assert said["state_type"] == name.upper()
        assert ends[name].receipt_age < 10
    # the engine has written Crashed, so its hook runs there: whoever writes it has the hook
    assert made["crashed"].notes == ["ran", "on_crashed: Crashed"]


def test_an_engine_that_is_told_of_its_cancel_stops_and_writes_nothing_and_nothing_of_it_is_left(engines):
    engine = engines("cancelled", HELD)
    started_run = engine.start_held()
    child = engine.child
    engine.api.set_state(engine.run_id, "CANCELLING")
    engine.folder.write_stop(Stop(reason=StopReason.CANCEL, intent=True), "worker@here")
    started_run.stop()
    end = engine.end(started_run)
    assert (end.code, end.stopped_by, end.stop_reason, end.stop_worker) == (0, "term", "cancelled", "worker@here")
    assert (end.intent, end.receipt, end.leftovers) == ("acknowledged", None, 1)
    assert not processes.alive(child)
    # Cancelled and its hooks are ours, when the tree is gone
    assert engine.api.history(engine.run_id)[-2:] == ["Running", "Cancelling"]
    assert engine.notes == ["ran", "held", "cleaned up"]


def test_an_engine_that_gets_a_bare_term_writes_crashed_itself(engines):
    engine = engines("stopped", HELD)
    started_run = engine.start_held()
    assert processes.alive(engine.child)
    engine.folder.write_stop(Stop(reason=StopReason.WORKER), "worker@here")
    started_run.stop()
    end = engine.end(started_run)
    assert (end.signal, end.intent) == (15, None)
    # an engine whose hello took over a second, on a busy machine, sends no receipt
    assert end.receipt is None or end.receipt["state_type"] == "CRASHED"
    assert engine.api.history(engine.run_id)[-1] == "Crashed"
    assert engine.notes == ["ran", "held", "cleaned up", "on_crashed: Crashed"]


def test_an_engine_finds_neither_port_nor_token_left_for_what_it_starts(engines):
    engine = engines("seen", "note(str([name for name in os.environ if 'CONTROL' in name]))")
    assert engine.end(engine.start()).receipt["state_type"] == "COMPLETED"
    assert engine.notes == ["ran", "[]"]
    assert "PREFECT__CONTROL_PORT" not in os.environ
