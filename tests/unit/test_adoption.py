"""Adoption: a run outlives its worker, and the next one finds it with its true exit."""

import errno
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.bench_of_runs import DEAF, BenchOfRuns, read_pid
from tests.waiting import until
from workers.deployers import process_handles
from workers.deployment import StopReason
from workers.host import Abilities
from workers.shim import atomic_files, syscalls
from workers.state.run_folders import RunFolder
from workers.stop import Stop

ROOT = Path(__file__).parents[2]


def mode_of(bench: BenchOfRuns) -> str:
    return "full" if bench.abilities.pidfd else "plain"


def gated(tmp_path: Path, then: str) -> str:
    """A script that goes on when the test says so."""
    return f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; {then}"


def test_a_run_started_by_a_worker_that_is_killed_goes_on(bench, tmp_path):
    spec = bench.sh(gated(tmp_path, "echo bye; exit 11"))
    first = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.bench_of_runs import *
from workers.host import Abilities
abilities = Abilities.plain() if {mode_of(bench) == "plain"} else Abilities.probe({{}})
spec = StartSpec(run_id={spec.run_id!r}, claim={spec.claim!r}, argv={spec.argv!r}, env=dict(os.environ), cwd=None,
                 folder=Path({str(spec.folder)!r}), not_after=None,
                 limits=RunLimits(log_limit=1 << 20, stop_grace=60.0))
