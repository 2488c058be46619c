"""Failpoints: each name is hit by the code, each step of a run has one, and they fire where and as often as set."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flowfleet
from benchmarks import mutants as seeded
from flowfleet.errors import SettingsError
from flowfleet.failpoints import NAMES, FailpointRaised, Failpoints
from tests import processes
from tests.waiting import until
from workers.deployers.process import ProcessDeployer

ROOT = Path(__file__).parents[2]
#: the tree too, or where the wheel is installed
PRODUCT = Path(flowfleet.__file__).parents[1]

#: steps of docs/design.md, The way of a run → the failpoints in them
STEPS = {
    "Know": (),  # asks only: nothing is claimed yet
    "Claim": ("claim.after_ledger", "claim.after_api", "claim.after_accept", "claim.after_publish"),
    "Take": ("take.on_arrival", "take.after_folder", "take.after_move"),
    "Start": (
        "start.after_move",
        "start.before_fork",
        "start.after_fork",
        "start.after_running",
        "shim.after_start_file",
        "shim.after_exec",
        "container.after_create",
        "container.after_start_file",
        "container.after_start",
    ),
    "Stay": ("shim.after_receipt", "shim.before_ack"),
    "End": (
        "shim.before_exit_record",
        "container.after_exit_record",
        "end.before_record",
        "end.after_record",
        "end.before_report",
        "report.between",
        "end.after_report",
    ),
    "Reconcile": ("return.after_ledger", "return.after_api"),
    "Lost": ("lost.after_miss", "lost.after_judge", "lost.after_api", "lost.after_bury"),
    # the same places, under the other policy: what the API is told is that the run is due again
    "Run again": ("lost.after_judge", "lost.after_api", "lost.after_bury"),
    "Redis lost": ("gate.before_open",),
    "Cancel": (
        "cancel.found",
        "cancel.after_field",
        "cancel.after_stop_file",
        "cancel.after_ack",
        "cancel.after_term",
        "cancel.before_report",
        "hooks.after_start",
        "hooks.before_report",
    ),
    "Leave": ("leave.after_ledger", "leave.before_resign"),
}
#: names that no code hits yet, and whose part that is; whoever hits one takes it off here
NOT_YET: dict[str, str] = {}


def hits() -> set[str]:
    """The names in all calls of `hit` in the product (`_hit` in the shim)."""
    found = set()
    for path in (source for source in seeded.sources(PRODUCT) if source.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("hit", "_hit")
            ):
                given = [item for argument in node.args for item in ast.walk(argument)]
                found |= {item.value for item in given if isinstance(item, ast.Constant)}
    return found


def steps_of_the_design() -> list[str]:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    way = text.partition("## The way of a run\n")[2].partition("\n## ")[0]
    return re.findall(r"^\d+\. \*\*([\w ]+)\.\*\*", way, re.MULTILINE)


def test_every_failpoint_is_hit_by_the_code_and_every_hit_has_a_name():
    assert hits() == set(NAMES) - set(NOT_YET)


def test_every_step_of_the_way_of_a_run_has_a_failpoint_where_a_crash_can_leave_something():
    assert steps_of_the_design() == list(STEPS)
    assert {name for names in STEPS.values() for name in names} == NAMES
    assert [step for step, names in STEPS.items() if not names] == ["Know"]


@pytest.mark.parametrize("text", ["no.such:kill", "claim.after_api:burn", "claim.after_api"])
def test_a_failpoint_that_is_none_is_refused(text):
    with pytest.raises(SettingsError, match="FLOWFLEET_FAILPOINT"):
        Failpoints.from_environment({"FLOWFLEET_FAILPOINT": text})


def test_without_a_folder_a_failpoint_fires_each_time_and_with_one_once_for_all_processes(tmp_path):
    each = Failpoints.from_environment({"FLOWFLEET_FAILPOINT": "take.after_move:raise, start.after_move:raise"})
    for name in ("take.after_move", "take.after_move", "start.after_move"):
        with pytest.raises(FailpointRaised, match=name):
            each.hit(name)
    each.hit("end.before_report")

    settings = {"FLOWFLEET_FAILPOINT": "take.after_move:raise", "FLOWFLEET_FAILPOINT_FOLDER": str(tmp_path)}
    with pytest.raises(FailpointRaised):
        Failpoints.from_environment(settings).hit("take.after_move")
    Failpoints.from_environment(settings).hit("take.after_move")
    assert (tmp_path / "take.after_move").read_text() == str(os.getpid())


FROZEN_IN_A_THREAD = """
import os, threading, time
from flowfleet.failpoints import Failpoints

