"""The fork client: its fork server dies or hangs, and runs neither end nor start twice."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowfleet.errors import StartFailed
from tests.bench_of_runs import FULL, BenchOfRuns, is_alive
from tests.waiting import until
from workers.deployers.fork_client import ForkClient, own_program
from workers.state.run_folders import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(tmp_path):
    bench = BenchOfRuns(tmp_path, FULL)
    yield bench
    bench.close()


def test_a_killed_fork_server_is_replaced_and_its_runs_go_on(bench, tmp_path):
    first = bench.start(bench.sh(f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 3"))
    old = bench.fork_client.pid
    os.kill(old, signal.SIGKILL)

    assert bench.run(bench.sh("exit 4")).code == 4

    assert bench.fork_client.pid != old
    assert first.poll() is None
    (tmp_path / "go").touch()
    assert bench.end_of(first).code == 3


def test_a_fork_server_killed_between_request_and_answer_starts_the_run_once(bench, tmp_path):
    for number in range(10):
        bench.fork_client.start()  # alive before it is aimed at
        spec = bench.sh(f"echo began >> {tmp_path}/{number}")
        pid = bench.fork_client.pid
        killer = threading.Timer(0.0005 * number, os.kill, (pid, signal.SIGKILL))
        killer.start()
        end = bench.run(spec)
        killer.join()

        assert end.code == 0
        assert (tmp_path / str(number)).read_text() == "began\n"


def test_a_hanging_fork_server_starts_nothing_later(tmp_path):
    bench = BenchOfRuns(tmp_path, FULL)
    fork_client = ForkClient(answer_seconds=0.2)
    bench.deployer = bench.new_deployer(fork_client)
    fork_client.start()
    stopped = fork_client.pid
    spec = bench.sh(f"touch {tmp_path}/began")
    os.kill(stopped, signal.SIGSTOP)
    fork_client._discard = lambda: None  # it is neither ended nor replaced: the worst case

    with pytest.raises(StartFailed, match="no answer from the shim"):
        bench.deployer.start(spec)
    del fork_client._discard
    fork_client._answer_seconds = 20.0
    os.kill(stopped, signal.SIGCONT)

    assert RunFolder(spec.folder).start()["by"] == "abandoned"
    assert bench.run(bench.sh("exit 5")).code == 5  # the server has served the old requests before
    assert not (tmp_path / "began").exists()
    fork_client.close()
    bench.close()


def test_a_fork_server_that_cannot_be_started_is_told_and_the_run_never_begins(tmp_path):
    bench = BenchOfRuns(tmp_path, FULL)
    spec = bench.sh(f"touch {tmp_path}/began")

    with pytest.raises(StartFailed, match="cannot be started: No such file"):
        bench.new_deployer(ForkClient(program=own_program("/no/such/python"))).start(spec)

    assert bench.adopt(spec) is None
    bench.close()


def test_the_fork_server_ends_with_its_worker(bench):
    bench.run(bench.sh("true"))
    pid = bench.fork_client.pid

    bench.fork_client.close()

    assert not is_alive(pid)


def test_the_fork_server_carries_nothing_of_the_workers_environment(bench, monkeypatch):
    monkeypatch.setenv("PREFECT_API_KEY", "hush-4711")
    bench.fork_client.start()

    assert b"hush-4711" not in Path(f"/proc/{bench.fork_client.pid}/environ").read_bytes()


def test_many_threads_start_runs_at_once(bench):
    codes: list[int | None] = []

    def one(number):
        codes.append(bench.run(bench.sh(f"exit {number}")).code)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(codes) == list(range(12))


def test_nothing_is_imported_after_the_fork(bench, tmp_path):
    """A package upgraded under a running worker must not mix new code into an old shim."""
    spec = bench.python("import time; time.sleep(60)")
    run = bench.start(spec)
    before = Path(f"/proc/{bench.fork_client.pid}/maps").read_text()
    after = Path(f"/proc/{run.handle['pid']}/maps").read_text()
    libraries = [{line.split()[-1] for line in text.splitlines() if ".so" in line} for text in (before, after)]

    assert libraries[0] == libraries[1]
    run.kill()
    until(run.poll, 20, "the end")


def test_a_run_gets_the_limit_of_open_files_that_its_worker_was_started_with(tmp_path):
    bench = BenchOfRuns(tmp_path, FULL, ForkClient(descriptors=123))
    spec = bench.sh("ulimit -Sn; ulimit -Hn")
    bench.run(spec)
    bench.fork_client.close()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    assert (spec.folder / "log").read_text().split()[0] == "123"
    assert (spec.folder / "log").read_text().split()[1] in (str(hard), "unlimited")
    bench.close()


def test_a_worker_raises_its_own_limit_of_open_files_as_far_as_it_goes():
    code = (
        "import resource as r; from workers.host import raise_descriptors;"
        "r.setrlimit(r.RLIMIT_NOFILE, (100, 200)); print(raise_descriptors(), r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.strip() == "100 (200, 200)"
