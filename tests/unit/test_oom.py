"""Kills for memory: true ones are told as such, and what only looks like one is not; a small part of `make stress`."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.needs import control_groups
from tests.oom import LimitedRuns
from tests.waiting import until
from workers import host_cgroups
from workers.deployment import Exit
from workers.shim import cgroup


@pytest.fixture
def limited(full_bench) -> LimitedRuns:
    return LimitedRuns(full_bench, control_groups())


def left(limited: LimitedRuns) -> list[Path]:
    """The groups of this bench that are still there."""
    return [limited.group(spec) for spec in limited.bench.start_specs if limited.group(spec).exists()]


def test_each_true_kill_for_memory_is_told_as_one(limited):
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda _: limited.starve(), range(4)))
    assert [(end.oom, end.oom_kills, end.ended_by) for end in ends] == [(True, 1, "oom")] * 4
    assert all(end.tree_peak_kib >= 40 << 10 for end in ends)
    assert "kernel ran out of memory for it" in str(ends[0])
    assert left(limited) == []


def test_no_other_kill_is_told_as_one_for_memory(limited):
    """A child's, and the run is killed some seconds later; another run's; a code that looks like one; a plain kill."""

    def after_a_child(seconds: float) -> Exit:
        started, _ = limited.starve_child("time.sleep(60)")
        return limited.kill(started, after=seconds)

    def beside_another() -> Exit:
        bench = limited.bench
        started = bench.start_ready(bench.sh("echo ready; sleep 60"))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(limited.starve)
            end = limited.kill(started)
            assert other.result().oom
        return end

    started, _ = limited.starve_child("os._exit(137)")
    with ThreadPoolExecutor(2) as pool:
        # more than the second that is near, by what a busy machine may keep a shim from looking
        child, neighbour = pool.submit(after_a_child, 6.0), pool.submit(beside_another)
        ends = [limited.bench.end_of(started), child.result(), neighbour.result()]
    assert [end.oom for end in ends] == [False] * 3
    assert [(end.code, end.signal, end.oom_kills) for end in ends] == [(137, None, 1), (None, 9, 1), (None, 9, 0)]
    assert [end.ended_by for end in ends] == ["itself", "unknown", "unknown"]
    assert left(limited) == []


def test_a_kill_of_ours_is_not_the_kernels_though_a_child_was_killed_for_memory_right_before(limited):
    started, spec = limited.starve_child("time.sleep(60)")
    limited.bench.stop(started, spec, kill=True)
    end = limited.bench.end_of(started)
    assert (end.signal, end.oom, end.ended_by) == (9, False, "drain")


def test_a_run_and_all_that_it_starts_are_in_its_group_which_goes_with_them(limited):
    bench = limited.bench
    spec = bench.sh("(setsid sleep 60 & echo $! > inner); sleep 60 & echo ready; wait")
    started = bench.start_ready(spec)
    group = limited.group(spec)
    inside = until(lambda: (found := cgroup.members(str(group))) and len(found) == 3 and found, 10, "all three inside")
    assert started.handle["command_pid"] in inside
    assert int((spec.folder / "work" / "inner").read_text()) in inside
    assert started.handle["pid"] not in inside, "the shim stays outside"
    cgroup.kill(str(group))
    assert (bench.end_of(started).signal, group.exists()) == (signal.SIGKILL, False)


def test_the_group_goes_with_a_run_that_ends_while_its_worker_is_away(limited):
    bench = limited.bench
    spec = bench.sh("echo ready; while [ ! -e go ]; do sleep 0.01; done")
    bench.start_ready(spec)
    assert limited.group(spec).is_dir()
    (spec.folder / "work" / "go").touch()
    until(bench.folder(spec).cleared, 20, "the shim to clear the run away")
    assert not limited.group(spec).exists()


def test_the_group_of_a_run_whose_shim_and_worker_are_dead_is_found_by_the_next_one(limited):
    bench = limited.bench
    spec = bench.sh("(setsid env -i sleep 60 &); echo ready; sleep 60")  # neither session nor environment tells it
    started = bench.start_ready(spec)
    group = limited.group(spec)
    bench.kill_shim(started, spec)
    adopted = bench.adopt(spec, bench.new_deployer())
    inside = until(lambda: len(found := cgroup.members(str(group))) == 3 and found, 10, "all three inside")
    bench.stop(adopted, spec, kill=True)
    bench.end_of(adopted)
    assert not group.exists()
    # a process leaves its group a moment before it is gone
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside), 10, "them to be gone")


def test_empty_groups_of_dead_runs_are_swept_and_others_stay(limited):
    bench = limited.bench
    spec = bench.sh("echo ready; sleep 60")
    bench.start_ready(spec)
    dead = limited.groups / "flowfleet-dead.run"

    def swept():
        dead.mkdir(exist_ok=True)
        number = host_cgroups.sweep(limited.groups)
        assert not dead.exists()
        return number

    until(swept, 10, "the sweep to find it")  # a worker of another test may be first
    assert limited.group(spec).is_dir()


def test_a_group_that_is_swept_before_it_is_entered_is_made_once_more(limited, monkeypatch):
    path, real, tried = str(limited.groups / "flowfleet-swept.early"), cgroup._entrance, []

    def entrance(found: str) -> str:
        tried.append(found)
        if len(tried) == 1:
            Path(found).rmdir()
        return real(found)

    monkeypatch.setattr(cgroup, "_entrance", entrance)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if cgroup.enter(path) and cgroup.members(path) == [os.getpid()] and len(tried) == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert cgroup.remove(path)
