"""Lingering: a run that has ended at the API while its process lives is told, and killed on demand only."""

import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest

from flowfleet.api.client import RunState, StateType
from flowfleet.errors import ApiUnavailable, KeyRefused
from flowfleet.ledger.claims import State
from flowfleet.retry import SharedOutage
from tests.unit.memory_ledger import START, HandClock, a_claim
from workers.deployment import StopReason
from workers.runs.lingering import Lingering
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolder


def ended(run_id, name="Completed", at=START):
    return RunState(run_id=run_id, run_name="n", kind=StateType(name.upper()), name=name, at=at)


class World:
    """One watch over runs of a table, an API that says what it is told to, and what was noted and stopped when."""

    def __init__(self, tmp_path, linger):
        self.folder, self.clock, self.attempts = tmp_path, HandClock(1000.0), Attempts()
        self.says, self.asked, self.noted, self.stopped = {}, [], [], []
        self.lingering = Lingering(
            worker="w@h",
            attempts=self.attempts,
            claims=SimpleNamespace(linger=lambda run_id, *_, **__: self.noted.append((run_id, self.at, _[-1]))),
            api=SimpleNamespace(states=self.states),
            supervisor=SimpleNamespace(
                stop=lambda key, stop: self.stopped.append((key, self.at, stop.reason, stop.kill))
            ),
            to_ledger=SimpleNamespace(post=lambda job: job()),
            outage=SharedOutage("the Prefect API", self.clock).of(),
            linger=linger,
            clock=self.clock,
        )

        self.next_look = self.clock.now + self.lingering._pause()

    @property
    def at(self):
        return self.clock.now - 1000.0

    def _stop(self, key, stop):
        self.stopped.append((key, self.at, stop.reason, stop.kill))

    def states(self, run_ids):
        self.asked.append((self.at, list(run_ids)))
        if isinstance(self.says, Exception):
            raise self.says
        return {run_id: self.says[run_id] for run_id in run_ids if run_id in self.says}

    def begin(self, run_id="r1", kind="process", **more):
        held, folder = a_claim(run_id, State.RUNNING, claim="c"), RunFolder(self.folder / f"{run_id}.c")
        run = SimpleNamespace(handle={"kind": kind})
        self.attempts.begin(Attempt(held=held, folder=folder, started_run=run, since=self.clock.now, **more))

    def go_on(self, seconds):
        """What its thread does in this time."""
        until = self.clock.now + seconds
        while self.next_look <= until:
            self.clock.now = self.next_look
            self.lingering.look()
            self.next_look = self.clock.now + self.lingering._pause()
        self.clock.now = until


@pytest.fixture
def world(request, tmp_path, caplog):
    caplog.set_level(logging.INFO, "workers.runs.lingering")
    return World(tmp_path, getattr(request, "param", None))


def test_all_runs_that_have_lived_for_some_time_are_asked_for_in_one_request_each_half_minute(world):
    world.go_on(300)
    assert world.asked == [], "nothing runs, nothing is asked"
    world.begin("r1")
    world.go_on(25)
    world.begin("r2")
    world.begin("elsewhere", kind="external")
    world.begin("lost", fenced=True)
    world.go_on(5 + 60)
    assert [run_ids for _, run_ids in world.asked] == [["r1"], ["r1", "r2"], ["r1", "r2"]]


def test_one_whose_process_goes_on_is_told_once_and_left_alone(world, caplog):
    world.begin()
    world.says = {"r1": ended("r1")}
    world.go_on(300)
    assert world.noted == [("r1", 35.0, "Completed")]
    assert [record.state for record in caplog.records] == ["Completed"]
    assert world.stopped == []
    assert len(world.asked) < 12


def test_one_whose_process_ends_a_moment_later_is_not_spoken_of(world, caplog):
    world.begin()
    world.says = {"r1": ended("r1")}
    world.go_on(31)
    world.attempts.remove("r1.c")
    world.go_on(300)
    assert (world.noted, caplog.records, len(world.asked)) == ([], [], 1)


@pytest.mark.parametrize(
    ("world", "looked", "killed"), [(3.0, 3.0, 6.0), (0.5, 1.0, 1.5), (100.0, 30.0, 130.0)], indirect=["world"]
)
def test_with_linger_it_is_killed_so_long_after_its_end_was_seen(world, caplog, looked, killed):
    world.begin()
    world.says = {"r1": ended("r1", "Failed")}
    world.go_on(400)
    assert world.asked[0][0] == looked
    # by no TERM: an engine takes that for a crash of the run, which it would write over the end
    assert world.stopped == [("r1.c", pytest.approx(killed), StopReason.LINGER, True)]
    (record,) = caplog.records
    assert (record.run_id, record.state, record.levelname) == ("r1", "Failed", "WARNING")


@pytest.mark.parametrize("world", [60.0], indirect=True)
@pytest.mark.parametrize("then", ["it is restarted", "it ends once more", "it is gone"])
def test_the_count_begins_anew_with_another_state(world, then):
    world.begin()
    world.says = {"r1": ended("r1", "Failed")}
    world.go_on(80)
    again = RunState(run_id="r1", run_name="n", kind=StateType.SCHEDULED, name="Scheduled")
    once_more = {"r1": ended("r1", "Failed", START + timedelta(1))}
    world.says = {"it is restarted": {"r1": again}, "it ends once more": once_more}.get(then, {})
    world.go_on(40)  # it would have been killed by now
    assert [state for *_, state in world.noted] == ["Failed", "Failed" if then == "it ends once more" else ""]
    world.says = once_more
    world.go_on(15)
    assert world.stopped == []
    world.go_on(90)
    assert len(world.stopped) == 1


def test_what_the_worker_before_has_noted_of_an_adopted_run_that_goes_on_is_taken_away_once(world):
    world.begin("adopted", adopted=True)
    world.begin("ours")
    going_on = {"run_name": "n", "kind": StateType.RUNNING, "name": "Running"}
    world.says = {run_id: RunState(run_id=run_id, **going_on) for run_id in ("adopted", "ours")}
    world.go_on(120)
    assert world.noted == [("adopted", 30.0, "")]


@pytest.mark.parametrize(("error", "asked"), [(ApiUnavailable("away"), 10), (KeyRefused("no"), 5)])
@pytest.mark.parametrize("seen", [False, True], ids=["from the start", "while an end is to be told"])
def test_an_api_that_does_not_answer_is_asked_again_no_more_often(world, error, asked, seen):
    world.begin()
    if seen:
        world.says = {"r1": ended("r1")}
        world.go_on(30)
        world.asked.clear()
    world.says = error
    world.go_on(301)
    assert len(world.asked) == asked
    world.says = {"r1": ended("r1")}
    world.go_on(100)
    assert len(world.noted) == 1
