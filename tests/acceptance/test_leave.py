"""The way back: `flowfleet leave`, and the stock worker after it, on a real server."""

import signal

import pytest

from tests.world import BIN

#: each claim is queued, and its message is sent nowhere: nobody takes it
STUCK = {"FLOWFLEET_FAILPOINT": "claim.after_accept:raise"}


@pytest.mark.slow
def test_after_leave_the_stock_worker_runs_what_waited_and_the_run_that_went_on_ends_true(fleet):
    first = fleet.start_poller()
    worker = fleet.start_worker()
    held, _ = fleet.held()
    assert first.stop() == 0
    poller = fleet.start_poller(env=STUCK)
    waits = fleet.create_run(fleet.deploy("@flow\ndef go():\n    pass\n"))
    poller.ask("/api/poke")
    fleet.wait_state(waits, "Submitted")

    left = fleet.command("flowfleet", "leave", "--detach", seconds=60)

    assert left.returncode == 0, left.stdout + left.stderr
    only, back = left.stdout.splitlines()
    name = fleet.api.run(held)["name"]
    assert only == f"Of the fleet {fleet.fleet} only these go on at the Prefect API: {name} on {identity(fleet)}."
    assert back == "To come back: worker resume --all, then poller start and worker start."
    assert fleet.api.state(waits)["name"] == "Scheduled"
    assert poller.wait() == 0
    assert name in poller.text().splitlines()[-1], "its last line names the run that goes on"

    stock = fleet.part("stock", [str(BIN / "prefect"), "worker", "start", "--pool", fleet.pool, "--type", "process"])
    fleet.wait_state(waits, "Completed", seconds=120)
    assert fleet.api.history(waits)[:4] == ["Scheduled", "Submitted", "Scheduled", "Pending"]
    stock.signal(signal.SIGINT)
    stock.wait()

    fleet.release()
    fleet.all_once([held])
    assert worker.wait() == 0
    again = fleet.command("flowfleet", "leave", seconds=60)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[0] == f"Nothing of the fleet {fleet.fleet} is left at the Prefect API."

    # and the way to flowfleet once more
    assert fleet.command("worker", "resume", "--all").returncode == 0
    fleet.start_poller()
    fleet.start_worker()
    fleet.all_once([fleet.create_run(fleet.deploy_tiny())])


def identity(fleet):
    (worker,) = fleet.status()["workers"]
    return f"{worker['name']}@{worker['host']}"
