"""Messages: what one says, and repeated and lost ones, in the queue of a real route."""

import json
import signal

import pytest

from flowfleet.broker import queue_key
from flowfleet.flow_run import Route
from tests.broken_messages import decoded
from tests.waiting import stays, until


@pytest.fixture
def frozen(fleet, valkey):
    """A fleet whose idle worker was stopped (SIGSTOP), and the key of its queue: what is claimed stays in Redis."""
    # a stopped worker must count as alive for as long as the test takes
    fleet.start_poller("agent", "--lease-seconds", "300")
    worker = fleet.start_worker(slots=3)
    deployment = fleet.deploy_tiny()
    # one run through, so that its route is known and served
    fleet.wait_state(fleet.create_run(deployment), "Completed")
    fleet.wait_empty()
    worker.signal(signal.SIGSTOP)
    (queue,) = fleet.status()["queues"]
    key = queue_key(fleet.fleet, Route.parse(queue["route"]))
    with valkey.client() as client:
        # a pending read of the worker's, the only client that waits at a list, would still swallow a message: its time
        # at the server is short
        flags = lambda: "".join(entry["flags"] for entry in client.client_list())  # noqa: E731
        until(lambda: "b" not in flags(), 15, "the frozen worker's pending read to end")
        yield fleet, worker, deployment, client, key
    worker.signal(signal.SIGCONT)


def claimed(world, deployment, client, key):
    """A new run's id and the message that was published for it."""
    run = world.create_run(deployment)
    world.wait_state(run, "Submitted")
    message = until(
        lambda: next((item for item in client.lrange(key, 0, -1) if run in decoded(item)), None), 20, "the message"
    )
    return run, message


def test_a_message_says_run_claim_and_route_and_no_more_and_delivered_three_times_is_one_start(frozen):
    fleet, worker, deployment, client, key = frozen
    run, message = claimed(fleet, deployment, client, key)
    args, kwargs, _ = json.loads(decoded(message))
    headers = json.loads(message)["headers"]

    assert args == []
    assert set(kwargs) == {"v", "run_id", "claim", "route"}
    assert kwargs["run_id"] == run
    assert headers["task"] == "flowfleet.launch"
    assert headers["id"] == f"{run}.{kwargs['claim']}"
    assert headers["eta"] is None
    assert headers["expires"] is None
    assert len(message) < 4096
    client.lpush(key, message, message)
    worker.signal(signal.SIGCONT)
    fleet.wait_state(run, "Completed")
    fleet.wait_empty()
    # and once more, when it has long ended
    client.lpush(key, message)
    until(lambda: not client.exists(key), 10, "the late copy to be fetched")

    stays(lambda: fleet.words(run) == ["ran", "done"], 2, "one start")
    assert fleet.api.state(run)["name"] == "Completed"


@pytest.mark.slow
def test_a_run_whose_message_is_lost_is_handed_back_and_runs(frozen):
    fleet, worker, deployment, client, key = frozen
    run, _ = claimed(fleet, deployment, client, key)
    client.delete(key)
    worker.signal(signal.SIGCONT)

    fleet.all_once([run], 150)
    assert fleet.api.history(run).count("Submitted") == 2
    fleet.wait_empty()
