"""Lingering: a run that has ended while its process has not is told by status and explain, and killed by --linger."""

from tests import processes
from tests.waiting import until

#: the engine has told Completed long before either of these would end
FLOWS = {
    "thread": """
        import threading

        @flow
        def go():
            note("ran")
            threading.Thread(target=time.sleep, args=(600,)).start()
    """,
    "hook": """
        def hook(_flow, _run, _state):
            note("hook")
            time.sleep(600)

        @flow(on_completion=[hook])
        def go():
            note("ran")
    """,
}


def lingering(world, run):
    """What status says of it."""
    return next((row["lingers"] for row in world.seen()["runs"] if row["run_id"] == run), None)


def explained(world, run):
    done = world.command("flowfleet", "explain", run)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


def test_a_process_that_outlives_the_end_of_its_run_is_told_and_then_killed_on_demand_and_the_end_stands(fleet):
    fleet.start_poller()
    worker = fleet.start_worker(slots=2)
    runs = [fleet.create_run(fleet.deploy(source)) for source in FLOWS.values()]
    pids = [int(fleet.wait_note(run, "ran")[1]) for run in runs]
    for run in runs:
        fleet.wait_state(run, "Completed")
        assert explained(fleet, run).startswith("It has ended (the API says Completed), and its process on worker@")
    for run in runs:
        # a worker asks each half minute about what is as old as that, and is sure 5 s later
        found = until(lambda run=run: lingering(fleet, run), 120, "status to tell it", pause=0.1)
        assert found["state"] == "Completed"
    assert "lingers: it has ended at the API" in fleet.command("flowfleet", "status").stdout
    said = lambda: worker.text().count("run has ended and its process has not")  # noqa: E731
    until(lambda: said() >= 2, 20, "the worker to say so, too")
    assert said() == 2
    assert [processes.alive(pid) for pid in pids] == [True, True], "by default it is left alone"

    assert worker.stop() == 0
    worker = fleet.start_worker("worker", "--linger", "3", slots=2)
    until(lambda: not any(map(processes.alive, pids)), 30, "the processes to be killed")
    fleet.wait_empty()
    assert worker.text().count("run has ended and its process has not: it is killed") == 2
    for record in fleet.records():
        assert (record["outcome"], record["exit"]["stop_reason"]) == ("completed", "linger")
    for run in runs:
        assert fleet.api.history(run)[-1] == "Completed", "nothing is written over it"
        until(lambda run=run: any("--linger was over" in line for line in fleet.api.logs(run)), 10, "its log to say so")
