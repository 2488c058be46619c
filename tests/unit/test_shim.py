"""The shim: true exits, stops, leftovers and start failures, with all abilities and in plain mode."""

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowfleet.errors import FolderMissing, StartFailed
from tests import processes
from tests.bench_of_runs import DEAF, read_pid
from tests.waiting import stays, until
from workers.deployment import StopReason
from workers.shim import spawn, syscalls
from workers.state.run_folders import RunFolder
from workers.stop import Stop

ROOT = Path(__file__).parents[2]


# -- exits


@pytest.mark.parametrize(
    ("script", "code", "killed_by"),
    [("exit 0", 0, None), ("exit 7", 7, None), ("exit 137", 137, None), ("kill -9 $$", None, signal.SIGKILL)],
)
def test_an_exit_code_or_a_signal_is_the_true_one(bench, script, code, killed_by):
    end = bench.run(bench.sh(script))
    assert (end.code, end.signal, end.unknown, end.stopped_by) == (code, killed_by, False, None)
    assert end.ok is (code == 0)


def test_a_record_tells_times_memory_cpu_and_the_last_ten_lines(bench):
    end = bench.run(bench.python("x = bytearray(50_000_000); sum(range(3_000_000))"))
    assert end.started_at <= end.ended_at
    assert 48_000 < end.max_rss_kib < 500_000
    assert 0 < end.cpu_seconds < 60

    end = bench.run(bench.sh("seq 1 30; echo to stderr >&2; exit 1"))
    assert end.last_lines == (*map(str, range(22, 31)), "to stderr")


# -- what the command finds


def test_the_command_starts_in_an_empty_folder_of_its_own_that_is_gone_once_it_is_settled_or_where_it_was_asked_to(
    bench, tmp_path
):
    spec = bench.sh("pwd; ls -A | wc -l; touch here")
    assert bench.run(spec).last_lines == (str(spec.folder / "work"), "0")
    # its hooks may run there after its end
    assert (spec.folder / "work" / "here").exists()
    bench.folder(spec).settle()
    assert not (spec.folder / "work").exists()
    assert bench.run(bench.sh("pwd", cwd=str(tmp_path))).last_lines == (str(tmp_path),)
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


def test_a_shim_can_be_told_by_its_name_and_its_run_and_outlives_its_command_in_a_group_of_its_own(full_bench):
    spec = full_bench.sh("sleep 60")
    handle = full_bench.start(spec).handle
    shim, command = handle["pid"], handle["command_pid"]
    assert Path(f"/proc/{shim}/comm").read_text() == "flowfleet-shim\n"
    assert spec.run_id in Path(f"/proc/{shim}/cmdline").read_text()
    assert os.getpgid(command) == command
    assert os.getsid(command) == os.getsid(shim) == shim
    # the kernel takes the command first when memory runs out
    score = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (shim, command)}
    assert score[command] > score[shim]


def test_the_environment_is_in_no_file_and_in_no_arguments(full_bench):
    spec = full_bench.sh("sleep 60", env={"SECRET": "hush-4711"})
    started_run = full_bench.start(spec)
    handle = started_run.handle
    shown = Path(f"/proc/{handle['pid']}/cmdline").read_bytes() + Path(f"/proc/{handle['pid']}/environ").read_bytes()
    on_disk = b"".join(path.read_bytes() for path in spec.folder.rglob("*") if path.is_file())
    assert b"hush-4711" not in shown + on_disk
    assert b"hush-4711" not in Path(f"/proc/{full_bench.fork_client.pid}/environ").read_bytes()


# -- stops


def politely(bench, started_run, spec):
    bench.stop(started_run, spec)
    return started_run


def at_once(bench, started_run, spec):
    bench.stop(started_run, spec)
    bench.stop(started_run, spec, kill=True)
    return started_run


def by_a_worker_that_dies(bench, started_run, spec):
    bench.stop(started_run, spec)
    started_run.close()
    bench.fork_client.close()
    return bench.adopt(spec)


