"""Runs in containers of a whole fleet: real flows of both Prefects, cancels, stops and restarts of their worker."""

import sys

import pytest

from tests.container_engine import BUSYBOX, PYTHON
from tests.prefect1_env import python as prefect1_python
from tests.waiting import until

VENV = sys.prefix


def options(folder, *, venv=VENV):
    """What the tests' images lack is mounted: an environment with prefect, and the test's own folder."""
    return (
        *("--deploy", "docker", "--volume", f"{venv}:{venv}:ro", "--volume", f"{folder}:{folder}"),
        *("--env", f"PATH={venv}/bin:/bin", "--env", f"FFTEST_NOTES={folder}/notes"),
    )


@pytest.fixture
def docker3(fleet, engine):
    """A fleet on a real Prefect 3 server whose worker starts containers."""
    fleet.env |= {"DOCKER_HOST": engine.url}
    fleet.start_poller()
    fleet.start_worker("worker", *options(fleet.folder), slots=2)
    yield fleet
    fleet.close()
    engine.clear()


def containers(engine, fleet):
    client = engine.client()
    rows = client.api.containers(all=True, filters={"label": f"io.flowfleet.fleet={fleet.fleet}"})
    client.close()
    return rows


def gone(engine, fleet):
    until(lambda: containers(engine, fleet) == [], 30, "no container to be left")


GOOD = """
@flow
def go():
    note("ran")
    print("seen in the log")
"""


def test_a_real_flow_of_prefect_3_runs_in_a_container(docker3, engine):
    deployment = docker3.deploy(GOOD, job_variables={"image": PYTHON})
    run_id = docker3.create_run(deployment)
    docker3.wait_state(run_id, "Completed", seconds=120)
    assert docker3.words(run_id) == ["ran"]
    docker3.wait_empty()
    gone(engine, docker3)
    assert "seen in the log" in docker3.command("flowfleet", "logs", run_id).stdout


HELD = """
@flow(on_cancellation=[lambda flow, flow_run, state: note("hook")])
def go():
    note("ran")
    time.sleep(600)
"""


def test_a_cancel_ends_the_container_and_runs_the_hook_once(docker3, engine):
    deployment = docker3.deploy(HELD, job_variables={"image": PYTHON})
    run_id = docker3.create_run(deployment)
    docker3.wait_note(run_id, "ran", 120)
    state = {"type": "CANCELLING", "name": "Cancelling"}
    docker3.api.call("POST", f"/flow_runs/{run_id}/set_state", {"state": state})
    docker3.wait_state(run_id, "Cancelled", seconds=60)
    docker3.wait_empty()
    gone(engine, docker3)
    assert docker3.words(run_id) == ["ran", "hook"]


def test_a_command_in_busybox_and_its_true_end(docker3, engine):
    deployment = docker3.deploy_tiny(variables={"image": BUSYBOX, "command": "sh -c 'echo no; exit 3'"})
    run_id = docker3.create_run(deployment)
    state = docker3.wait_state(run_id, "Crashed", seconds=60)
    assert "exited with code 3" in state["message"]
    assert "no" in state["message"]
    gone(engine, docker3)


def test_a_run_outlives_its_worker(docker3, engine):
    deployment = docker3.deploy_tiny(variables={"image": BUSYBOX, "command": "sh -c 'sleep 8; exit 4'"})
    run_id = docker3.create_run(deployment)
    until(lambda: containers(engine, docker3), 60, "the container")
    worker = next(part for part in docker3.parts if part.name.startswith("worker"))
    worker.kill()
    docker3.start_worker("worker", *options(docker3.folder), slots=2)
    state = docker3.wait_state(run_id, "Crashed", seconds=60)
    assert "exited with code 4" in state["message"]
    gone(engine, docker3)


def test_a_real_flow_of_prefect_1_runs_in_a_container(world1, engine):
    venv = str(prefect1_python().parent.parent)
    world1.env |= {"DOCKER_HOST": engine.url}
    world1.start_poller()
    world1.start("worker", "worker", ["--label", "x", "--no-hostname-label", *options(world1.folder, venv=venv)])
    flow = world1.api.add_flow("tiny")
    config = {"type": "DockerRun", "image": BUSYBOX, "labels": ["x"], "env": {}}
    run_id = str(world1.api.add_run(flow, labels=["x"], run_config=config))
    world1.wait_end(run_id)
    assert "there is no such command" in world1.message(run_id)
