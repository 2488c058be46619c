"""The stop plan: where runs end with their worker, what a stop then does, and what the worker says of it."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.layers import resolve
from tests.needs import missing
from tests.waiting import SCALE
from workers.lifecycle.stop_plan import Enclosure, StopPlan, enclosure_of

ROOT = Path(__file__).parents[2]
CONTAINER = Enclosure(words="in a container; docker itself kills after 10 s")
UNIT = Enclosure(words="in a systemd unit, which ends whole unless it has KillMode=process", may_leave=True)


@pytest.mark.parametrize(
    ("mark", "environ", "words"),
    [
        (None, {}, None),
        (".dockerenv", {}, CONTAINER.words),
        (".dockerenv", {"INVOCATION_ID": "x"}, CONTAINER.words),
        (".dockerenv", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "in a pod; Kubernetes itself kills after 30 s"),
        ("run/.containerenv", {}, "in a container; podman itself kills after 10 s"),
        (None, {"container": "oci"}, "in a container, as the variable `container` says"),
        (None, {"container": "", "KUBERNETES_SERVICE_HOST": "", "INVOCATION_ID": ""}, None),
        (None, {"INVOCATION_ID": "x"}, UNIT.words),
    ],
)
def test_a_container_a_pod_and_a_unit_are_known_by_their_marks(tmp_path, mark, environ, words):
    if mark:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
    found = enclosure_of(environ, tmp_path, pid=50, parent=1)
    assert (found and found.words) == words


FIRST = "the first process here, with which all others end"
OWN, HOSTS = "pid:[4026532201]", "pid:[4026531836]"


@pytest.mark.parametrize(
    ("pid", "parent", "space", "first", "words"),
    [
        (1, 0, OWN, "worker", FIRST),
        (50, 1, OWN, "tini", f"a child of {FIRST}"),
        (50, 1, OWN, "systemd", None),
        (50, 1, OWN, "init", None),
        (50, 1, HOSTS, "tini", None),
        (50, 40, OWN, "tini", None),
        (50, 40, OWN, "bash", None),
    ],
)
def test_a_process_namespace_ends_with_its_first_process_and_that_is_us_or_our_parent_or_none_of_ours(
    tmp_path, pid, parent, space, first, words
):
    (tmp_path / "proc/50/ns").mkdir(parents=True)
    (tmp_path / "proc/50/ns/pid").symlink_to(space)
    (tmp_path / "proc/self").symlink_to("50")
    (tmp_path / "proc/1").mkdir()
    (tmp_path / "proc/1/comm").write_text(f"{first}\n")
    found = enclosure_of({}, tmp_path, pid=pid, parent=parent)
    assert (found and found.words) == words


ASK = """
import pathlib, sys
from workers.host import Abilities
from workers.lifecycle.stop_plan import enclosure_of
print(enclosure_of({}, pathlib.Path(sys.argv[1])) is not None, Abilities.probe({}).proc)
"""
#: a shell that is no wrapper of its last command but stays above it
BELOW = ["sh", "-c", '"$@"; true', "sh"]


@pytest.mark.parametrize("mounted", [True, False], ids=["with its own /proc", "with the /proc of outside"])
@pytest.mark.parametrize(("above", "ends"), [([], True), (BELOW, True), ([*BELOW, *BELOW], False)])
def test_in_a_real_process_namespace_without_a_mark_runs_outlive_a_worker_that_does_not_hold_it_up(
    tmp_path, above, ends, mounted
):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-pf", "true"], check=False).returncode:
        missing("unshare, and the right to make a process namespace")
    (tmp_path / "proc").symlink_to("/proc")
    space = ["unshare", "-pf", *(["--mount-proc"] if mounted else [])]
    argv = [*space, *above, sys.executable, "-c", ASK, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=30 * SCALE, check=False)
    assert done.stdout.split() == [str(ends), str(mounted)], done.stderr


@pytest.mark.parametrize(
    ("flag", "enclosure", "mode", "why"),
    [
        (None, None, "detach", "nothing here ends them with this worker"),
        (None, CONTAINER, "wait", CONTAINER.words),
        (None, UNIT, "wait", UNIT.words),
        ("cancel", None, "cancel", "as given by flag --on-stop"),
        ("cancel", CONTAINER, "cancel", f"as given by flag --on-stop; {CONTAINER.words}"),
        ("wait", None, "wait", "as given by flag --on-stop"),
        ("detach", None, "detach", "as given by flag --on-stop"),
        ("detach", UNIT, "detach", f"as given by flag --on-stop; {UNIT.words}"),
        ("detach", CONTAINER, "detach", f"as given by flag --on-stop; {CONTAINER.words}"),
    ],
)
def test_what_a_stop_will_do_and_why_is_said_in_one_line(caplog, flag, enclosure, mode, why):
    caplog.set_level(logging.INFO, "workers.lifecycle.stop_plan")
    plan = StopPlan.of(resolve(WorkerSettings, {"on-stop": flag, "stop-grace": 7}, {}, {}), enclosure)
    plan.say()
    (record,) = caplog.records
    bounded = mode == "detach" and enclosure is CONTAINER
    assert (plan.mode, record.why, record.levelname) == (mode, why, "WARNING" if bounded else "INFO")
    assert record.message.startswith(
        "on stop: " + ("leaves" if mode == "detach" else "waits" if mode == "wait" else "ends")
    )
    assert ("adopts" in record.message) is (mode == "detach" and not bounded)
    if mode != "detach":
        assert (record.grace_seconds, record.otherwise) == (7.0, "--on-stop detach")


@pytest.mark.parametrize(
    ("environ", "config", "origin"),
    [
        ({"FLOWFLEET_ON_STOP": "wait"}, {}, "variable FLOWFLEET_ON_STOP"),
        ({}, {"on-stop": "wait"}, "config file on-stop"),
    ],
)
def test_the_reason_names_the_place_where_the_option_was_given(environ, config, origin):
    assert StopPlan.of(resolve(WorkerSettings, {}, environ, config), None).why == f"as given by {origin}"


def test_runs_in_another_system_are_left_since_they_are_there():
    plan = StopPlan.of(WorkerSettings(on_stop="detach", deploy="external"), CONTAINER)
    assert (plan.mode, plan.why, plan.bounded) == ("detach", "its runs are deployed elsewhere", False)