TIDY = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("script", "grace", "stop", "told", "seconds"),
    [
        pytest.param("echo ready; exec sleep 60", 60.0, politely, (None, signal.SIGTERM, "term"), 0, id="by TERM"),
        pytest.param(TIDY, 60.0, politely, (5, None, "term"), 0, id="by TERM, and it keeps its code"),
        pytest.param(DEAF, 0.3, politely, (None, signal.SIGKILL, "kill"), 0.3, id="by KILL after its grace"),
        pytest.param(DEAF, 600.0, at_once, (None, signal.SIGKILL, "kill"), 0, id="by a kill, without its grace"),
        pytest.param(
            DEAF, 0.5, by_a_worker_that_dies, (None, signal.SIGKILL, "kill"), 0.5, id="also when its worker has died"
        ),
    ],
)
def test_a_command_is_stopped(bench, script, grace, stop, told, seconds):
    spec = bench.sh(script, stop_grace=grace)
    end = bench.end_of(stop(bench, bench.start_ready(spec), spec))
    assert (end.code, end.signal, end.stopped_by) == told
    assert end.ended_at - end.started_at >= seconds
    # whoever reads the record, at whatever time
    record = bench.folder(spec).exit_record()
    assert (record["stop_reason"], record["stop_worker"]) == ("worker-stopped", "worker@here")
    assert "was stopped with its worker worker@here" in str(end)


def test_a_stop_goes_on_where_the_shim_is_killed_in_the_middle_of_it(full_bench):
    spec = full_bench.sh(DEAF, stop_grace=0.3)
    started_run = full_bench.start_ready(spec)
    pid = started_run.handle["command_pid"]
    full_bench.folder(spec).write_stop(Stop(reason=StopReason.CANCEL), "worker@here")
    full_bench.kill_shim(started_run, spec)
    assert processes.alive(pid)
    end = full_bench.end_of(started_run)
    assert (end.stopped_by, processes.alive(pid)) == ("kill", False)


@pytest.mark.parametrize(("reason", "ends"), [(StopReason.WORKER, False), (StopReason.CANCEL, True)])
def test_what_a_worker_before_was_about_to_stop_lives_on_when_its_shim_dies_unless_it_was_cancelled(
    full_bench, reason, ends
):
    """That worker was killed between the file and its signal, and the next one has adopted the run."""
    spec = full_bench.sh(DEAF, stop_grace=0.3)
    pid = full_bench.start_ready(spec).handle["command_pid"]
    full_bench.folder(spec).write_stop(Stop(reason=reason, kill=True), "worker@before")
    adopted = full_bench.deployer.adopt(spec.folder)
    full_bench.kill_shim(adopted, spec)
    if ends:
        full_bench.end_of(adopted)
    else:
        stays(lambda: adopted.poll() is None, 1.0, "the run to go on")
    assert processes.alive(pid) is not ends
    processes.kill(pid)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGALRM", "SIGHUP"])
def test_a_signal_to_its_parent_by_a_run_is_counted_and_ignored(bench, name):
    spec = bench.python(f"import os, signal\nos.kill(os.getppid(), signal.{name})\nraise SystemExit(4)")
    end = bench.run(spec)
    assert (end.code, end.unknown, end.stopped_by) == (4, False, None)
    assert end.ignored == ({name: 1} if name != "SIGHUP" else {})


@pytest.mark.parametrize("reason", ['{"v": 1, "reason": "worker-stopped", "claim": "another"}', "{", "[]"])
def test_a_reason_that_is_not_for_this_claim_is_none(bench, reason):
    spec = bench.sh("echo ready; read _ < ../../../gate; exit 4")
    os.mkfifo(bench.path / "gate")
    started_run = bench.start_ready(spec)
    (spec.folder / "stop.json").write_text(reason)
    os.kill(started_run.handle["pid"], signal.SIGTERM)
    with (bench.path / "gate").open("w") as gate:
        gate.write("go\n")
    end = bench.end_of(started_run)
    assert (end.code, end.stopped_by, end.ignored) == (4, None, {"SIGTERM": 1})


@pytest.mark.parametrize("nice", [0, 3, 19])
def test_a_run_is_as_much_nicer_than_its_worker_as_its_limits_say(bench, nice):
    spec = bench.python("import os; print(os.nice(0))", nice=nice)
    assert bench.run(spec).last_lines == (str(min(19, os.nice(0) + nice)),)


def test_a_worker_of_before_an_upgrade_has_its_limits_in_the_request_itself():
    assert spawn.limits_of({"log_limit": 1, "stop_grace": 2.0})["stop_grace"] == 2.0
    assert spawn.limits_of({"limits": {"log_limit": 1}}) == {"log_limit": 1}


# -- leftovers


