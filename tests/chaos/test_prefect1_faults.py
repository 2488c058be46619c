"""Prefect 1 with all that its server and the lines to it do wrong: no run is lost, and none is run twice."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.prefect1_api import Faults
from tests.prefect1_world import World1
from tests.waiting import until
from tests.world import Part


@pytest.fixture
def loose1(tmp_path: Path, valkey: Any) -> Iterator[World1]:
    """As Server is: nothing of ours may lean on locks that it does not have."""
    world = World1(tmp_path, valkey.tcp_url, faults=Faults.like_server())
    yield world
    world.close()


@pytest.fixture(params=["world1", "loose1"], ids=["strict", "server"])
def fleet1(request: pytest.FixtureRequest) -> World1:
    return request.getfixturevalue(request.param)


def all_once(world: World1, runs: list[str], seconds: float = 90) -> None:
    """Every run comes to Success, and each was begun by one process, once; nothing is left of it."""
    until(lambda: all(world.api.state(run) == "Success" for run in runs), seconds, "all runs to succeed", pause=0.2)
    world.all_once(runs)
    world.wait_empty()


def test_a_hundred_runs_on_three_workers_under_two_pollers_run_once_each(fleet1):
    """They are more than the server's window, and come all to their turn."""
    fleet1.start_poller("first")
    fleet1.start_poller("second")
    for number in range(3):
        fleet1.start_worker(f"w{number}", "x", f"w{number}", slots=3, tiny=True)
    runs = [fleet1.tiny_run("x") for _ in range(100)]
    all_once(fleet1, runs, 120)


def test_the_worker_is_killed_ten_times_and_tells_a_true_exit_and_that_a_process_group_was_killed(loose1):
    """Though nobody heartbeats."""
    loose1.start_poller()
    worker = loose1.start_worker("w", "x", tiny=True)
    run_id, pid = loose1.held(7, "x")
    cut_off, _ = loose1.held(0, "x")
    for _ in range(10):
        worker.kill()
        worker = loose1.start_worker("w", "x", tiny=True)
    loose1.kill_engine(cut_off, os.killpg)
    assert loose1.wait_end(cut_off, 10) == "Failed"
    assert "SIGKILL" in loose1.message(cut_off)
    loose1.release()
    assert loose1.wait_end(run_id) == "Failed"
    assert "code 7" in loose1.message(run_id)
    assert [(note[0], note[1]) for note in loose1.notes(run_id)] == [("ran", str(pid)), ("done", str(pid))]
    assert loose1.api.history(run_id) == ["Scheduled", "Submitted", "Running", "Failed"]


@pytest.mark.stress
def test_pollers_that_are_killed_in_turn_lose_and_double_nothing(loose1):
    pollers = [loose1.start_poller(f"p{number}") for number in range(2)]
    loose1.start_worker("w", "x", slots=3, tiny=True)
    runs = []
    for number in range(2):
        runs += [loose1.tiny_run("x") for _ in range(4)]
        states = lambda batch=runs[-4:]: {loose1.api.state(run) for run in batch}  # noqa: E731
        until(lambda states=states: states() != {"Scheduled"}, 60, "a run of the batch to be claimed")
        pollers[number % 2].kill()
        pollers[number % 2] = loose1.start_poller(f"p{number % 2}", wait=False)
    all_once(loose1, runs, 120)


FAULTS: dict[str, Callable[[Faults], None]] = {
    "500": lambda faults: faults.broken(times=5),
    "500 after the commit": lambda faults: faults.broken_after(times=5),
    "429": lambda faults: faults.throttled(times=5, retry_after=1),
    "429 without a word": lambda faults: faults.throttled(times=3),
    "503": lambda faults: faults.broken(status=503, times=6),
    "broken lines": lambda faults: faults.dropped(times=6),
    "lost answers": lambda faults: faults.lost(times=6),
    "fields refused": lambda faults: faults.refused("set_flow_run_states", times=6),
    "fields refused though done": lambda faults: faults.refused_after("set_flow_run_states", times=6),
    "nonsense": lambda faults: faults.answered(b"<html>hello</html>", times=4),
    "half an answer": lambda faults: faults.answered({"data": {}}, times=4),
    "hangs": lambda faults: faults.hung(times=2),
    "commits after the time-out": lambda faults: faults.late("set_flow_run_states", times=2),
}


