"""Adoption: a run outlives its worker, and the next worker of the host tells its true end."""

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


def test_a_stop_with_on_stop_cancel_ends_the_runs_first(fleet):
    fleet.start_poller()
    worker = fleet.start_worker("worker", "--on-stop", "cancel", "--stop-grace", "5")
    run, pid = fleet.held()
    assert worker.stop() == 0
    assert not processes.alive(pid)
    fleet.wait_state(run, "Cancelled", "Crashed")
