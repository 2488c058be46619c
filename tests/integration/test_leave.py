"""Leave: the command on real pollers and workers, where one of them is gone, killed on the way, or started anew."""

import signal

import pytest

from tests import processes
from tests.waiting import until
from tests.world import BIN

#: each claim is queued, and its message is sent nowhere: nobody takes it
STUCK = {"FLOWFLEET_FAILPOINT": "claim.after_accept:raise"}


@pytest.fixture
def world(lawless):
    # a killed worker is seen to be gone after seconds
    lawless.env |= {"FLOWFLEET_RENEW_SECONDS": "1", "FLOWFLEET_LEASE_SECONDS": "5"}
    return lawless


def leave(world, *options, code=0, **env):
    done = world.command("flowfleet", "leave", *options, seconds=60, **env)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def queued(world, number=2, of_poller="", **of_worker):
    """Runs that are queued, with a poller whose messages are sent nowhere, and a worker."""
    poller = world.start_poller(env={name: f"{value}{of_poller}" for name, value in STUCK.items()})
    worker = world.start_worker(**of_worker)
    deployment = world.deploy_tiny()
    runs = [world.create_run(deployment) for _ in range(number)]
    poller.ask("/api/poke")
    until(lambda: states(world) == ["queued"] * number, 40, "all to be queued")
    return poller, worker, runs


def states(world):
    return [run["state"] for run in world.seen()["runs"]]


def are_back(world, runs):
    return {world.api.state(run)["type"] for run in runs} == {"SCHEDULED"} and world.seen()["runs"] == []


def test_workers_and_all_pollers_end_and_what_waited_is_back(world):
    poller, worker, runs = queued(world)
    standby = world.start_poller("agent-b")

    done = leave(world)

    assert done.stdout.startswith(f"Nothing of the fleet {world.fleet} is left at the Prefect API.\nTo come back: ")
    assert are_back(world, runs)
    assert (worker.wait(), poller.wait(), standby.wait()) == (0, 0, 0)
    assert world.seen()["leader"] is None
    assert [row["state"] for row in world.seen()["workers"]] == ["stopped"]


def test_without_any_poller_the_command_itself_gives_back(world):
    world.env["FLOWFLEET_LEASE_SECONDS"] = "600"  # a frozen worker that counts as lost is not waited for
    poller, worker, runs = queued(world)
    worker.signal(signal.SIGSTOP)  # it yields nothing
    poller.kill()
    try:
        with world.ledger() as ledger:
            ledger.gate.resign(ledger.gate.leader().term)  # else its time must pass first
        leave_part = world.part("leave", [str(BIN / "flowfleet"), "leave"])
        until(lambda: are_back(world, runs), 40, "the runs to be back")
        assert leave_part.process.poll() is None, "it waits for the worker"
    finally:
        worker.signal(signal.SIGCONT)
    assert leave_part.wait() == 0
    assert worker.wait() == 0


def test_a_worker_that_is_killed_while_it_yields_strands_nothing_since_the_leader_finishes(world):
    poller, worker, runs = queued(world, env={"FLOWFLEET_FAILPOINT": "leave.after_ledger:kill"})
    poller.signal(signal.SIGSTOP)  # else it gives back what a slow worker has not given back after 5 s
    try:
        assert world.command("worker", "drain", "--all").returncode == 0
        assert worker.wait() == -signal.SIGKILL
        assert states(world) == ["returning"] * 2
    finally:
        poller.signal(signal.SIGCONT)
    until(lambda: are_back(world, runs), 60, "the runs to be back, by the leader")


@pytest.mark.slow
def test_a_leader_that_is_killed_while_it_leaves_strands_nothing_since_the_command_takes_its_place(world):
    poller, worker, runs = queued(world, of_poller=",return.after_ledger:kill")
    worker.signal(signal.SIGSTOP)
    done = world.part("leave", [str(BIN / "flowfleet"), "leave"])
    assert poller.wait() == -signal.SIGKILL
    until(lambda: are_back(world, runs), 90, "the runs to be back, by the poller inside the command")
    worker.signal(signal.SIGCONT)
    assert done.wait(60) == 0
    assert "goes back" in done.all_text() or "go back" in done.all_text()


def test_runs_of_a_worker_that_is_gone_are_named_and_left_only_with_detach(world):
    world.start_poller()
    worker = world.start_worker()
    run, pid = world.held()
    assert worker.stop() == 0

    done = leave(world, code=5)
    assert "say worker resume worker@" in done.stderr
    assert "--detach" in done.stderr
    assert done.stdout == ""
    done = leave(world, "--detach")
    assert "only these go on" in done.stdout
    assert processes.alive(pid)
    world.release()
    world.command("worker", "resume", "--all")
    world.start_worker()
    world.wait_state(run, "Completed")


def test_a_poller_that_is_started_after_it_takes_the_word_back_and_drained_workers_wait_for_their_resume(world):
    world.start_poller()
    worker = world.start_worker()
    leave(world)
    assert worker.wait() == 0
    with world.ledger() as ledger:
        assert ledger.gate.leave_ordered()
        world.start_poller("agent-b")
        assert not ledger.gate.leave_ordered()
    drained = world.start_worker(wait=False)
    assert drained.wait() == 7
    assert "worker resume" in drained.text()
    assert world.command("worker", "resume", "--all").returncode == 0
    world.start_worker()
    world.all_once([world.create_run(world.deploy_tiny())])


def test_an_api_that_is_away_is_said_before_anything_is_drained(world):
    worker = world.start_worker()
    done = leave(world, code=3, PREFECT_API_URL="http://127.0.0.1:1/api")
    assert "127.0.0.1:1" in done.stderr
    assert world.seen()["workers"][0]["state"] == "active"
    assert worker.process.poll() is None


def test_at_prefect1_what_waited_is_scheduled_again_and_the_run_that_goes_on_keeps_its_worker(world1):
    first, worker = world1.start_poller(), world1.start_worker("one", "x", tiny=True)
    held, _ = world1.held(0, "x")
    assert first.stop() == 0
    poller = world1.start_poller(env=STUCK)
    waits = world1.tiny_run("x")
    poller.ask("/api/poke")
    world1.wait_state(waits, "Submitted")

    done = leave(world1, "--detach")

    assert "only these go on" in done.stdout
    assert world1.api.state(waits) == "Scheduled"
    assert poller.wait() == 0
    world1.release()
    assert world1.wait_end(held) == "Success"
    assert worker.wait() == 0
    assert leave(world1).stdout.startswith("Nothing of the fleet")