run = ProcessDeployer(host=Host.probe({{}}), abilities=abilities).start(spec)
print(run.handle["command_pid"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", first], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL

    adopted = bench.adopt(spec)
    assert adopted.poll() is None
    assert adopted.handle["command_pid"] == int(done.stdout)
    (tmp_path / "go").touch()

    end = bench.end_of(adopted)
    assert (end.code, end.last_lines) == (11, ("bye",))
    assert bench.folder(spec).work.exists(), "the hooks of its flow may need it"
    bench.folder(spec).settle()
    assert not bench.folder(spec).work.exists()


def test_an_adopted_run_is_stopped_through_its_shim(bench, tmp_path):
    spec = bench.sh(gated(tmp_path, "exit 0"))
    bench.start(spec).close()
    adopted = bench.adopt(spec)
    bench.stop(adopted, spec)
    end = bench.end_of(adopted)
    assert (end.stopped_by, bench.folder(spec).exit_record()["stopped_by"]) == ("term", "term")


@pytest.mark.parametrize("kill", [False, True])
def test_a_run_whose_disk_has_no_room_for_the_reason_is_stopped_past_its_shim(bench, kill):
    spec = bench.sh(DEAF, stop_grace=0.2)
    started_run = bench.start_ready(spec)
    (started_run.kill if kill else started_run.stop)()
    end = bench.end_of(started_run)
    assert (end.signal, end.stopped_by, end.ignored) == (signal.SIGKILL, "kill", {})
    assert "was stopped by the worker" in str(end)


def test_a_shim_of_before_an_upgrade_is_asked_without_a_reason(bench):
    spec = bench.sh("trap 'exit 3' USR1; echo ready; while :; do sleep 0.02; done")
    bench.start_ready(spec).close()
    started = bench.folder(spec).started()
    del started["needs_reason"]
    atomic_files.write_json(spec.folder / "started.json", started)
    adopted = bench.adopt(spec)
    adopted.stop()
    # this one is new, and says so
    os.kill(adopted.handle["command_pid"], signal.SIGUSR1)
    assert bench.end_of(adopted).ignored == {"SIGTERM": 1}


def test_the_reason_that_a_shim_of_before_an_upgrade_does_not_record_is_known_all_the_same(tmp_path):
    folder = RunFolder(tmp_path / "run.claim")
    folder.path.mkdir()
    folder.write_stop(Stop(reason=StopReason.TIMEOUT), "w@h")
    for told, words in (
        ({"signal": 15, "stopped_by": "term"}, "--run-timeout"),
        ({"signal": 15}, "was killed by SIGTERM"),
    ):
        atomic_files.write_json(folder.path / "exit.json", {"v": 1, **told})
        assert words in str(folder.exit())


def test_the_descriptor_is_quiet_while_it_runs_and_rings_at_the_end(full_bench, tmp_path):
    started_run = full_bench.start(full_bench.sh(gated(tmp_path, "exit 3")))
    poll = select.poll()
    poll.register(started_run.fileno(), select.POLLIN)
    assert started_run.poll() is None
    assert poll.poll(50) == []
    (tmp_path / "go").touch()
    assert poll.poll(60_000)
    assert started_run.poll().code == 3


# -- the shim is killed


def test_when_the_shim_is_killed_the_run_goes_on_and_its_end_is_seen(bench, tmp_path):
    spec = bench.sh(gated(tmp_path, "exit 6"))
    started_run = bench.start(spec)
    bench.kill_shim(started_run, spec)
    assert started_run.poll() is None
    assert processes.alive(started_run.handle["command_pid"])
    (tmp_path / "go").touch()
    end = bench.end_of(started_run)
    if bench.abilities.pidfd_info:  # the kernel still tells
        assert (end.code, end.unknown) == (6, False)
    else:
        assert (end.code, end.unknown) == (None, True)
    assert bench.folder(spec).exit_record()["begun"] is True


def test_the_end_rings_though_the_shim_was_killed(full_bench, tmp_path):
    spec = full_bench.sh(gated(tmp_path, "exit 6"))
    started_run = full_bench.start(spec)
    poll = select.poll()
    poll.register(started_run.fileno(), select.POLLIN)
    full_bench.kill_shim(started_run, spec)
    assert poll.poll(60_000)
    assert started_run.poll() is None
    assert poll.poll(50) == []  # it must not spin while the command lives

    (tmp_path / "go").touch()
    wakeups = 0
    while started_run.poll() is None:
        assert poll.poll(60_000)
        wakeups += 1

    assert started_run.poll().code == 6 or not full_bench.abilities.pidfd_info
    assert wakeups < 40


@pytest.mark.parametrize("slow_seconds", [10.0, 0.0], ids=["a slow disk at the start", "a quick one"])
def test_a_command_whose_shim_was_killed_before_adoption_is_watched_to_its_end(bench, tmp_path, slow_seconds):
    spec = bench.sh(gated(tmp_path, "exit 6"))
    first = bench.start(spec)
    started = bench.folder(spec).started()
    late = {**started, "shim_started_at": started["shim_started_at"] - slow_seconds}
    atomic_files.write_json(spec.folder / "started.json", late)
    bench.kill_shim(first, spec)
    first.close()
    adopted = bench.adopt(spec)
    assert adopted.poll() is None
    assert processes.alive(started["command_pid"])
    (tmp_path / "go").touch()
    assert bench.end_of(adopted).unknown or bench.end_of(adopted).code == 6


def test_when_both_are_dead_without_a_record_the_exit_is_unknown(bench, tmp_path):
    spec = bench.sh(gated(tmp_path, "exit 6"))
    first = bench.start(spec)
    first.close()
    command = first.handle["command_pid"]
    bench.kill_shim(first, spec)
    os.kill(command, signal.SIGKILL)
    until(lambda: not processes.alive(command), 20, "the command to die")
    adopted = bench.adopt(spec)
    end = bench.end_of(adopted)
    assert (end.unknown, RunFolder(spec.folder).exit_record()["begun"]) == (True, True)
    assert "unknown" in str(end)


def test_what_a_killed_shim_leaves_is_found_by_its_environment_and_killed(bench, tmp_path):
    spec = bench.sh(f"setsid sleep 300 & echo $! > {tmp_path}/pid; {gated(tmp_path, 'exit 0')}")
    started_run = bench.start(spec)
    daemon = read_pid(tmp_path / "pid")
    bench.kill_shim(started_run, spec)
    (tmp_path / "go").touch()
    bench.end_of(started_run)
    assert not processes.alive(daemon)


def test_a_run_without_a_shim_can_still_be_stopped(bench):
    spec = bench.sh(DEAF, stop_grace=0.2)
    started_run = bench.start_ready(spec)
    bench.kill_shim(started_run, spec)
    bench.stop(started_run, spec)
    end = bench.end_of(started_run)
    assert (end.stopped_by, end.stop_reason) == ("kill", StopReason.WORKER)
    assert bench.folder(spec).exit_record()["stop_worker"] == "worker@here"
    assert bench.living(spec) == []


def test_a_shim_killed_at_its_gate_means_that_the_command_never_began(bench):
    spec = bench.sh("true")
    lock = atomic_files.create_once(spec.folder / "start", {"v": 1, "by": "shim", "pid": 4_000_000, "ticks": 1})
    os.close(lock)  # as when the shim dies between its start file and started.json
    adopted = bench.adopt(spec)
    assert "before the command began" in bench.end_of(adopted).error
    assert RunFolder(spec.folder).exit_record()["begun"] is False


def test_a_shim_that_is_slow_to_start_its_command_is_waited_for_and_then_watched(bench):
    spec = bench.sh("true")
    facts = {"pid": os.getpid(), "ticks": 1, "boot_id": bench.host.boot_id, "pid_ns": None, "run_id": spec.run_id}
    lock = atomic_files.create_once(spec.folder / "start", {"v": 1, "by": "shim", **facts})
    waits: list[float] = []
    deployer = bench.new_deployer()
    deployer.wait = waits.append
    adopted = bench.adopt(spec, deployer)
    assert sum(waits) == pytest.approx(2.0)
    assert adopted.poll() is None
    assert RunFolder(spec.folder).exit_record() is None
    os.close(lock)
    assert bench.end_of(adopted).error


# -- runs that cannot be held by a descriptor


def no_descriptors(monkeypatch, name="pidfd_open"):
    """As when the process has used up all that it may open."""
    asked = []

    def refuse(*args):
        asked.append(args)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, name, refuse)
    return lambda: len(asked) == 2


def no_start_time(monkeypatch):
    monkeypatch.setattr(syscalls, "start_ticks", lambda _pid: None)
    return lambda: True


@pytest.mark.parametrize("killed", [False, True], ids=["its shim lives", "its shim was killed"])
def test_a_run_of_a_plain_worker_is_adopted_alive_by_one_with_descriptors(full_bench, tmp_path, killed):
    spec = full_bench.sh(gated(tmp_path, "exit 6"))
    first = full_bench.new_deployer(abilities=Abilities.plain()).start(spec)
    if killed:
        full_bench.kill_shim(first, spec)
    first.close()
    adopted = full_bench.adopt(spec)
    assert adopted.poll() is None
    assert processes.alive(adopted.handle["command_pid"])
    assert killed or adopted.fileno() is None, "nothing would ring: it is asked each second"
    (tmp_path / "go").touch()
    end = full_bench.end_of(adopted)
    assert end.unknown if killed else end.code == 6


@pytest.mark.parametrize("lacks", [no_descriptors, no_start_time])
def test_a_run_outlives_its_adoption_by_a_worker_that_has(full_bench, tmp_path, monkeypatch, lacks):
    spec = full_bench.sh(gated(tmp_path, "exit 6"))
    full_bench.start(spec).close()
    was_met = lacks(monkeypatch)
    adopted = full_bench.adopt(spec)
    assert was_met()
    assert adopted.poll() is None
    if lacks is no_start_time:
        monkeypatch.undo()
    (tmp_path / "go").touch()
    assert full_bench.end_of(adopted).code == 6


def test_a_lock_that_cannot_be_looked_at_is_no_end(tmp_path, monkeypatch):
    path = tmp_path / "start"
    lock = atomic_files.create_once(path, {})
    no_descriptors(monkeypatch, "open")
    with pytest.raises(OSError, match="Too many open files"):
        atomic_files.locked(path)
    monkeypatch.undo()
    assert atomic_files.locked(path)
    os.close(lock)
    assert not atomic_files.locked(path)
    assert not atomic_files.locked(tmp_path / "none")


def test_a_record_without_a_pid_lets_no_signal_go_to_our_own_group(tmp_path):
    heard = []
    before = signal.signal(signal.SIGURG, lambda number, _frame: heard.append(number))
    lock = atomic_files.create_once(tmp_path / "start", {})
    try:
        handle = process_handles.by_lock(0, tmp_path / "start")
        assert handle.alive()
        handle.send(signal.SIGURG)
    finally:
        signal.signal(signal.SIGURG, before)
        os.close(lock)
    assert heard == []


def test_a_process_started_outside_the_span_is_another_one():
    us = psutil.Process().create_time()
    assert process_handles.by_start_time(os.getpid(), us - 60, us).alive()
    assert not process_handles.by_start_time(os.getpid(), us - 60, us - 10).alive()
    assert not process_handles.by_start_time(os.getpid(), us + 10, us + 60).alive()


# -- pids that mean nothing any more


def test_a_reused_pid_is_not_taken_for_the_run(full_bench):
    spec = full_bench.sh("true")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        facts = {"pid": stranger.pid, "ticks": 1, "boot_id": full_bench.host.boot_id, "pid_ns": full_bench.host.pid_ns}
        started = {"command_pid": stranger.pid, "command_ticks": 1, "run_id": spec.run_id, "claim": spec.claim}
        os.close(atomic_files.create_once(spec.folder / "start", {"v": 1, "by": "shim", **facts}))
        atomic_files.write_json(spec.folder / "started.json", {"v": 1, **facts, **started})

        adopted = full_bench.adopt(spec)
        adopted.stop()
        end = full_bench.end_of(adopted)

        assert end.unknown
        assert stranger.poll() is None
        stranger.kill()


def test_after_a_restart_of_the_host_pids_are_void(bench, tmp_path):
    spec = bench.sh(gated(tmp_path, "exit 0"))
    started_run = bench.start(spec)
    bench.host = replace(bench.host, boot_id="another")
    later = bench.new_deployer()
    adopted = bench.adopt(spec, later)
    end = bench.end_of(adopted)
    adopted.kill()
    assert end.unknown
    assert "its host restarted while it ran" in str(end)
    assert started_run.poll() is None or started_run.poll().stopped_by is None


def test_after_a_restart_of_the_host_a_recorded_exit_still_counts(bench):
    spec = bench.sh("exit 8")
    bench.run(spec)
    bench.host = replace(bench.host, boot_id="another")
    assert bench.end_of(bench.adopt(spec, bench.new_deployer())).code == 8


def test_a_run_of_another_pid_namespace_is_judged_by_its_lock_and_never_signalled(full_bench, tmp_path):
    spec = full_bench.sh(gated(tmp_path, "exit 2"))
    full_bench.start(spec)
    full_bench.host = replace(full_bench.host, pid_ns=1)
    foreign = full_bench.adopt(spec, full_bench.new_deployer())
    foreign.kill()
    assert foreign.poll() is None
    (tmp_path / "go").touch()
    end = full_bench.end_of(foreign)
    assert (end.code, end.stopped_by) == (2, None)


def test_a_process_that_may_not_be_signalled_keeps_no_other_from_its_signal(monkeypatch):
    """A run may have started something as another user."""
    sent = []

    def kill(pid, number):
        if pid == 11:
            raise PermissionError(1, "not yours")
        sent.append(pid)

    monkeypatch.setattr(process_handles, "members", lambda *_a, **_k: [11, 12, 13])
    monkeypatch.setattr(os, "kill", kill)
    assert process_handles.signal_members("run", "claim", signal.SIGKILL, session=1, group=1) == 2
    assert sorted(sent) == [12, 13]