@pytest.mark.parametrize(
    ("script", "in_its_group"),
    [
        pytest.param("sleep 300 & echo $! > ../../../pid; exit 3", True, id="a grandchild"),
        pytest.param("env -i sleep 300 & echo $! > ../../../pid; exit 3", True, id="one without environment"),
        pytest.param("setsid sh -c 'sleep 300 & echo $! > ../../../pid'; exit 3", False, id="a daemon without parent"),
    ],
)
def test_what_a_command_leaves_is_killed_when_it_has_ended(bench, tmp_path, script, in_its_group):
    spec = bench.sh(script)
    end = bench.run(spec)
    assert end.code == 3
    assert not processes.alive(read_pid(tmp_path / "pid"))
    if in_its_group or bench.abilities.subreaper:
        assert end.leftovers == 1
        assert bench.folder(spec).cleared()  # by the shim itself, not by the worker's search


def test_a_stop_reaches_the_whole_tree(bench, tmp_path):
    spec = bench.sh("sleep 300 & echo $! > ../../../pid; wait")
    started_run = bench.start(spec)
    child = read_pid(tmp_path / "pid")
    bench.stop(started_run, spec)
    bench.end_of(started_run)
    assert not processes.alive(child)


def test_orphans_are_reaped_while_the_run_goes_on(full_bench, tmp_path):
    full_bench.start(full_bench.sh("(sh -c 'echo $$ > ../../../pid' &); sleep 60"))
    orphan = read_pid(tmp_path / "pid")
    until(lambda: syscalls.stat_fields(orphan) is None, 20, "the orphan to be reaped")


# -- what never begins


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-command"], "no command no-such-command on this host's PATH"),
        (["/no/such/command"], "there is no /no/such/command on this host"),
        (["/etc/passwd"], "no permission to execute /etc/passwd"),
        (["{tmp}/lost"], "the interpreter that the first line of {tmp}/lost names does not exist"),
        (["{tmp}/strange"], "{tmp}/strange is no program that this host can execute"),
        (["sh", "zero\0byte"], "its command has a character in it that no process can be given"),
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
    assert RunFolder(spec.folder).exit_record()["begun"] is False
    assert says.format(tmp=tmp_path) in bench.end_of(adopted).error


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"A=B": "hunter2"}, "the name of its variable A=… has a = in it; give name and value apart"),
        ({"TOKEN=hunter2": ""}, "the name of its variable TOKEN=… has a = in it"),
        ({"": "hunter2"}, "one of its variables has no name"),
        (
            {"A": "hunter2\0"},
            "its variable A has a character in its value that no process can be given",
        ),
        ({"A": "hunter2\ud800"}, "its variable A has a character in its value that no process can be given"),
        ({"A\0B": "hunter2"}, r"the name of its variable A\x00B has a character in it that no process can be given"),
    ],
)
def test_a_variable_that_no_process_can_have_is_named_without_its_value(bench, env, says):
    spec = bench.spec("true", env=env)
    with pytest.raises(StartFailed) as failure:
        bench.start(spec)
    assert says in str(failure.value)
    assert "hunter2" not in str(failure.value)
    assert "hunter2" not in json.dumps(RunFolder(spec.folder).exit_record())


@pytest.mark.parametrize(
    ("cwd", "says"),
    [
        ("/no/such/folder", "/no/such/folder does not exist"),
        ("/etc/passwd", "/etc/passwd is not a folder"),
        ("no/such", "{here}/no/such does not exist"),
        ("~/flows", "{here}/~/flows does not exist"),
    ],
)
def test_a_working_folder_that_cannot_be_entered_is_named_as_it_was_tried(bench, monkeypatch, tmp_path, cwd, says):
    monkeypatch.chdir(tmp_path)
    bench.deployer = bench.new_deployer()
    (tmp_path / "elsewhere" / "no" / "such").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FolderMissing) as failure:
        bench.start(bench.sh("true", cwd=cwd))
    # which host it is matters: the others may have that folder
    assert f"its working folder {says.format(here=tmp_path)} on {bench.host.name}." in str(failure.value)


def test_a_relative_working_folder_begins_where_the_worker_was_started(bench, monkeypatch, tmp_path):
    (tmp_path / "flows" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "flows")
    bench.deployer = bench.new_deployer()
    monkeypatch.chdir("/")
    for cwd, place in {"deep": "flows/deep", ".": "flows", "..": ""}.items():
        assert bench.run(bench.sh("pwd -P", cwd=cwd)).last_lines == (str(tmp_path / place),)


