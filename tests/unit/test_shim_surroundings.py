"""The shim in surroundings that are not ours: the oldest Python of flows, and folders with our names in them."""

import dataclasses
import os
import subprocess

import pytest

from tests.bench_of_runs import FULL, BenchOfRuns
from tests.needs import python39

# the same facts of runs whose shim has the oldest Python
from tests.unit.test_shim import (  # noqa: F401
    test_a_command_is_stopped,
    test_a_command_that_cannot_be_executed_is_named,
    test_a_record_tells_times_memory_cpu_and_the_last_ten_lines,
    test_an_exit_code_or_a_signal_is_the_true_one,
    test_what_a_command_leaves_is_killed_when_it_has_ended,
)
from workers.deployers.fork_client import ForkClient, own_program


@pytest.fixture(scope="module")
def fork_client():
    """Of the oldest Python, below all runs of this module."""
    fork_client = ForkClient(program=own_program(python39()), reap_orphans=True)
    yield fork_client
    fork_client.close()


def test_the_oldest_python_of_flows_is_a_real_one():
    argv = [python39(), "-c", "import sys; print(sys.implementation.name, *sys.version_info[:2])"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "cpython 3 9\n"


@pytest.fixture
def hostile(tmp_path):
    """A folder that has our names in it, each of which breaks its importer."""
    folder = tmp_path / "hostile"
    names = ["workers/__init__", "workers/shim/__init__", "flowfleet_shim", "spawn", "framing", "run"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name} was imported')\n")
    return folder


def test_a_fork_server_beside_a_users_folder_workers_starts_runs(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(hostile)
    program = dataclasses.replace(own_program(), env={**os.environ, "PYTHONPATH": str(hostile)})
    fork_client = ForkClient(program=program)
    bench = BenchOfRuns(tmp_path, FULL, fork_client=fork_client)
    assert bench.run(bench.sh("exit 5", cwd=str(hostile))).code == 5
    bench.close()
    fork_client.close()
