"""Runs in containers of a whole fleet: real flows of both Prefects, cancels, stops and restarts of their worker."""

import itertools
import sys
from pathlib import Path

import pytest

from tests.container_engine import BUSYBOX, PYTHON
from tests.lawless_api import LawlessApi
from tests.prefect1_env import python as prefect1_python
from tests.waiting import stays, until
from tests.world import World

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


@pytest.fixture
def docker1(world1, engine):
    """A fleet at a Prefect 1 API whose worker starts containers."""
    world1.venv = str(prefect1_python().parent.parent)
    world1.env |= {"DOCKER_HOST": engine.url}
    yield world1
    world1.close()
    engine.clear()


def docker_worker(world, *more):
    own = ["--label", "x", "--no-hostname-label", *options(world.folder, venv=world.venv), *more]
    return world.start("worker", "worker", own)


def docker_run(world, flow, image, **config):
    given = {"type": "DockerRun", "image": image, "labels": ["x"], "env": {}, **config}
    run_id = str(world.api.add_run(flow, labels=["x"], run_config=given))
    world.runs.append(run_id)
    return run_id


def test_a_real_flow_of_prefect_1_runs_in_a_container(docker1, engine):
    flow = docker1.real.register("plain", labels=["x"])["plain"]
    docker1.start_poller()
    docker_worker(docker1)
    run_id = docker_run(docker1, flow, PYTHON)
    assert docker1.wait_end(run_id, 120) == "Success"
    assert any("Submitted for execution: Container ID: " in line for line in docker1.lines(run_id))
    gone(engine, docker1)


def test_what_a_run_of_prefect_1_may_not_have_fails_it_with_a_sentence(docker1, engine):
    flow = docker1.api.add_flow("tiny")
    docker1.start_poller()
    docker_worker(docker1)
    asks = {
        "by which it could take its host over": {"host_config": {"privileged": True}},
        "is or holds the engine's socket": {"host_config": {"binds": ["/:/host"]}},
        "which its worker does not allow": {"host_config": {"binds": ["/etc:/host"]}},
        "this worker does not know": {"host_config": {"no_such": 1}},
    }
    for words, config in asks.items():
        run_id = docker_run(docker1, flow, BUSYBOX, **config)
        assert docker1.wait_end(run_id) == "Failed"
        assert words in docker1.message(run_id)
    run_id = docker_run(docker1, flow, BUSYBOX)
    docker1.wait_end(run_id)
    assert "there is no such command in its image" in docker1.message(run_id)
    gone(engine, docker1)


def test_a_python_agent_of_containers_runs_them(docker1, engine):
    flow = docker1.real.register("plain", labels=["x"])["plain"]
    script = docker1.folder / "agent.py"
    script.write_text(
        "import sys\nfrom flowfleet import DockerAgent\n"
        f"venv, folder = {docker1.venv!r}, {str(docker1.folder)!r}\n"
        "volumes = [f'{venv}:{venv}:ro', f'{folder}:{folder}']\n"
        "env = {'PATH': f'{venv}/bin:/bin'}\n"
        f"DockerAgent(labels=['x'], volumes=volumes, env_vars=env, base_url={engine.url!r}).start()\n"
    )
    run_id = docker_run(docker1, flow, PYTHON)
    agent = docker1.part("pythonagent", [sys.executable, str(script)])
    assert docker1.wait_end(run_id, 120) == "Success"
    assert agent.stop(60) == 0
    gone(engine, docker1)


def test_a_worker_that_requires_an_engine_ends_with_code_6_and_one_that_does_not_waits_for_it(docker1, engine):
    docker1.env |= {"DOCKER_HOST": f"unix://{docker1.folder}/none.sock"}
    own = ["--label", "x", "--no-hostname-label", "--deploy", "docker"]
    worker = docker1.start("worker", "strict", [*own, "--name", "strict", "--require-engine"], wait=False)
    assert worker.wait(60) == 6
    said = worker.text().splitlines()[-1]
    assert said.startswith("Error: The container engine at unix://")
    assert said.endswith("start it, or name another by --base-url.")

    docker1.start_poller()
    patient = docker1.start("worker", "patient", [*own, "--name", "patient"])
    run_id = docker_run(docker1, docker1.api.add_flow("tiny"), BUSYBOX)
    until(lambda: "the container engine does not answer, waiting" in patient.text(), 30, "what it says")
    stays(lambda: docker1.api.state(run_id) == "Scheduled", 4, "nobody claims it for such a worker")
    (docker1.folder / "none.sock").symlink_to(engine.socket)
    docker1.wait_end(run_id)
    assert "there is no such command in its image" in docker1.message(run_id)
    gone(engine, docker1)


# -- many, and a worker that dies again and again: on an API that answers at once


@pytest.fixture
def quick3(tmp_path, valkey, engine):
    """A fleet on the local API whose worker runs the tiny engine in containers."""
    api = LawlessApi(honest=True).start()
    world = World(tmp_path, api.api_url, valkey.tcp_url)
    world.env |= {"DOCKER_HOST": engine.url}
    yield world
    world.close()
    api.stop()
    engine.clear()


