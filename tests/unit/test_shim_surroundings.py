"""The shim in surroundings that are not ours: the oldest Python of flows, and folders with our names in them."""

import dataclasses
import os
import signal
import subprocess

import pytest

from flowfleet.errors import StartFailed
from tests.bench_of_runs import FULL, BenchOfRuns
from tests.python39 import python39
from tests.waiting import until
from workers.deployers.fork_client import ForkClient, own_program
from workers.host import Abilities


@pytest.fixture(params=[FULL, Abilities.plain()], ids=["full", "plain"])
def old(request, tmp_path):
    fork_client = ForkClient(program=own_program(python39()))
    bench = BenchOfRuns(tmp_path, request.param, fork_client=fork_client)
    yield bench
    bench.close()
    fork_client.close()


def test_the_oldest_python_of_flows_is_a_real_one():
    done = subprocess.run(
        [python39(), "-c", "import sys; print(sys.implementation.name, *sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "cpython 3 9\n"


def test_python_3_9_starts_a_run_and_records_its_exit(old):
    spec = old.sh("echo said; exit 7")
    end = old.run(spec)
    assert (end.code, end.signal) == (7, None)
    assert (spec.folder / "log").read_text() == "said\n"
    assert old.folder(spec).cleared()


def test_python_3_9_ends_a_run_by_the_signal_of_a_cancel(old, tmp_path):
    spec = old.sh(
        f"trap 'echo asked >> {tmp_path}/asked; exit 3' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    )
    run = old.start(spec)
    until((tmp_path / "up").exists, 10, "the run to be up")
    run.stop()
    end = old.end_of(run)
    assert (end.code, end.stopped_by) == (3, "term")
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_python_3_9_kills_a_run_that_ignores_the_signal_once_its_grace_is_over(old, tmp_path):
    spec = old.sh(f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done", stop_grace=0.2)
    run = old.start(spec)
    until((tmp_path / "up").exists, 10, "the run to be up")
    run.stop()
    assert old.end_of(run).signal == signal.SIGKILL


def test_python_3_9_says_why_a_run_cannot_begin(old):
    with pytest.raises(StartFailed, match="there is no command no-such-command on this host's PATH"):
        old.start(old.spec("no-such-command"))


@pytest.fixture
def hostile(tmp_path):
    """A folder that has our names in it, each of which breaks its importer."""
    folder = tmp_path / "hostile"
    for name in (
        "workers/__init__.py",
        "workers/shim/__init__.py",
        "flowfleet_shim.py",
        "spawn.py",
        "framing.py",
        "run.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"raise RuntimeError('the wrong {name} was imported')\n")
    return folder


def test_a_fork_server_beside_a_users_folder_workers_starts_runs(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(hostile)
    program = dataclasses.replace(own_program(), env={**os.environ, "PYTHONPATH": str(hostile)})
    fork_client = ForkClient(program=program)
    bench = BenchOfRuns(tmp_path, FULL, fork_client=fork_client)
    assert bench.run(bench.sh("exit 5", cwd=str(hostile))).code == 5
    bench.close()
    fork_client.close()