@pytest.mark.parametrize(
    ("spoil", "late", "says"),
    [
        pytest.param(lambda bench, spec: bench.folder(spec).remove(), 60, "cannot be written", id="gone"),
        pytest.param(lambda bench, spec: None, -0.001, "too late", id="past its time, and it says so for ever"),
        pytest.param(lambda bench, spec: bench.adopt(spec), 60, None, id="abandoned"),
    ],
)
def test_a_run_does_not_begin_in_a_folder_that_is(bench, tmp_path, spoil, late, says):
    spec = bench.sh(f"touch {tmp_path}/began", not_after=syscalls.boot_clock() + late)
    assert spoil(bench, spec) is None
    there = spec.folder.exists()
    with pytest.raises(StartFailed, match=says):
        bench.start(spec)
    assert not (tmp_path / "began").exists()
    if there:
        assert json.loads((spec.folder / "start").read_text())["by"] == ("abandoned" if late > 0 else "shim")
        assert bench.adopt(spec) is None


def test_a_start_before_its_time_begins(bench):
    assert bench.run(bench.sh("exit 4", not_after=syscalls.boot_clock() + 60)).code == 4


def test_of_many_starters_of_one_folder_one_starts(bench, tmp_path):
    spec = bench.sh(f"echo began >> {tmp_path}/began; sleep 0.2")
    barrier = threading.Barrier(4)

    def start(_number):
        barrier.wait()
        return bench.start(spec)

    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(start, range(4)))
    assert {bench.end_of(started_run).code for started_run in got} == {0}
    assert len({started_run.handle["command_pid"] for started_run in got}) == 1
    assert (tmp_path / "began").read_text() == "began\n"


def test_an_adopter_and_a_starter_never_both_win(full_bench, tmp_path):
    barrier = threading.Barrier(2)

    def abandon(spec):
        barrier.wait()
        return full_bench.folder(spec).abandon("a test")

    with ThreadPoolExecutor(1) as thread:
        for round_ in range(20):
            spec = full_bench.sh(f"touch {tmp_path}/began{round_}")
            abandoned = thread.submit(abandon, spec)
            barrier.wait()
            with contextlib.suppress(StartFailed):
                full_bench.run(spec)
            assert (tmp_path / f"began{round_}").exists() is not abandoned.result()


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
    until(lambda: not processes.alive(pid), 10, "the shim to end")
    assert full_bench.living(spec) == []


# -- a shim in a process of the test's own, on a host that is made to say this or that

LONE_SHIM = """
import errno, json, os, pathlib, socket, sys, time
from workers.shim import framing, run, signal_pipe, syscalls

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
run.Shim(request, theirs, signal_pipe.catch_signals()).run()
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


HELD_UP = """
from workers.shim import process_tree
process_tree._CLEAR_SECONDS = -1.0
"""


def test_a_shim_that_is_held_up_at_the_end_of_its_run_still_kills_what_the_run_has_left(tmp_path):
    pid = tmp_path / "left"
    leaves = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & while [ ! -s {pid} ]; do sleep 0.01; done"
    lone_shim(tmp_path, "full", leaves, HELD_UP)
    until(lambda: not processes.alive(read_pid(pid)), 10, "the kill to do its work")


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
        ("-1", "kill -9 $$", None),
        ("-1", "echo 4 > {oom}; kill -9 $$", None),
    ],
    ids=["it has killed", "it has not", "another signal", "a code", "it does not say", "it did not say before"],
)
def test_a_death_by_kill_may_be_the_kernels_if_it_has_killed_on_this_host_meanwhile(tmp_path, before, script, oom):
    (tmp_path / "oom").write_text(before)
    record = lone_shim(tmp_path, "full", script.format(oom=tmp_path / "oom"), COUNTED)
    assert (record["oom"], record["oom_on_host"]) == (False, oom), "the host's count is no proof"


def test_a_look_at_the_count_between_the_kernels_kill_and_the_end_does_not_hide_it(tmp_path):
    (tmp_path / "oom").write_text("3")
    # it has killed, and the end comes after a look: a large process takes its time to go
    script = f"cd {tmp_path}; echo 4 > new; mv new oom; while [ ! -e looked ]; do sleep 0.01; done; kill -9 $$"
    # one look, and no second one, however long the end takes
    looks = """
run._TICK_SECONDS = 1.0
def count():
    told = int((folder / "oom").read_text())
    if told == 4:
        run._TICK_SECONDS = 600.0
        (folder / "looked").touch()
    return told
syscalls.oom_kills = count
"""
    record = lone_shim(tmp_path, "full", script, looks)
    assert (record["oom"], record["oom_on_host"]) == (False, True)
