"""What the leader tells of runs that it does not hear of, when the API answers late, wrongly or not at all."""

import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from flowfleet.api.client import StateType, Verdict
from flowfleet.ledger.claims import State
from poller.cancellation import FEW, MANY_GONE_SECONDS
from poller.lost_reports import AGAIN_SECONDS, GONE_SECONDS
from poller.reconcile import OWNER_SECONDS
from tests.unit.lost_runs import GRACE, TTL, WORKER, lonely, started, state
from tests.unit.poller_world import World


def test_since_when_a_host_was_not_heard_of_is_the_same_for_every_leader():
    world, run_id = lonely()
    silent = world.time.moment()
    world.rounds(TTL + GRACE - 20, beat=False)
    world.gate.written = None
    world.build()
    world.rounds(GRACE + 10, beat=False)

    assert state(world, run_id) is None
    told = re.search(r"not been heard of since (\S+ \S+) UTC", world.api.reports[0][2])
    heard = datetime.strptime(told[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs((heard - silent).total_seconds()) <= 3


def answers_late(world: World) -> None:
    """The API carries out what it is asked to run again, and its answer is lost."""
    asked = world.api.run_again

    def late(*args, **more):
        return replace(asked(*args, **more), verdict=Verdict.UNSURE, reason="no answer within 60 s")

    world.api.run_again = late


def test_a_run_that_was_started_again_without_an_answer_counts_as_one_more_attempt():
    world, run_id = lonely(policy="requeue", proof="forgotten", attempt=2)
    answers_late(world)
    world.rounds(20, beat=False)

    assert world.claims.attempts == {run_id: 2}
    assert world.claims.tombs() == []


def test_a_run_that_its_worker_has_started_again_before_it_fell_silent_counts_as_one_more_attempt():
    world, run_id = lonely(policy="requeue", state=State.ENDED, exit={"code": 3}, attempt=2)
    claim = world.claims.get(run_id).claim
    world.api.run_again(run_id, claim, "stopped", None)
    world.rounds(TTL + GRACE + 6, beat=False)

    assert state(world, run_id) is None
    assert world.claims.attempts == {run_id: 2}


def test_a_run_that_somebody_else_has_scheduled_begins_its_count_anew():
    world, run_id = lonely(policy="requeue", proof="forgotten", attempt=2)
    world.api.be(run_id, StateType.SCHEDULED, "Scheduled", call=str(uuid.uuid4()))
    world.rounds(10, beat=False)

    assert world.claims.attempts == {}


def test_the_end_of_a_run_whose_host_is_away_is_told_by_the_leader():
    world, run_id = lonely(state=State.ENDED, exit={"code": 3})
    world.rounds(TTL + GRACE - 4, beat=False)
    assert state(world, run_id) is State.ENDED
    world.rounds(6, beat=False)

    assert state(world, run_id) is None
    assert world.api.reports[0][1] is StateType.CRASHED
    assert "exited 3" in world.api.reports[0][2]


def beats(world: World, seconds: float) -> None:
    """The worker lives for so long, and does not hold its claims."""
    for _ in range(int(seconds / 5)):
        world.roster.change(beat=world.roster.table[WORKER].beat + 1)
        world.rounds(5, beat=False)


def test_an_end_that_its_worker_holds_is_left_to_it():
    world, run_id = lonely(state=State.ENDED, exit={"code": 3})
    world.rounds(900)

    assert state(world, run_id) is State.ENDED


def test_an_end_whose_worker_lives_and_has_lost_its_disk_is_told_by_the_leader():
    world, run_id = lonely(state=State.ENDED, exit={"code": 3})
    beats(world, TTL + GRACE + OWNER_SECONDS - 10)
    assert state(world, run_id) is State.ENDED
    beats(world, 20)

    assert state(world, run_id) is None
    [(told, kind, message)] = world.api.reports
    assert (told, kind) == (run_id, StateType.CRASHED)
    assert "exited 3 on worker@a, which has lost the records of it." in message


def test_a_worker_that_lives_has_its_time_to_tell_an_end_once_the_api_is_back():
    world, run_id = lonely(state=State.ENDED, exit={"code": 3})
    beats(world, TTL + GRACE + 10)
    world.api.fail()
    beats(world, 300)
    world.api.heal()
    beats(world, OWNER_SECONDS - 10)
    assert state(world, run_id) is State.ENDED
    beats(world, 60)

    assert state(world, run_id) is None


@pytest.mark.parametrize("facts", [{}, {"state": State.ENDED, "exit": {"code": 3}}], ids=["lost", "ended"])
def test_a_run_that_the_api_does_not_show_for_a_moment_is_told_all_the_same(facts):
    world, run_id = lonely(**facts)
    world.rounds(TTL + GRACE - 2, beat=False)
    there = world.api.runs.pop(run_id)
    world.rounds(GONE_SECONDS - 4, beat=False)
    assert state(world, run_id) in (State.JUDGED, State.ENDED)
    world.api.runs[run_id] = there
    world.rounds(AGAIN_SECONDS + 2, beat=False)

    assert state(world, run_id) is None
    assert world.api.kind(run_id) is StateType.CRASHED


def test_of_a_run_that_was_deleted_nothing_is_told():
    world, run_id = lonely()
    world.rounds(TTL + GRACE - 2, beat=False)
    del world.api.runs[run_id]
    world.rounds(GONE_SECONDS + 12, beat=False)

    assert state(world, run_id) is None
    assert world.api.reports == []


def test_an_api_that_has_lost_most_of_its_runs_is_given_two_minutes_to_find_them():
    world = World.of(boot_id="boot-1", machine="m")
    world.rounds(2.0)
    runs = [started(world, f"run-{number}", proof="forgotten") for number in range(FEW + 1)]
    there, world.api.runs = world.api.runs, {}
    world.rounds(MANY_GONE_SECONDS - 10, beat=False)
    assert {state(world, run_id) for run_id in runs} == {State.JUDGED}
    world.api.runs = there
    world.rounds(10, beat=False)

    assert {world.api.kind(run_id) for run_id in runs} == {StateType.CRASHED}
