"""Adoption: a run outlives its worker, and the next worker of the host tells its true end."""

import re
import signal

import pytest

from tests import processes
from tests.waiting import until
from tests.world import World

HELD = """
    @flow
    def go():
        note("ran")
        gate = os.path.join(os.environ["FFTEST_NOTES"], "release")
        for _ in range(30_000):
            if os.path.exists(gate):
                os._exit(7)
            time.sleep(0.02)
"""


@pytest.fixture(params=["able", pytest.param("plain", marks=pytest.mark.slow)])
def fleet(fleet: World, request: pytest.FixtureRequest) -> World:
    """Each test once more with a worker that does without pidfd, subreaper and /proc."""
    if request.param == "plain":
        fleet.env["FLOWFLEET_PLAIN"] = "1"
    return fleet


def running(world, run):
    """The run's row in status, once some worker has it as running."""
    rows = [row for row in world.seen()["runs"] if row["run_id"] == run and row["state"] == "running"]
    return rows[0] if rows else None


def test_a_run_goes_on_through_ten_kills_of_its_worker(fleet):
    fleet.start_poller()
    worker = fleet.start_worker()
    run = fleet.create_run(fleet.deploy(HELD))
    (_, pid, *_) = fleet.wait_note(run, "ran")
    handle = until(lambda: running(fleet, run), 20, "the run in status")["handle"]

    for _ in range(10):
        worker.kill()
        assert processes.alive(int(pid))
        worker = fleet.start_worker()
        assert processes.alive(int(pid))
    row = until(lambda: running(fleet, run), 20, "the adopted run in status")
    assert row["handle"] == handle
    assert row["attempt"] == 1

    fleet.release()
    assert "code 7" in fleet.wait_state(run, "Crashed")["message"]
    assert [note[:2] for note in fleet.notes(run)] == [["ran", pid]]
    fleet.wait_empty()


@pytest.mark.parametrize("code", [0, 9])
def test_an_end_that_no_worker_saw_after_a_stop_or_a_kill_is_told_by_the_next_one_with_its_code(fleet, code):
    fleet.start_poller()
    worker = fleet.start_worker("worker", "--on-stop", "detach")
    run, pid = fleet.held(code)
    if code:
        worker.kill()
    else:
        assert worker.stop() == 0
        assert run in worker.text()
    assert processes.alive(pid)
    fleet.release()
    until(lambda: not processes.alive(pid), 20, "the end of the run")
    fleet.start_worker()
    if code:
        assert f"code {code}" in fleet.wait_state(run, "Crashed")["message"]
    else:
        fleet.all_once([run])
    fleet.wait_empty()


def test_a_stop_that_ends_its_runs_says_so_before_and_tells_each_run_with_which_worker_it_was_stopped(fleet):
    fleet.start_poller()
    # as in a pod, where nothing says what to do; the tests' own environment does
    worker = fleet.start_worker(
        "worker", "--stop-grace", "1", slots=3, env={"FLOWFLEET_ON_STOP": None, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    )
    assert "on stop: waits for its runs, then ends them" in worker.text()
    assert "in a pod; Kubernetes itself kills after 30 s" in worker.text()
    held = dict([fleet.held(), fleet.held()])
    patient = fleet.create_run(fleet.deploy_tiny("hold", variables={"stop_grace": 60}))
    fleet.wait_held(patient)
    worker.signal(signal.SIGTERM)
    until(lambda: "waits for its runs" in worker.text().partition("this worker stops")[2], 10, "the worker to say so")
    assert re.search(r"runs=3 worker=\S+ grace_seconds=60", worker.text())
    until(lambda: not any(map(processes.alive, held.values())), 30, "those without a time of their own to be ended")
    fleet.release()
    assert worker.wait(60) == 0
    (name,) = {row["worker"] for row in fleet.records()}
    for run, pid in held.items():
        assert not processes.alive(pid)
        state = fleet.wait_state(run, "Crashed")
        assert state["message"].startswith(f"The flow run's process was stopped with its worker {name} (SIGTERM).")
    assert fleet.wait_state(patient, "Completed"), "its own time was long enough"


def test_a_stop_puts_its_runs_back_where_the_fleet_starts_lost_runs_again(fleet):
    fleet.start_poller("agent", "--on-lost-run", "requeue")
    worker = fleet.start_worker("worker", "--on-stop", "cancel", "--stop-grace", "20", slots=1)
    source = """
        @flow
        def go():
            note("ran")
            if not os.path.exists(os.path.join(os.environ["FFTEST_NOTES"], "release")):
                time.sleep(600)
    """
    run = fleet.create_run(fleet.deploy(source))
    (_, pid, *_) = fleet.wait_note(run, "ran")
    assert worker.stop() == 0
    assert not processes.alive(int(pid))
    told = fleet.wait_state(run, "Scheduled", "AwaitingRetry")["message"]
    assert "was stopped with its worker worker@" in told
    assert "and the run is started again" in told

    fleet.release()
    fleet.start_worker("worker", slots=1)
    fleet.wait_state(run, "Completed")
    once = ["Scheduled", "Submitted", "Launching", "Running"]
    assert fleet.api.history(run) == [*once, *once, "Completed"]
    assert fleet.words(run) == ["ran", "ran"]


def test_a_run_whose_engine_writes_an_end_of_its_own_at_a_stop_is_told_on_its_log_page(fleet):
    fleet.start_poller()
    worker = fleet.start_worker("worker", "--on-stop", "cancel", "--stop-grace", "20", slots=2)
    run = fleet.create_run(fleet.deploy(HELD))
    # a worker that has nothing else to do gives the API a second for its last lines: this one waits for a deaf run
    begun, gate = (fleet.notes_folder / name for name in ("deaf", "release"))
    deaf = f"sh -c 'trap \"\" TERM; touch {begun}; until [ -e {gate} ]; do sleep 0.1; done'"
    fleet.create_run(fleet.deploy_tiny(variables={"command": deaf, "stop_grace": 300}))
    until(begun.exists, 60, "the deaf run to begin")
    fleet.wait_note(run, "ran")
    worker.signal(signal.SIGTERM)
    # by Prefect's own engine, at each TERM
    assert "termination signal" in fleet.wait_state(run, "Crashed")["message"]
    told = lambda: any("was stopped with its worker worker@" in line for line in fleet.api.logs(run))  # noqa: E731
    until(told, 60, "its log page to tell of the stop", pause=0.2)
    fleet.release()
    assert worker.wait(60) == 0
