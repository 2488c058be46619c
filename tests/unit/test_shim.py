"""The shim: true exits, stops, leftovers and start failures, with all abilities and in plain mode."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowfleet.errors import StartFailed
from tests.bench_of_runs import BenchOfRuns, new_fork_client
from tests.waiting import until
from workers.host import Abilities
from workers.shim import syscalls
from workers.state.run_folders import RunFolder

ROOT = Path(__file__).parents[2]
FULL = Abilities.probe({})
IGNORES_TERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""


@pytest.fixture(scope="module")
def fork_client():
    fork_client = new_fork_client()
    yield fork_client
    fork_client.close()


@pytest.fixture(params=[FULL, Abilities.plain()], ids=["full", "plain"])
def bench(request, tmp_path, fork_client):
    bench = BenchOfRuns(tmp_path, request.param, fork_client)
    yield bench
    bench.close()


@pytest.fixture
def full_bench(tmp_path, fork_client):
    if not FULL.subreaper:
        pytest.skip("this platform has no subreaper")
    bench = BenchOfRuns(tmp_path, FULL, fork_client)
    yield bench
    bench.close()


def read_pid(path: Path) -> int:
    return int(until(lambda: path.exists() and path.read_text().strip(), 20, f"a pid in {path.name}"))


def is_alive(pid: int) -> bool:
    fields = syscalls.stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


# -- exits


@pytest.mark.parametrize("code", [0, 7, 137])
def test_an_exit_code_is_the_true_one(bench, code):
    end = bench.run(bench.sh(f"exit {code}"))

    assert (end.code, end.signal, end.unknown, end.stopped_by) == (code, None, False, None)
    assert end.ok is (code == 0)


def test_death_by_kill_is_told_apart_from_exit_137(bench):
    end = bench.run(bench.sh("kill -9 $$"))

    assert (end.code, end.signal, end.stopped_by) == (None, signal.SIGKILL, None)


def test_a_record_tells_times_memory_and_cpu(bench):
    end = bench.run(bench.python("x = bytearray(50_000_000); sum(range(3_000_000))"))

    assert end.started_at <= end.ended_at
    assert 48_000 < end.max_rss_kib < 500_000
    assert 0 < end.cpu_seconds < 60


def test_the_last_ten_lines_come_with_the_exit(bench):
    end = bench.run(bench.sh("seq 1 30; echo to stderr >&2; exit 1"))

    assert end.last_lines == (*map(str, range(22, 31)), "to stderr")


# -- what the command finds


def test_the_command_starts_in_an_empty_folder_of_its_own_that_is_gone_at_the_end(bench):
    spec = bench.sh("pwd; ls -A | wc -l; touch here")

    end = bench.run(spec)

    assert end.last_lines == (str(spec.folder / "work"), "0")
    assert not (spec.folder / "work").exists()


def test_the_command_starts_in_the_folder_that_was_asked_for(bench, tmp_path):
    end = bench.run(bench.sh("pwd", cwd=str(tmp_path)))

    assert end.last_lines == (str(tmp_path),)
    assert tmp_path.exists()


def test_the_command_has_default_signal_handlers_an_empty_mask_and_no_foreign_descriptors(bench):
    end = bench.run(bench.sh("grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | tr '\\n' ' '"))

    # 32 and 33 are glibc's own: nobody can change them, and make leaves them ignored
    ours = ~(0b11 << 31)
    assert [int(line.split()[-1], 16) & ours for line in end.last_lines[:2]] == [0, 0]
    assert end.last_lines[2].split() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


def test_a_child_of_the_command_can_wait_for_its_own_children(bench):
    # an ignored SIGCHLD is inherited, and turns each `false` into a success
    end = bench.run(bench.python("import subprocess; raise SystemExit(subprocess.call(['false']))"))

    assert end.code == 1


def test_the_command_leads_a_group_of_its_own_in_the_session_of_its_shim(full_bench):
    started_run = full_bench.start(full_bench.sh("sleep 60"))
    handle = started_run.handle

    assert os.getpgid(handle["command_pid"]) == handle["command_pid"]
    assert os.getsid(handle["command_pid"]) == handle["pid"]
    assert os.getsid(handle["pid"]) == handle["pid"]
    started_run.kill()
    full_bench.end_of(started_run)


def test_the_kernel_takes_the_command_before_its_shim_when_memory_runs_out(full_bench):
    started_run = full_bench.start(full_bench.sh("sleep 60"))
    handle = started_run.handle
    score = {name: int(Path(f"/proc/{handle[name]}/oom_score_adj").read_text()) for name in ("pid", "command_pid")}

    assert score["command_pid"] > score["pid"]
    started_run.kill()
    full_bench.end_of(started_run)


def test_a_shim_can_be_told_by_its_name_and_its_run(full_bench):
    spec = full_bench.sh("sleep 60")
    started_run = full_bench.start(spec)
    pid = started_run.handle["pid"]

    assert Path(f"/proc/{pid}/comm").read_text() == "flowfleet-shim\n"
    assert spec.run_id in Path(f"/proc/{pid}/cmdline").read_text()
    started_run.kill()
    full_bench.end_of(started_run)


def test_the_environment_is_in_no_file_and_in_no_arguments(full_bench):
    spec = full_bench.sh("sleep 60", env={"SECRET": "hush-4711"})
    started_run = full_bench.start(spec)
    handle = started_run.handle
    shown = Path(f"/proc/{handle['pid']}/cmdline").read_bytes() + Path(f"/proc/{handle['pid']}/environ").read_bytes()
    started_run.kill()
    full_bench.end_of(started_run)

    on_disk = b"".join(path.read_bytes() for path in spec.folder.rglob("*") if path.is_file())
    assert b"hush-4711" not in shown + on_disk
    assert b"hush-4711" not in Path(f"/proc/{full_bench.fork_client.pid}/environ").read_bytes()


# -- stops


def test_a_polite_stop_ends_the_command_by_term(bench):
    started_run = bench.start(bench.sh("exec sleep 60"))

    started_run.stop()
    end = bench.end_of(started_run)

    assert (end.signal, end.stopped_by) == (signal.SIGTERM, "term")


def test_a_command_that_cleans_up_at_term_keeps_its_code(bench):
    spec = bench.sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    started_run = bench.start(spec)
    until(lambda: b"ready" in (spec.folder / "log").read_bytes(), 20, "the trap to be set")

    started_run.stop()
    end = bench.end_of(started_run)

    assert (end.code, end.stopped_by) == (5, "term")


def test_a_command_that_ignores_term_is_killed_after_the_grace(bench):
    spec = bench.python(IGNORES_TERM, stop_grace=0.3)
    started_run = bench.start(spec)
    until(lambda: b"ready" in (spec.folder / "log").read_bytes(), 20, "the trap to be set")

    started_run.stop()
    end = bench.end_of(started_run)

    assert (end.signal, end.stopped_by) == (signal.SIGKILL, "kill")
    assert end.ended_at - end.started_at >= 0.3


@pytest.mark.parametrize("nice", [0, 3, 19])
def test_a_run_is_as_much_nicer_than_its_worker_as_its_limits_say(bench, nice):
    spec = bench.python("import os; print(os.nice(0))", nice=nice)
    assert bench.run(spec).last_lines == (str(min(19, os.nice(0) + nice)),)


def test_kill_does_not_wait_for_a_grace(bench):
    spec = bench.python(IGNORES_TERM, stop_grace=600.0)
    started_run = bench.start(spec)
    until(lambda: b"ready" in (spec.folder / "log").read_bytes(), 20, "the trap to be set")
    started_run.stop()

    started_run.kill()
    end = bench.end_of(started_run)

    assert (end.signal, end.stopped_by) == (signal.SIGKILL, "kill")


def test_a_stop_goes_on_when_the_worker_dies_half_way(bench):
    spec = bench.python(IGNORES_TERM, stop_grace=0.5)
    started_run = bench.start(spec)
    until(lambda: b"ready" in (spec.folder / "log").read_bytes(), 20, "the trap to be set")

    started_run.stop()
    started_run.close()
    bench.fork_client.close()
    end = bench.end_of(bench.adopt(spec))

    assert (end.signal, end.stopped_by) == (signal.SIGKILL, "kill")


# -- leftovers


def test_a_grandchild_is_killed_when_the_command_has_ended(bench, tmp_path):
    end = bench.run(bench.sh("sleep 300 & echo $! > ../../../pid; exit 3"))

    assert end.code == 3
    assert end.leftovers == 1
    assert not is_alive(read_pid(tmp_path / "pid"))


def test_a_grandchild_without_environment_is_killed_with_its_group(bench, tmp_path):
    spec = bench.sh("env -i sleep 300 & echo $! > ../../../pid; exit 3")
    bench.run(spec)

    assert not is_alive(read_pid(tmp_path / "pid"))
    assert bench.folder(spec).cleared()  # by the shim itself, not by the worker's search


def test_a_daemon_that_left_session_and_parent_is_killed_too(bench, tmp_path):
    script = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("../../../pid", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(300)
    os._exit(0)
os.wait()
while not os.path.exists("../../../pid"):
    time.sleep(0.01)
"""
    end = bench.run(bench.python(script))

    assert end.code == 0
    assert not is_alive(read_pid(tmp_path / "pid"))


