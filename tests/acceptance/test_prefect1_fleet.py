"""A fleet at a local Prefect 1 API as its people see it: new labels, doctor, explain, status, agent config, end."""

import json
import time
from datetime import UTC, datetime

from tests.prefect1_world import World1
from tests.waiting import SCALE, until


def checks(world: World1) -> list[dict[str, str]]:
    done = world.command("flowfleet", "doctor", "--json")
    return list(json.loads(done.stdout)["checks"])


def explained(world: World1, run_id: str) -> str:
    return world.command("flowfleet", "explain", run_id).stdout.partition("\n")[0]


def test_a_label_set_that_nobody_has_seen_before_is_served_within_hints(world1):
    # without the hint the worker would look into the ledger at its next renewal
    poller = world1.start_poller("agent", "--renew-seconds", "100", "--lease-seconds", "400")
    world1.start_worker("one", "x", "y", tiny=True)
    assert world1.wait_end(world1.tiny_run("x")) == "Success"
    world1.wait_empty()
    run_id = world1.tiny_run("x", "y")
    assert poller.ask("/api/poke") == (200, "")
    begun = time.monotonic()
    world1.wait_state(run_id, "Submitted", "Running", "Success")

    assert time.monotonic() - begun < 20 * SCALE
    assert world1.wait_end(run_id) == "Success"


def test_what_keeps_a_run_waiting_is_told_by_its_labels(world1):
    world1.start_poller()
    world1.start_worker("one", "x", "z", tiny=True, slots=1)
    held = world1.tiny_run("x", hold=True)
    world1.wait_state(held, "Running")
    lacks, bare, next_one = world1.tiny_run("x", "gpu"), world1.tiny_run(), world1.tiny_run("x")

    assert f"no live worker of the fleet {world1.fleet} has the labels [gpu, x]; live ones have: [x, z]" in (
        explained(world1, lacks)
    )
    assert "has no labels: such a run goes only to a worker without labels" in explained(world1, bare)
    until(lambda: any(queue["due"] for queue in world1.seen()["queues"]), 15, "the waiting run to be counted")
    assert "waits for a free slot: all 1 slots of the workers that serve it are taken" in explained(world1, next_one)
    status = world1.status()
    assert [worker["labels"] for worker in status["workers"]] == [["x", "z"]]
    assert status["counts"]["due"] == 1
    page = world1.command("flowfleet", "status").stdout
    assert max(map(len, page.splitlines())) <= 80
    world1.release()
    assert world1.wait_end(next_one) == "Success"


def test_doctor_warns_of_a_foreign_agent_with_the_same_labels_and_of_runs_that_nobody_can_take(world1):
    poller = world1.start_poller("of-the-fleet")
    world1.start_worker("one", "x", tiny=True)
    assert world1.wait_end(world1.tiny_run("x")) == "Success"
    found = {check["name"]: check for check in checks(world1)}
    assert found["rivals"]["verdict"] == "ok", found["rivals"]
    assert found["api"]["found"].startswith("Prefect 1 answers")

    stock = {"name": "stock", "type": "LocalAgent", "labels": ["x", "y"]}
    with world1.api.lock:
        world1.api.store.insert("agent", tenant_id=world1.api.tenant, last_queried=datetime.now(UTC), **stock)
    (rival,) = [check for check in checks(world1) if check["name"] == "rivals"]
    assert rival["verdict"] == "warn"
    assert "The agent stock (LocalAgent) with labels [x, y] asked for runs" in rival["found"]
    assert poller.stop() == 0


def test_an_agent_config_names_the_agent_and_its_polls(world1):
    world1.start_worker("one", "x", tiny=True)
    config = world1.api.add_agent_config({"name": "of-the-api", "max_polls": 2, "labels": ["x"]})
    poller = world1.start_poller("given", "--agent-config-id", config, wait=False)

    assert poller.wait(60) == 0
    assert {agent["name"] for agent in world1.api.agents()} == {"of-the-api"}
    assert {agent["agent_config_id"] for agent in world1.api.agents()} == {config}
    assert "the agent config wins over what was given here" in poller.text()


def test_no_poll_at_all_is_an_orderly_end_too(world1):
    poller = world1.start_poller("agent", "--max-polls", "0", wait=False)

    assert poller.wait(60) == 0
    assert world1.api.counted("get_runs_in_queue") == 0
    assert "Waiting for flow runs..." in poller.text()
    assert poller.out.read_text() == ""  # the large letters are for terminals


def test_a_stop_puts_a_run_back_where_the_fleet_starts_lost_runs_again_and_its_task_runs_again(world1, tmp_path):
    flows = world1.real.register(labels=["x"])
    world1.start_poller("agent", "--on-lost-run", "requeue")
    worker = world1.start_worker("one", "x", slots=1, options=["--on-stop", "cancel", "--stop-grace", "5"])
    files = {name: str(tmp_path / name) for name in ("begun", "until")}
    run_id = world1.create_run(flows["waiting"], parameters=files)
    until((tmp_path / "begun").exists, 60, "the task to begin")
    assert worker.stop() == 0
    assert world1.api.state(run_id) == "Scheduled"
    assert "was stopped with its worker one@" in world1.message(run_id)

    (tmp_path / "until").touch()
    world1.start_worker("one", "x", slots=1)
    assert world1.wait_end(run_id) == "Success"
    once = ["Scheduled", "Submitted", "Running"]
    assert world1.api.history(run_id) == [*once, *once, "Success"]
