"""The shim in surroundings that are not ours: the oldest Python of flows, and folders with our names in them."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flowfleet.errors import StartFailed
from tests.bench_of_runs import DEAF, FULL, BenchOfRuns
from tests.needs import python39

# the same facts of runs whose shim has the oldest Python
from tests.unit.test_shim import (  # noqa: F401
    test_a_command_is_stopped,
    test_a_command_that_cannot_be_executed_is_named,
    test_a_record_tells_times_memory_cpu_and_the_last_ten_lines,
    test_an_exit_code_or_a_signal_is_the_true_one,
    test_what_a_command_leaves_is_killed_when_it_has_ended,
)
from tests.unit.test_shim_control_session import COMPLETED, COOPERATES, cancel, engine
from tests.waiting import SCALE
from workers import shim
from workers.deployers.fork_client import ForkClient, own_program


@pytest.fixture(scope="module")
def fork_client():
    """Of the oldest Python, below all runs of this module."""
    fork_client = ForkClient(program=own_program(python39()), reap_orphans=True)
    yield fork_client
    fork_client.close()


def test_the_oldest_python_of_flows_is_a_real_one():
    argv = [python39(), "-c", "import sys; print(sys.implementation.name, *sys.version_info[:2])"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60 * SCALE)
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


#: put into a copy of the fork server: whatever a fork of it imports is noted
AUDIT = """
def _noting(fork):
    def noting_fork():
        pid = fork()
        if pid == 0:
            sys.addaudithook(_note)
        return pid
    return noting_fork

def _note(event, args):
    if event == "import":
        noted = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(noted, (str(args[0]) + chr(10)).encode())
        os.close(noted)

os.fork = _noting(os.fork)

"""
ENDS_BY_ITS_WORD = """
session.connect(); session.hello(); session.receipt(json.dumps(RECEIPT).encode()); session.answered()
"""


def noting_program(folder, noted):
    """The fork server in a copy of its package, whose forks note what they import."""
    copy = folder / "shim"
    shutil.copytree(Path(shim.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    own, begin = own_program(), 'if __name__ == "__main__":\n    main()\n'
    text = (copy / "forkserver.py").read_text()
    assert text.count(begin) == 1
    (copy / "forkserver.py").write_text(text.replace(begin, AUDIT.format(path=str(noted)) + begin))
    return dataclasses.replace(own, argv=(*own.argv[:-1], str(copy / "forkserver.py")))


def test_a_shim_imports_nothing_after_its_fork_however_its_run_ends(tmp_path):
    noted = tmp_path / "noted"
    fork_client = ForkClient(program=noting_program(tmp_path, noted))
    bench = BenchOfRuns(tmp_path, FULL, fork_client=fork_client)
    receipt = f"RECEIPT = {COMPLETED!r}\n"
    try:
        assert bench.run(bench.sh("exit 5")).code == 5
        assert bench.run(bench.sh("kill -9 $$")).signal == 9
        assert bench.run(bench.sh("sleep 600 & exit 0")).ok
        with pytest.raises(StartFailed):
            bench.run(bench.spec("/no/such/program"))
        assert bench.run(engine(bench, receipt + ENDS_BY_ITS_WORD)).receipt == COMPLETED
        told, deaf = engine(bench, COOPERATES), bench.sh(DEAF, stop_grace=0.2)
        for spec, intent, by in ((told, True, "term"), (deaf, False, "kill")):
            started_run = bench.start_ready(spec)
            cancel(started_run, bench, spec, intent=intent)
            assert bench.end_of(started_run).stopped_by == by
    finally:
        bench.close()
        fork_client.close()
    assert not noted.exists() or noted.read_text().split() == []


def test_a_fork_server_beside_a_users_folder_workers_starts_runs(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(hostile)
    program = dataclasses.replace(own_program(), env={**os.environ, "PYTHONPATH": str(hostile)})
    fork_client = ForkClient(program=program)
    bench = BenchOfRuns(tmp_path, FULL, fork_client=fork_client)
    assert bench.run(bench.sh("exit 5", cwd=str(hostile))).code == 5
    bench.close()
    fork_client.close()
