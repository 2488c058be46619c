"""The watch for kills for memory: by a group's own count and notice, by its count alone, and by the host's."""

import os
import subprocess
import sys

import pytest

from workers.shim import cgroup, oom_watch
from workers.shim.oom_watch import OomWatch


class Clock:
    """The monotonic clock of the watch, moved by the test."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(oom_watch, "time", clock)
    return clock


@pytest.fixture
def host(monkeypatch) -> list[int]:
    """The host's count of kills for memory, in a list that the test changes."""
    count = [7]
    monkeypatch.setattr(oom_watch.syscalls, "oom_kills", lambda: count[0])
    return count


@pytest.fixture
def group(tmp_path):
    """A group of version 2 in plain files, which give notice as the kernel's do."""
    path = tmp_path / "group"
    path.mkdir()
    (path / "memory.events.local").write_text("oom 0\noom_kill 0\noom_group_kill 0\n")
    (path / "memory.peak").write_text(str(3 << 20))
    return path


def count(group, kills):
    (group / "memory.events.local").write_text(f"oom {kills}\noom_kill {kills}\noom_group_kill 0\n")


@pytest.fixture
def living():
    """A process that is not dying."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def watch(group, root) -> OomWatch:
    found = OomWatch(proc=True)
    found.open(str(group), root)
    return found


def facts(found: OomWatch, *, killed: bool = True):
    end = found.end(killed=killed)
    return end["oom"], end["oom_kills"], end["oom_on_host"]


def test_a_kill_in_the_group_right_before_the_end_is_the_runs(clock, host, group, living):
    found = watch(group, living)
    count(group, 1)
    assert facts(found) == (True, 1, False)
    assert watch(group, living).end(killed=False)["oom"] is False, "it did not end by a KILL of others"


def test_a_kill_elsewhere_on_the_host_is_not_the_runs(clock, host, group, living):
    found = watch(group, living)
    host[0] += 1
    assert facts(found) == (False, 0, True)


def test_a_kill_in_the_group_that_the_run_has_outlived_is_another_process(clock, host, group, living):
    found = watch(group, living)
    count(group, 1)
    clock.now += 0.3
    found.look()
    clock.now += 1.1
    found.look()
    assert facts(found) == (False, 1, False)


def test_a_run_that_is_seen_dying_right_after_it_may_take_its_time_to_be_gone(clock, host, group):
    with subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) as dying:
        os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
        found = watch(group, dying.pid)
        count(group, 1)
        found.look()
        clock.now += 30
        assert facts(found) == (True, 1, False)


def test_a_dying_run_of_whose_group_an_earlier_kill_is_known_has_not_died_by_that_one(clock, host, group):
    with subprocess.Popen(["sleep", "60"]) as process:
        found = watch(group, process.pid)
        count(group, 1)
        found.look()
        clock.now += 20
        found.look()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        # a notice about another group in the same limit: the count of this one stays
        count(group, 1)
        found.look()
        assert facts(found) == (False, 1, False)


def test_the_kernel_gives_notice_before_it_counts(clock, host, group, living):
    found = watch(group, living)
    assert found.next_look(clock.now) is None, "version 2 tells each kill"
    count(group, 0)
    found.look()
    assert found.next_look(clock.now) == clock.now + 0.02
    count(group, 1)
    clock.now += 0.02
    found.look()
    assert facts(found) == (True, 1, False)


def test_a_notice_about_others_is_looked_into_for_a_second_and_no_longer(clock, host, group, living):
    found = watch(group, living)
    count(group, 0)
    found.look()
    clock.now += 1.1
    found.look()
    assert found.next_look(clock.now) is None
    assert facts(found) == (False, 0, False)


def test_without_notices_the_count_is_read_each_second_and_a_rise_counts_from_the_reading_before(
    clock, host, group, living, monkeypatch
):
    monkeypatch.setattr(cgroup.RunGroup, "take_notice", lambda _self: False)
    found = watch(group, living)
    found._group.tells_all = False  # as version 1, of a kill for the whole host
    assert found.next_look(clock.now) == clock.now + 1.0
    clock.now += 1.0
    count(group, 1)
    found.look()
    clock.now += 0.2
    found.look()
    assert facts(found) == (False, 1, False), "it is 0.2 to 1.2 s old, and the run lived on after it"

    found = watch(group, living)
    clock.now += 0.9
    count(group, 2)
    assert facts(found) == (True, 2, False), "it has come since the last reading"


def test_without_a_group_the_hosts_count_is_all_that_is_known(clock, host):
    found = OomWatch(proc=True)
    found.open(None, 0)
    host[0] += 1
    assert facts(found) == (False, None, True)
    assert facts(found, killed=False) == (False, None, False)
    found.tick()
    assert facts(found) == (False, None, True), "a large process takes its time between kill and end"
    found.tick()
    assert facts(found) == (False, None, False)
    assert facts(OomWatch(proc=False)) == (False, None, None), "nobody tells"


def test_a_group_that_the_command_could_not_enter_is_none(clock, host, tmp_path):
    assert not cgroup.enter(str(tmp_path / "no group"))
    assert list(tmp_path.iterdir()) == []
    assert not cgroup.enter(str(tmp_path / "no" / "folder"))
    assert facts(watch(tmp_path / "no group", 1)) == (False, None, False)


def test_the_peak_of_the_group_is_told_in_kib(clock, host, group, living):
    assert watch(group, living).end(killed=False)["tree_peak_kib"] == 3 << 10
    (group / "memory.peak").unlink()
    assert watch(group, living).end(killed=False)["tree_peak_kib"] is None
    (group / "memory.max_usage_in_bytes").write_text("2048")
    assert watch(group, living).end(killed=False)["tree_peak_kib"] == 2