def frozen():
    Failpoints({"report.between": "freeze"}).hit("report.between")
    os.write(1, str(time.monotonic()).encode())

for _ in range(8):
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
one = threading.Thread(target=frozen)
one.start()
one.join()
os._exit(0)
"""


def test_a_thread_that_freezes_its_process_goes_no_step_further_until_it_is_thawed():
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", FROZEN_IN_A_THREAD], stdout=subprocess.PIPE, text=True) as process:
            until(lambda pid=process.pid: processes.stopped(pid), 20, "the freeze")
            # a thread that went on would do so at once
            time.sleep(0.02)
            thawed = time.monotonic()
            process.send_signal(signal.SIGCONT)
            assert float(process.communicate()[0]) >= thawed


# -- in the shim


def with_failpoint(bench, name: str, action: str, folder: Path | None = None) -> ProcessDeployer:
    given = Failpoints({name: action, "take.after_move": "kill"}, folder)
    deployer = bench.deployer = ProcessDeployer(
        host=bench.host, abilities=bench.abilities, fork_client=bench.fork_client, failpoints=given
    )
    return deployer


def test_the_request_for_a_run_has_only_the_failpoints_of_shims():
    assert Failpoints({"take.after_move": "kill"}).of_shims() == {}
    mixed = {
        "take.after_move": "kill",
        "cancel.found": "kill",
        "shim.after_exec": "freeze",
        "cancel.after_ack": "raise",
    }
    given = Failpoints(mixed, Path("/fired")).of_shims()
    assert given == {"actions": {"shim.after_exec": "freeze", "cancel.after_ack": "raise"}, "folder": "/fired"}


@pytest.mark.parametrize("action", ["kill", "raise"])
def test_a_shim_that_dies_after_its_start_file_has_begun_nothing(full_bench, action, tmp_path):
    with_failpoint(full_bench, "shim.after_start_file", action)
    spec = full_bench.sh(f"touch {tmp_path}/began")
    end = full_bench.end_of(full_bench.start(spec))
    assert end.error == "its shim was killed before the command began"
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("name", ["shim.after_exec", "shim.before_exit_record"])
@pytest.mark.parametrize("action", ["kill", "raise"])
def test_a_shim_dies_once_at_a_later_failpoint_and_its_run_has_one_true_end(full_bench, action, name, tmp_path):
    fired = tmp_path / "fired"
    fired.mkdir()
    with_failpoint(full_bench, name, action, fired)
    spec = full_bench.sh(f"echo began >>{tmp_path}/began; sleep 0.3; exit 3")
    end = full_bench.end_of(full_bench.start(spec))
    assert (tmp_path / "began").read_text() == "began\n"
    assert int((fired / name).read_text()) == full_bench.folder(spec).started()["pid"]
    # whether the kernel can tell the code of another's child depends on its age
    assert end.unknown or end.code == 3
    again = full_bench.run(full_bench.sh("exit 4"))
    assert again.code == 4


def test_a_shim_freezes_at_its_failpoint_and_goes_on_when_it_is_thawed(full_bench, tmp_path):
    with_failpoint(full_bench, "shim.before_exit_record", "freeze", tmp_path)
    started_run = full_bench.start(full_bench.sh("exit 5"))
    pid = int(until(lambda: (tmp_path / "shim.before_exit_record").exists() and started_run.handle["pid"], 10, "it"))
    until(lambda: processes.stopped(pid), 10, "the freeze")
    assert started_run.poll() is None
    processes.kill(pid, signal.SIGCONT)
    assert full_bench.end_of(started_run).code == 5


def test_a_run_that_cannot_be_started_for_its_failpoint_leaves_the_trace_of_the_shim(full_bench):
    with_failpoint(full_bench, "shim.after_start_file", "raise")
    spec = full_bench.sh("true")
    full_bench.end_of(full_bench.start(spec))
    assert "shim.after_start_file" in (spec.folder / "shim.error").read_text()