#: the others are like one of these, and met by `make stress`
IN_CI = ("500 after the commit", "429", "lost answers", "hangs", "commits after the time-out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.stress) for name in FAULTS]
)
def test_nothing_is_lost_or_doubled_under(loose1, fault):
    loose1.start_poller()
    loose1.start_worker("w", "x", slots=3, tiny=True)
    witness = loose1.tiny_run("x")
    all_once(loose1, [witness])
    FAULTS[fault](loose1.api.faults)
    asked = loose1.api.counted()
    runs = [loose1.tiny_run("x") for _ in range(8)]
    until(lambda: loose1.api.counted() >= asked + 3, 60, "the fault to be met")
    if fault in ("hangs", "commits after the time-out"):
        until(lambda: not loose1.api.faults.pending(), 90, "the requests to be held")
        loose1.api.faults.release()
    all_once(loose1, [witness, *runs])


@pytest.mark.stress
def test_nothing_is_lost_or_doubled_under_all_of_it_at_once(loose1):
    pollers = [loose1.start_poller(f"p{number}") for number in range(2)]
    for number in range(2):
        loose1.start_worker(f"w{number}", "x", slots=2, tiny=True)
    runs = []
    for number, fault in enumerate(FAULTS):
        FAULTS[fault](loose1.api.faults)
        runs += [loose1.tiny_run("x") for _ in range(3)]
        if number % 5 == 4:
            pollers[number % 2].kill()
            pollers[number % 2] = loose1.start_poller(f"p{number % 2}", wait=False)
    until(lambda: not loose1.api.faults.pending() or _tend(loose1, pollers), 120, "the faults to be over", pause=1.0)
    loose1.api.faults.heal()
    all_once(loose1, runs, 180)


def _tend(world: World1, pollers: list[Part]) -> bool:
    """What hangs is let go of now and then, so that all other faults come to be met.

    A poller that met nonsense at its start took the address for a wrong one: its unit starts it again.
    """
    world.api.faults.release()
    for number, poller in enumerate(pollers):
        if poller.process.poll() is not None:
            pollers[number] = world.start_poller(f"p{number}", wait=False)
    return False


def test_a_run_that_lazarus_puts_back_while_its_process_lives_goes_on_and_is_not_begun_again(fleet1):
    poller = fleet1.start_poller()
    fleet1.start_worker("w", "x", tiny=True)
    run_id, _ = fleet1.held(0, "x")
    fleet1.api.heartbeat(run_id, 700)
    assert fleet1.api.services.lazarus() == [run_id]
    assert fleet1.wait_state(run_id, "Running", seconds=30) == "Running"
    # before its end, which may come between the poller's write and its look at it
    until(lambda: "flowfleet_runs_echoed_total 1.0" in poller.ask("/metrics")[1], 10, "the write to be counted")
    fleet1.release()
    all_once(fleet1, [run_id])


def test_no_more_runs_go_at_once_than_there_are_slots_and_the_rest_waits_at_the_api(loose1):
    loose1.start_poller()
    loose1.start_worker("w", "x", slots=2, tiny=True)
    runs = [loose1.tiny_run("x", hold=True) for _ in range(6)]
    until(lambda: sum("ran" in loose1.words(run) for run in runs) == 2, 60, "two runs to begin")
    until(lambda: loose1.status()["counts"]["due"] == 4, 30, "the others to be counted as due")
    states = lambda: sorted(loose1.api.state(run) for run in runs)  # noqa: E731
    until(lambda: states() == ["Running"] * 2 + ["Scheduled"] * 4, 30, "the two to run at the API")
    loose1.release()
    all_once(loose1, runs)
    notes = [note for run in runs for note in loose1.notes(run)]
    steps = [1 if note[0] == "ran" else -1 for note in sorted(notes, key=lambda note: float(note[2]))]
    assert max(itertools.accumulate(steps)) == 2


def test_sigterm_of_poller_and_worker_amid_many_runs_loses_none(loose1):
    poller, worker = loose1.start_poller(), loose1.start_worker("w", "x", slots=2, tiny=True)
    runs = [loose1.tiny_run("x") for _ in range(12)]
    until(lambda: any(loose1.words(run) for run in runs), 60, "the first run to begin")
    assert (poller.stop(), worker.stop()) == (0, 0)
    # one that was started in the last moment says so a moment later
    left = lambda: {loose1.api.state(run) for run in runs if not loose1.words(run)}  # noqa: E731
    until(lambda: left() <= {"Scheduled"}, 30, "all that has not begun to be given back")
    loose1.start_poller()
    loose1.start_worker("w", "x", slots=2, tiny=True)
    all_once(loose1, runs)