def test_a_stop_reaches_the_whole_tree(bench, tmp_path):
    started_run = bench.start(bench.sh("sleep 300 & echo $! > ../../../pid; wait"))
    child = read_pid(tmp_path / "pid")

    started_run.stop()
    bench.end_of(started_run)

    assert not is_alive(child)


def test_orphans_are_reaped_while_the_run_goes_on(full_bench, tmp_path):
    started_run = full_bench.start(full_bench.sh("(sh -c 'echo $$ > ../../../pid' &); sleep 60"))
    orphan = read_pid(tmp_path / "pid")

    until(lambda: syscalls.stat_fields(orphan) is None, 20, "the orphan to be reaped")
    started_run.kill()
    full_bench.end_of(started_run)


# -- what never begins


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-command"], "no command no-such-command on this host's PATH"),
        (["/no/such/command"], "there is no /no/such/command on this host"),
        (["/etc/passwd"], "no permission to execute /etc/passwd"),
        (["{tmp}/lost"], "the interpreter that the first line of {tmp}/lost names does not exist"),
        (["{tmp}/strange"], "{tmp}/strange is no program that this host can execute"),
        (["sh", "zero\0byte"], "zero byte"),
    ],
)
def test_a_command_that_cannot_be_executed_is_named(bench, tmp_path, argv, says):
    for name, text in {"lost": "#!/no/such/interpreter\n", "strange": "\x01\x02\x03\x04"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    spec = bench.spec(*(word.format(tmp=tmp_path) for word in argv))

    with pytest.raises(StartFailed) as failure:
        bench.start(spec)

    assert says.format(tmp=tmp_path) in str(failure.value)
    assert spec.run_id in str(failure.value)
    adopted = bench.adopt(spec)
    assert adopted.begun() is False
    assert says.format(tmp=tmp_path) in bench.end_of(adopted).error


@pytest.mark.parametrize(("cwd", "says"), [("/no/such/folder", "does not exist"), ("/etc/passwd", "is not a folder")])
def test_a_working_folder_that_cannot_be_entered_is_named(bench, cwd, says):
    with pytest.raises(StartFailed) as failure:
        bench.start(bench.sh("true", cwd=cwd))

    # which host it is matters: the others may have that folder
    assert f"its working folder {cwd} {says} on {bench.host.name}." in str(failure.value)


def test_a_run_whose_folder_is_gone_does_not_begin(bench, tmp_path):
    spec = bench.sh(f"touch {tmp_path}/began")
    bench.folder(spec).remove()

    with pytest.raises(StartFailed, match="cannot be written"):
        bench.start(spec)
    assert not (tmp_path / "began").exists()


def test_a_start_after_its_time_does_not_begin_and_says_so_for_ever(bench, tmp_path):
    spec = bench.sh(f"touch {tmp_path}/began", not_after=syscalls.boot_clock() - 0.001)

    with pytest.raises(StartFailed, match="too late"):
        bench.start(spec)

    assert bench.adopt(spec) is None
    assert not (tmp_path / "began").exists()
    assert (spec.folder / "start").exists()


def test_a_start_before_its_time_begins(bench):
    assert bench.run(bench.sh("exit 4", not_after=syscalls.boot_clock() + 60)).code == 4


def test_an_abandoned_folder_starts_nothing(bench, tmp_path):
    spec = bench.sh(f"touch {tmp_path}/began")
    assert bench.adopt(spec) is None

    with pytest.raises(StartFailed):
        bench.start(spec)
    assert not (tmp_path / "began").exists()
    assert json.loads((spec.folder / "start").read_text())["by"] == "abandoned"


def test_of_many_starters_of_one_folder_one_starts(bench, tmp_path):
    spec = bench.sh(f"echo began >> {tmp_path}/began; sleep 0.2")
    got: list[object] = []
    barrier = threading.Barrier(4)

    def start():
        barrier.wait()
        got.append(bench.start(spec))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {bench.end_of(started_run).code for started_run in got} == {0}
    assert len({started_run.handle["command_pid"] for started_run in got}) == 1
    assert (tmp_path / "began").read_text() == "began\n"


def test_an_adopter_and_a_starter_never_both_win(full_bench, tmp_path):
    for round_ in range(20):
        spec = full_bench.sh(f"touch {tmp_path}/began{round_}")
        barrier = threading.Barrier(2)
        abandoned: list[bool] = []

        def abandon(spec=spec, barrier=barrier, abandoned=abandoned):
            barrier.wait()
            abandoned.append(full_bench.folder(spec).abandon("a test"))

        thread = threading.Thread(target=abandon)
        thread.start()
        barrier.wait()
        with contextlib.suppress(StartFailed):
            full_bench.run(spec)
        thread.join()
        assert (tmp_path / f"began{round_}").exists() is not abandoned[0]


# -- output


def test_ten_megabytes_are_cut_to_the_cap_with_the_newest_kept_and_no_line_torn(bench):
    spec = bench.python("for i in range(400_000): print(f'line {i:015d}')", log_limit=1 << 20)

    end = bench.run(spec)

    kept = (spec.folder / "log").read_bytes().lstrip(b"\0").decode().splitlines()
    assert 40_000 < len(kept) <= (1 << 20) / 21 + 1
    assert kept == [f"line {i:015d}" for i in range(400_000 - len(kept), 400_000)]
    assert end.last_lines[-1] == "line 000000000399999"
    assert (spec.folder / "log").stat().st_blocks * 512 <= (1 << 20) + 65536


def test_files_of_a_run_are_for_its_owner_only(bench):
    spec = bench.sh("echo hello")
    bench.run(spec)

    for path in (spec.folder, *spec.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_a_run_whose_folder_is_removed_under_it_leaves_no_process(full_bench):
    spec = full_bench.sh("sleep 0.3; sleep 300 & exit 0")
    started_run = full_bench.start(spec)
    pid = started_run.handle["pid"]
    full_bench.folder(spec).remove()

    until(lambda: not is_alive(pid), 10, "the shim to end")
    assert full_bench.living(spec) == []


# -- a shim in a process of the test's own, on a host that is made to say this or that

LONE_SHIM = """
import errno, json, os, pathlib, socket, sys, time
from workers.shim import framing, run, syscalls

folder, mode, script = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
{given}
os.setsid()
abilities = {{name: mode == "full" for name in ("proc", "subreaper", "holes")}}
request = {{
    "run_id": "run", "claim": "claim", "folder": str(folder), "argv": ["sh", "-c", script], "env": dict(os.environ),
    "path": os.environ["PATH"], "cwd": None, "umask": 0o22, "not_after": None,
    "limits": {{"log_limit": 1, "stop_grace": 1.0, "nice": 0}}, "handle": {{}}, "abilities": abilities,
}}
ours, theirs = socket.socketpair()
began = time.monotonic()
run.Shim(request, theirs, run._catch_signals()).run()
print(json.dumps({{"answer": framing.receive(ours), "seconds": time.monotonic() - began}}))
"""


def lone_shim(folder: Path, mode: str, script: str, given: str) -> dict:
    """What it answers, the seconds that it took, and its exit record."""
    code = LONE_SHIM.format(given=given)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), mode, script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return {**(RunFolder(folder).exit_record() or {}), **json.loads(done.stdout)}


NO_ROOM = """
from workers.shim import process_tree
process_tree._CLEAR_SECONDS = 60.0
def fork():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
"""


@pytest.mark.parametrize("mode", ["full", "plain"])
def test_a_host_without_room_for_one_more_process_is_told_as_such_and_at_once(tmp_path, mode):
    record = lone_shim(tmp_path, mode, "true", NO_ROOM)

    sentence = f"no process could be forked for it: {os.strerror(errno.EAGAIN)}"
    assert record["answer"] == {"status": "failed", "error": sentence}
    assert (record["begun"], record["error"]) == (False, sentence)
    assert RunFolder(tmp_path).cleared()
    assert record["seconds"] < 30, "nothing to wait for: in plain mode a group 0 would be its own"


#: the kernel's count of what it has killed for want of memory, as the test has it in a file
COUNTED = """
syscalls.oom_kills = lambda: int((folder / "oom").read_text())
"""


@pytest.mark.parametrize(
    ("before", "script", "oom"),
    [
        ("3", "echo 4 > {oom}; kill -9 $$", True),
        ("3", "kill -9 $$", False),
        ("3", "echo 4 > {oom}; kill -15 $$", False),
        ("3", "echo 4 > {oom}; exit 137", False),
        ("-1", "kill -9 $$", False),
        ("-1", "echo 4 > {oom}; kill -9 $$", False),
    ],
    ids=["it has killed", "it has not", "another signal", "a code", "it does not say", "it did not say before"],
)
def test_a_death_by_kill_is_the_kernels_if_it_has_killed_meanwhile(tmp_path, before, script, oom):
    (tmp_path / "oom").write_text(before)
    record = lone_shim(tmp_path, "full", script.format(oom=tmp_path / "oom"), COUNTED)

    assert record["oom"] is oom


def test_a_look_at_the_count_between_the_kernels_kill_and_the_end_does_not_hide_it(tmp_path):
    (tmp_path / "oom").write_text("3")
    # it has killed, and the end comes some looks later: a large process takes its time to go
    script = f"echo 4 > {tmp_path}/oom; while [ ! -e {tmp_path}/looked ]; do sleep 0.01; done; kill -9 $$"
    looks = """
run._TICK_SECONDS = 1.0
def count():
    told = int((folder / "oom").read_text())
    if told == 4:
        (folder / "looked").touch()
    return told
syscalls.oom_kills = count
"""
    record = lone_shim(tmp_path, "full", script, looks)

    assert record["oom"] is True
