"""The fork client: its fork server dies or hangs, and runs neither end nor start twice."""

import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowfleet.errors import StartFailed
from tests import processes
from tests.bench_of_runs import FULL, BenchOfRuns
from workers.deployers.fork_client import ForkClient, own_program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(request, tmp_path):
    """With a fork server of its own, made as the test's parameter says."""
    bench = BenchOfRuns(tmp_path, FULL, ForkClient(**request.param) if hasattr(request, "param") else None)
    yield bench
    bench.fork_client.close()
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


@pytest.mark.parametrize("bench", [{"answer_seconds": 0.2}], indirect=True)
def test_a_hanging_fork_server_starts_nothing_later(bench, tmp_path):
    fork_client = bench.fork_client
    fork_client.start()
    stopped = fork_client.pid
    spec = bench.sh(f"touch {tmp_path}/began")
    os.kill(stopped, signal.SIGSTOP)
    fork_client._discard = lambda: None  # it is neither ended nor replaced: the worst case

    with pytest.raises(StartFailed, match="no answer from the shim"):
        bench.start(spec)
    del fork_client._discard
    fork_client.answer_seconds = 20.0
    os.kill(stopped, signal.SIGCONT)

    assert bench.folder(spec).start()["by"] == "abandoned"
    assert bench.run(bench.sh("exit 5")).code == 5  # the server has served the old requests before
    assert not (tmp_path / "began").exists()


@pytest.mark.parametrize("bench", [{"program": own_program("/no/such/python")}], indirect=True)
def test_a_fork_server_that_cannot_be_started_is_told_and_the_run_never_begins(bench, tmp_path):
    spec = bench.sh(f"touch {tmp_path}/began")
    with pytest.raises(StartFailed, match="cannot be started: No such file"):
        bench.start(spec)
    assert bench.adopt(spec) is None


def test_the_fork_server_carries_nothing_of_the_workers_environment_and_ends_with_it(bench, monkeypatch):
    monkeypatch.setenv("PREFECT_API_KEY", "hush-4711")
    bench.run(bench.sh("true"))
    pid = bench.fork_client.pid
    assert b"hush-4711" not in Path(f"/proc/{pid}/environ").read_bytes()
    bench.fork_client.close()
    assert not processes.alive(pid)


def test_many_threads_start_runs_at_once(bench):
    with ThreadPoolExecutor(12) as threads:
        ends = threads.map(lambda number: bench.run(bench.sh(f"exit {number}")), range(12))
    assert [end.code for end in ends] == list(range(12))


def test_nothing_is_imported_after_the_fork(bench):
    """A package upgraded under a running worker must not mix new code into an old shim."""
    run = bench.start(bench.python("import time; time.sleep(60)"))
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (bench.fork_client.pid, run.handle["pid"])]
    libraries = [{line.split()[-1] for line in text.splitlines() if ".so" in line} for text in maps]
    assert libraries[0] == libraries[1]


@pytest.mark.parametrize("bench", [{"descriptors": 123}], indirect=True)
def test_a_run_gets_the_limit_of_open_files_that_its_worker_was_started_with(bench):
    soft, hard = bench.run(bench.sh("ulimit -Sn; ulimit -Hn")).last_lines
    assert soft == "123"
    assert hard in (str(resource.getrlimit(resource.RLIMIT_NOFILE)[1]), "unlimited")


def test_a_worker_raises_its_own_limit_of_open_files_as_far_as_it_goes():
    code = (
        "import resource as r; from workers.host_limits import raise_descriptors;"
        "r.setrlimit(r.RLIMIT_NOFILE, (100, 200)); print(raise_descriptors(), r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "100 (200, 200)"
