"""Sharing: who gets which run, on real servers: workers, pollers, pools, queues, limits."""

import itertools
import signal
from collections import Counter

import pytest

from tests.waiting import stays, until

MANY = [pytest.param(20, id="20", marks=pytest.mark.slow), pytest.param(60, id="60", marks=pytest.mark.stress)]


def places(world, runs):
    """How many runs each worker has begun, by the runs' own notes."""
    return Counter(note[3] for run in runs for note in world.notes(run) if note[0] == "ran")


@pytest.mark.parametrize("number", MANY)
def test_runs_on_two_workers_are_executed_once_each(fleet, number):
    fleet.start_poller()
    for name in ("one", "two"):
        fleet.start_worker(name, env={"FFTEST_WHO": name})
    deployment = fleet.deploy("""
        @flow
        def go():
            note("ran")
    """)
    runs = [fleet.create_run(deployment) for _ in range(number)]
    for run in runs:
        fleet.wait_state(run, "Completed", seconds=15 * number)

    assert [fleet.words(run) for run in runs] == [["ran"]] * number
    assert set(places(fleet, runs)) == {"one", "two"}
    fleet.wait_empty()

    def online():
        rows = fleet.api.call("POST", f"/work_pools/{fleet.pool}/workers/filter", {})
        return [row for row in rows if row["status"] == "ONLINE"]

    (row,) = until(online, 60, "the pool to show one online worker, for both", pause=0.3)
    assert fleet.fleet in row["name"]


def test_twelve_runs_on_three_idle_workers_are_four_each_till_one_is_drained_and_a_second_poller_takes_over(fleet):
    pollers = {name: fleet.start_poller(name) for name in ("agent-a", "agent-b")}
    names = ("one", "two", "three")
    workers = {name: fleet.start_worker(name, slots=4, env={"FFTEST_WHO": name}) for name in names}
    deployment = fleet.deploy_tiny("hold")
    runs = [fleet.create_run(deployment) for _ in range(12)]
    until(lambda: sum(places(fleet, runs).values()) == 12, 60, "all twelve to run")

    shares = places(fleet, runs)
    assert set(shares) == {"one", "two", "three"}
    assert all(3 <= share <= 5 for share in shares.values()), shares
    fleet.release()
    fleet.all_once(runs)

    leader = fleet.status()["leader"]
    pollers[leader["name"]].kill()
    fleet.all_once([fleet.create_run(deployment)], 90)
    now = fleet.status()["leader"]
    assert now["name"] != leader["name"]
    assert now["term"] > leader["term"]

    rows = {row["name"]: row for row in fleet.status()["workers"]}
    done = fleet.command("worker", "drain", f"one@{rows['one']['host']}")
    assert done.returncode == 0, done.stderr
    assert workers["one"].wait(30) == 0
    later = [fleet.create_run(deployment) for _ in range(4)]
    fleet.all_once(later)
    assert set(places(fleet, later)) <= {"two", "three"}


def test_what_waits_stays_at_the_api_and_status_counts_it(fleet):
    fleet.start_poller()
    fleet.start_worker(slots=1)
    first, _ = fleet.held()
    deployment = fleet.deploy_tiny("hold")
    waiting = [fleet.create_run(deployment) for _ in range(50)]

    until(lambda: fleet.seen()["counts"]["due"] == 50, 40, "50 due runs in the ledger", pause=0.1)
    status = fleet.status()
    assert status["counts"]["due"] == 50
    assert sum(queue["due"] for queue in status["queues"]) == 50
    assert [run["run_id"] for run in status["runs"]] == [first]
    assert {fleet.api.state(run)["type"] for run in waiting} == {"SCHEDULED"}


def test_one_worker_serves_two_pools_one_with_a_limit_that_is_never_exceeded_and_one_with_a_paused_queue(fleet):
    limited, other = pools = [f"{fleet.pool}-a", f"{fleet.pool}-b"]
    fleet.start_poller()
    fleet.start_worker(slots=3, pools=pools)
    deployment, free = fleet.deploy_tiny(0.5, pool=limited), fleet.deploy_tiny(pool=other)
    fleet.api.change_pool(limited, concurrency_limit=1)
    fleet.api.make_queue(other, "slowly", is_paused=True)
    held = fleet.create_run(fleet.deploy_tiny(pool=other, work_queue_name="slowly"))
    runs = [fleet.create_run(deployment) for _ in range(4)]
    fleet.all_once([fleet.create_run(free), *runs], 120)
    spans = sorted((float(notes[0][2]), float(notes[1][2])) for notes in map(fleet.notes, runs))
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans)), spans
    stays(lambda: fleet.api.state(held)["type"] == "SCHEDULED", 3, "the run of the paused queue is not claimed")

    fleet.api.change_queue(other, "slowly", is_paused=False)
    fleet.all_once([held])


def test_runs_and_deployments_that_are_deleted_after_the_claim_disturb_nobody(fleet):
    # the stopped worker must count as alive until it goes on
    poller = fleet.start_poller("agent", "--lease-seconds", "300")
    worker = fleet.start_worker(slots=3)
    deleted, kept = fleet.deploy_tiny(), fleet.deploy_tiny()
    # one run through, so that the frozen worker is known to serve the route
    fleet.wait_state(fleet.create_run(kept), "Completed")
    worker.signal(signal.SIGSTOP)
    orphan, gone = fleet.create_run(deleted), fleet.create_run(kept)
    for run in (orphan, gone):
        fleet.wait_state(run, "Submitted")
    fleet.api.call("DELETE", f"/deployments/{deleted}")
    fleet.api.call("DELETE", f"/flow_runs/{gone}")
    worker.signal(signal.SIGCONT)

    assert "deployment" in fleet.wait_state(orphan, "Crashed", "Cancelled", "Failed")["message"]
    fleet.wait_empty()
    fleet.runs.clear()
    after = fleet.create_run(kept)
    fleet.wait_state(after, "Completed")
    assert poller.process.poll() is None
    assert worker.process.poll() is None


def test_a_pool_of_type_process_is_served_by_its_own_template(fleet):
    texts = {name: {"type": "string"} for name in ("name", "command", "working_dir")}
    switch, env = {"type": "boolean", "default": True}, {"type": "object", "default": {"FROM_POOL": "yes"}}
    properties = {**texts, "env": env, "labels": {"type": "object"}, "stream_output": switch}
    template = {
        "job_configuration": {name: f"{{{{ {name} }}}}" for name in properties},
        "variables": {"type": "object", "properties": properties},
    }
    fleet.api.call("POST", "/work_pools/", {"name": fleet.pool, "type": "process", "base_job_template": template})
    fleet.start_poller()
    fleet.start_worker()
    run, _ = fleet.run(
        """
        @flow
        def go():
            note(os.environ.get("FROM_POOL", "-"))
        """,
        "Completed",
    )
    assert fleet.words(run) == ["yes"]