TINY = Path(__file__).parents[1] / "tiny_engine.py"


def tiny(world, hold, code=0):
    return {
        "image": PYTHON,
        "command": f"{sys.executable} {TINY} {hold} {code}",
        "env": {"FFTEST_NOTES": str(world.notes_folder)},
    }


def quick_worker(world, slots):
    return world.start_worker("worker", *options(world.folder), "--volume", f"{TINY}:{TINY}:ro", slots=slots)


def test_twenty_runs_share_four_slots(quick3, engine):
    quick3.start_poller()
    quick_worker(quick3, 4)
    deployment = quick3.deploy_tiny(variables=tiny(quick3, "hold"))
    runs = [quick3.create_run(deployment) for _ in range(4)]
    for run_id in runs:
        quick3.wait_note(run_id, "ran", 120)
    deployment = quick3.deploy_tiny(variables=tiny(quick3, "1"))
    runs += [quick3.create_run(deployment) for _ in range(16)]
    quick3.release()
    for run_id in runs:
        quick3.wait_state(run_id, "Completed", seconds=180)
        assert quick3.words(run_id) == ["ran", "done"]
    moments = []
    for run_id in runs:
        (began, ended) = (float(note[2]) for note in quick3.notes(run_id))
        moments += [(began, 1), (ended, -1)]
    # the first four have used all slots, and no fifth run has ever begun beside four others
    assert max(itertools.accumulate(change for _, change in sorted(moments))) == 4
    gone(engine, quick3)


@pytest.mark.parametrize("times", [pytest.param(3), pytest.param(10, marks=pytest.mark.stress)])
def test_a_worker_that_is_killed_again_and_again_leaves_its_container_alone(quick3, engine, times):
    quick3.start_poller()
    worker = quick_worker(quick3, 1)
    run_id = quick3.create_run(quick3.deploy_tiny(variables=tiny(quick3, "hold", 3)))
    quick3.wait_note(run_id, "ran", 60)
    (before,) = containers(engine, quick3)
    for _ in range(times):
        worker.kill()
        worker = quick_worker(quick3, 1)
    quick3.release()
    state = quick3.wait_state(run_id, "Crashed", seconds=60)
    assert "exited with code 3" in state["message"]
    assert quick3.words(run_id) == ["ran", "done"]
    assert before["State"] == "running"
    gone(engine, quick3)


def test_status_and_explain_say_that_the_engine_is_away(quick3, engine):
    quick3.env |= {"DOCKER_HOST": f"unix://{quick3.folder}/none.sock"}
    quick3.start_poller()
    worker = quick_worker(quick3, 1)
    deployment = quick3.deploy_tiny(variables=tiny(quick3, "0"))
    run_id = quick3.create_run(deployment)
    until(lambda: quick3.seen()["workers"][0]["state"] == "shut", 30, "the worker's row to say so")
    for command in (("flowfleet", "status"), ("worker", "list"), ("flowfleet", "explain", run_id)):
        said = " ".join(quick3.command(*command).stdout.split())
        assert "the container engine at unix://" in said, command
        assert "does not answer" in said, command
    assert worker.process.poll() is None


def test_a_run_of_a_lost_host_is_started_again_only_after_its_operators_word(quick3, engine):
    quick3.env |= {
        "FLOWFLEET_RENEW_SECONDS": "0.5",
        "FLOWFLEET_LEASE_SECONDS": "4",
        "FLOWFLEET_ADOPT_GRACE": "100",
    }
    quick3.start_poller("agent", "--on-lost-run", "requeue")
    worker = quick_worker(quick3, 1)
    run_id = quick3.create_run(quick3.deploy_tiny(variables=tiny(quick3, "hold")))
    quick3.wait_note(run_id, "ran", 60)
    (lost,) = quick3.seen()["workers"]
    worker.kill()
    elsewhere = {
        "XDG_STATE_HOME": str(quick3.folder / "elsewhere"),
        "FLOWFLEET_MACHINE_ID": "elsewhere",
        "FLOWFLEET_BOOT_ID": "elsewhere",
    }
    own = [*options(quick3.folder), "--volume", f"{TINY}:{TINY}:ro"]
    quick3.start_worker("second", *own, slots=1, env=elsewhere)
    until(lambda: any(run["state"] == "missing" for run in quick3.seen()["runs"]), 30, "it to be missed")
    stays(lambda: quick3.words(run_id) == ["ran"], 10, "no shim would end it, so that it may live")

    done = quick3.command("worker", "forget", f"{lost['name']}@{lost['host']}", "--yes", seconds=60)
    assert done.returncode == 0, done.stderr
    until(lambda: quick3.words(run_id) == ["ran", "ran"], 60, "it to be started again")
    quick_worker(quick3, 1)
    until(lambda: len(containers(engine, quick3)) == 1, 60, "the forgotten container to be ended")
    quick3.release()
    quick3.wait_state(run_id, "Completed", seconds=60)
    assert quick3.words(run_id) == ["ran", "ran", "done"]
    gone(engine, quick3)
