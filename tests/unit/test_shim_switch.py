"""The dead man's switch: a run whose lease is not renewed in time is killed whole, by its shim or by its worker."""

import itertools
import os
import signal

import pytest

from tests import processes
from tests.bench_of_runs import DEAF, read_pid
from tests.waiting import SCALE, is_quick, until
from workers.deployment import StopReason
from workers.shim import switch
from workers.shim.syscalls import boot_clock
from workers.stop import Stop

#: children with sessions of their own, which take no TERM
FAMILY = f"setsid sh -c 'echo $$ > child; {DEAF}' & {DEAF}"


# -- the file


def test_a_deadline_is_read_as_it_was_written_and_each_write_takes_the_place_of_the_one_before(tmp_path):
    assert switch.read(tmp_path) is None
    sizes = set()
    for deadline in (12.5, 1234567.123456, 3.0):
        switch.write(tmp_path, deadline)
        assert switch.read(tmp_path) == deadline
        sizes.add((tmp_path / switch.NAME).stat().st_size)
    assert len(sizes) == 1, "no write needs more room on the disk than the first"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"deadline": 9.0}',
        '{"v": 1, "deadline": 1234.5  , "again": 1299.5  }',
        '{"deadline": "x", "again": "x"}',
    ],
)
def test_what_is_half_written_or_no_lease_is_no_deadline(tmp_path, text):
    (tmp_path / switch.NAME).write_text(text)
    assert switch.read(tmp_path) is None


def test_a_switch_goes_by_the_file_and_where_that_cannot_be_read_by_what_it_knows(tmp_path):
    held = switch.Switch(str(tmp_path), boot_clock() + 100)
    assert not held.over()
    switch.write(tmp_path, boot_clock() - 1)
    assert held.over(), "a leader may shorten the lease"
    (tmp_path / switch.NAME).write_text("{")
    assert held.over()
    switch.write(tmp_path, boot_clock() + 500)
    assert not held.over()
    (tmp_path / switch.NAME).unlink()
    assert not held.over()


def test_a_deadline_that_is_moved_between_the_look_at_it_and_the_look_at_the_clock_is_no_end(tmp_path, monkeypatch):
    switch.write(tmp_path, boot_clock() - 1)
    held = switch.Switch(str(tmp_path), 0.0)

    def renewed_meanwhile():
        switch.write(tmp_path, boot_clock() + 500)
        return boot_clock()

    monkeypatch.setattr(switch.syscalls, "boot_clock", renewed_meanwhile)
    assert not held.over()


def test_a_run_without_a_switch_is_never_over_and_its_shim_sleeps_as_long_as_it_likes(tmp_path):
    switch.write(tmp_path, 0.0)
    held = switch.Switch(str(tmp_path), None)
    assert not held.over()
    assert (held.shortened(60.0), switch.Switch(str(tmp_path), 0.0).shortened(60.0)) == (60.0, switch.LOOK_SECONDS)


# -- the shim


def begin(bench, script=FAMILY, seconds=60.0):
    spec = bench.sh(script, switch=True, not_after=boot_clock() + seconds)
    return bench.start_ready(spec), spec


def test_a_run_whose_lease_is_over_is_killed_whole_and_its_record_says_why(full_bench):
    run, spec = begin(full_bench)
    child = read_pid(spec.folder / "work" / "child")
    switch.write(spec.folder, boot_clock() + 0.5)
    end = full_bench.end_of(run)
    assert (end.signal, end.stopped_by, end.stop_reason) == (signal.SIGKILL, "kill", StopReason.SWITCH)
    assert "dead man's switch" in str(end)
    assert full_bench.living(spec) == []
    assert not processes.alive(child)
    assert full_bench.folder(spec).cleared()


def test_a_lease_that_is_renewed_lets_the_run_go_on_past_its_first_deadline(full_bench):
    for _ in range(5):
        run, spec = begin(full_bench, "echo ready; sleep 4; exit 4", seconds=60.0)
        renewed = []

        def renew(run=run, spec=spec, renewed=renewed):
            renewed.append(boot_clock())
            switch.write(spec.folder, renewed[-1] + 2.0)
            return run.poll()

        code = until(renew, 20, "the end of the run").code
        if code == 4:
            break
        # a lease that the machine has kept us from renewing in time is rightly over, and says nothing
        times = [*renewed, boot_clock()]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) >= 2.0
    assert code == 4


def test_a_run_of_the_other_policy_has_no_switch(full_bench):
    spec = full_bench.sh("echo ready; sleep 2.5; exit 5", not_after=boot_clock() + 60)
    switch.write(spec.folder, boot_clock() - 1)
    assert full_bench.run(spec).code == 5


def test_a_frozen_host_ends_its_run_within_a_second_of_the_thaw(full_bench):
    def seconds_after_the_thaw():
        run, spec = begin(full_bench)
        shim, command = run.handle["pid"], run.handle["command_pid"]
        os.kill(shim, signal.SIGSTOP)
        os.killpg(command, signal.SIGSTOP)
        switch.write(spec.folder, boot_clock() - 5)
        assert run.poll() is None
        os.kill(shim, signal.SIGCONT)
        os.killpg(command, signal.SIGCONT)
        thawed = boot_clock()
        end = full_bench.end_of(run)
        assert end.stop_reason == StopReason.SWITCH
        return boot_clock() - thawed

    assert is_quick(seconds_after_the_thaw, 1.5 * SCALE)


def test_a_run_whose_shim_stands_still_is_killed_past_it(full_bench):
    """Its worker does so (`Leases.overdue`); a shim that was stopped would obey only when it goes on."""
    run, spec = begin(full_bench)
    child = read_pid(spec.folder / "work" / "child")
    os.kill(run.handle["pid"], signal.SIGSTOP)
    until(run._shim_stands, 5, "the shim to stand still")
    full_bench.folder(spec).write_stop(Stop(reason=StopReason.SWITCH, kill=True), "worker@here")
    run.kill()
    end = full_bench.end_of(run)
    assert (end.stopped_by, end.stop_reason) == ("kill", StopReason.SWITCH)
    assert full_bench.living(spec) == []
    assert not processes.alive(child)


@pytest.mark.parametrize("with_switch", [True, False])
def test_a_run_with_a_switch_does_not_outlive_its_shim_and_any_other_does(full_bench, with_switch):
    spec = full_bench.sh(DEAF, switch=with_switch, not_after=boot_clock() + 60)
    run = full_bench.start_ready(spec)
    command = run.handle["command_pid"]
    full_bench.kill_shim(run, spec)
    if with_switch:
        until(lambda: not processes.alive(command), 5, "the command to end with its shim")
    else:
        assert processes.alive(command)
