"""Limits of memory and processors: in the control group of each run, and refused where none can be made."""

import dataclasses
import os
import time

import pytest

from flowfleet.errors import SettingsError, StartFailed
from flowfleet.settings.classes import WorkerSettings
from tests.needs import control_groups
from workers import host_cgroups
from workers.deployment import RunLimits
from workers.host import Abilities
from workers.host_limits import check_limits
from workers.shim import cgroup
from workers.shim.spawn import GatedCommand

LIMIT = 48 << 20


@pytest.fixture
def groups():
    return control_groups()


def limited(spec, **limits):
    return dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, **limits))


def test_a_run_that_takes_more_memory_than_its_limit_is_killed_and_that_is_said(full_bench, groups):
    spec = limited(full_bench.python("x = b'x' * (1 << 30)"), memory=LIMIT)
    end = full_bench.end_of(full_bench.start(spec), 30)
    assert (end.oom, end.ended_by) == (True, "oom")
    assert end.tree_peak_kib <= LIMIT >> 10


def test_a_run_below_its_limit_ends_as_it_wants(full_bench, groups):
    spec = limited(full_bench.sh("exit 3"), memory=LIMIT, cpus=0.5)
    end = full_bench.end_of(full_bench.start(spec), 30)
    assert (end.code, end.oom) == (3, False)
    assert not host_cgroups.group_of(groups, spec.folder).exists()
    cpu = host_cgroups.find_parent(controller="cpu")
    assert not host_cgroups.group_of(cpu, spec.folder).exists()


def test_a_run_gets_no_more_of_the_processors_than_its_limit(full_bench, groups):
    script = (
        "import time\nbegun = time.monotonic()\nwhile time.process_time() < 0.5: pass\nprint(time.monotonic() - begun)"
    )
    spec = limited(full_bench.python(script), cpus=0.25)
    begun = time.monotonic()
    assert full_bench.end_of(full_bench.start(spec), 60).code == 0
    assert time.monotonic() - begun > 1.5, "half a second of a quarter of a processor takes two"


@pytest.mark.parametrize(
    ("own", "asked", "kept"),
    [
        (None, None, None),
        (1 << 30, None, 1 << 30),
        (None, "512m", 512 << 20),
        (1 << 30, "2g", 1 << 30),
        (1 << 30, "1m", 1 << 20),
    ],
)
def test_a_run_may_ask_for_less_memory_than_its_worker_allows(own, asked, kept):
    settings = type("Settings", (), {"stop_grace": 1.0, "log_limit": 0, "nice": 0, "memory": own, "cpus": None})
    assert RunLimits.of(settings, {"memory": asked}, {}).memory == kept
    assert RunLimits.of(settings, {}, {"FLOWFLEET_MEMORY": asked}).memory == kept


@pytest.mark.parametrize(("name", "value"), [("memory", "much"), ("memory", "0"), ("cpus", "-1"), ("cpus", "inf")])
def test_a_limit_that_is_none_is_told_with_where_it_stands(name, value):
    settings = type("Settings", (), {"stop_grace": 1.0, "log_limit": 0, "nice": 0, "memory": None, "cpus": None})
    with pytest.raises(StartFailed, match=f"the job variable {name} is '{value}'"):
        RunLimits.of(settings, {name: value}, {})


@pytest.mark.parametrize("bench", [Abilities.plain()], ids=["plain"], indirect=True)
def test_without_a_control_group_a_run_that_asks_for_a_limit_does_not_begin(bench):
    spec = limited(bench.sh("echo began"), memory=LIMIT)
    with pytest.raises(StartFailed, match="its limits of memory or processors cannot be set on"):
        bench.start(spec)


def test_a_command_that_has_ended_before_its_gate_does_not_take_its_shim_along():
    gate, opener = os.pipe()
    os.close(gate)
    GatedCommand(pid=0, report=-1, gate=opener).release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opener)


@pytest.mark.parametrize("name", ["memory", "cpus"])
def test_without_a_control_group_a_worker_that_is_to_limit_its_runs_says_so_at_its_start(name):
    settings = WorkerSettings(**{name: 1 << 30 if name == "memory" else 1.0})
    with pytest.raises(SettingsError, match=f"--{name} cannot be kept here"):
        check_limits(settings, Abilities.plain())
    check_limits(dataclasses.replace(settings, deploy="docker"), Abilities.plain())
    check_limits(WorkerSettings(), Abilities.plain())


def test_in_version_2_of_control_groups_the_limits_are_written_into_the_one_group(tmp_path):
    """On a copied tree: this project's machines have version 1."""
    group = tmp_path / "run"
    group.mkdir()
    for name in ("memory.max", "memory.swap.max", "cpu.max", "cgroup.procs"):
        (group / name).write_text("max\n")
    assert cgroup.enter(str(group), memory=LIMIT, cpus=1.5)
    assert (group / "memory.max").read_text().startswith(str(LIMIT))
    assert (group / "memory.swap.max").read_text().startswith("0")
    assert (group / "cpu.max").read_text().startswith("150000 100000")
