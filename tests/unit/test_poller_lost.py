"""The leader and what it does not hear of: missing, judged, told and buried, by its own clock."""

from dataclasses import replace

import pytest

from flowfleet.api.client import StateType
from flowfleet.errors import ApiUnavailable
from flowfleet.ledger.claims import CancelHow, State
from tests.unit.lost_runs import GRACE, TTL, lonely, started, state
from tests.unit.poller_world import FakePrefect1, Time, World


def test_a_run_whose_host_is_silent_is_missing_after_a_lease_and_told_as_lost_after_the_grace():
    world, run_id = lonely()

    world.rounds(TTL - 2, beat=False)
    assert state(world, run_id) is State.RUNNING
    world.rounds(4, beat=False)
    assert state(world, run_id) is State.MISSING
    world.rounds(GRACE - 4, beat=False)
    assert state(world, run_id) is State.MISSING
    assert world.api.reports == []
    world.rounds(6, beat=False)

    assert state(world, run_id) is None
    [(told, kind, message)] = world.api.reports
    assert (told, kind) == (run_id, StateType.CRASHED)
    assert "its host a (worker worker@a) has not been heard of since 2026-11-21 12:0" in message
    assert "`worker forget worker@a`" in message
    assert world.claims.tombs()[0].run_id == run_id
    assert world.metric("flowfleet_claims_lost_total") == 1


def test_a_host_that_is_heard_of_in_the_grace_has_its_run_back():
    world, run_id = lonely()
    world.rounds(TTL + 60, beat=False)
    assert state(world, run_id) is State.MISSING
    world.claims.be(run_id, State.RUNNING)

    for _ in range(20):
        world.rounds(10)
    assert state(world, run_id) is State.RUNNING
    assert world.api.reports == []


def test_an_outage_of_redis_begins_the_watch_anew():
    world, run_id = lonely()
    world.rounds(TTL - 3, beat=False)
    world.ledger.away = True
    world.rounds(30, beat=False)
    world.ledger.away = False
    world.rounds(TTL - 5, beat=False)

    assert state(world, run_id) is State.RUNNING


@pytest.mark.parametrize(
    ("kind", "name", "kept"),
    [
        (StateType.COMPLETED, "Completed", StateType.COMPLETED),
        (StateType.SCHEDULED, "Scheduled", StateType.SCHEDULED),
        (StateType.CANCELLING, "Cancelling", StateType.CANCELLED),
        (StateType.PENDING, "Launching", StateType.CRASHED),
    ],
)
def test_what_the_api_shows_decides_what_it_is_told(kind, name, kept):
    world, run_id = lonely()
    world.api.be(run_id, kind, name)
    world.rounds(TTL + GRACE + 6, beat=False)

    assert state(world, run_id) is None
    assert world.api.kind(run_id) is kept
    if kept is StateType.CANCELLED:
        assert "its host is away; the process may still run there" in world.api.reports[0][2]


def test_of_a_lost_run_that_was_to_be_cancelled_its_end_says_who_asked():
    world, run_id = lonely()
    world.api.be(run_id, StateType.CANCELLING, "Cancelling")
    claim = world.claims.by_run[run_id]
    world.claims.cancel(run_id, claim.claim, CancelHow.ASKED, "by u@h: wrong input")
    world.rounds(TTL + GRACE + 6, beat=False)
    assert "A cancel was asked for (by u@h: wrong input). The flow run was lost" in world.api.reports[0][2]


def test_of_a_cancelled_run_that_is_proved_dead_nobody_says_that_its_process_may_live():
    world, run_id = lonely()
    world.api.be(run_id, StateType.CANCELLING, "Cancelling")
    world.rounds(TTL + 3, beat=False)
    world.roster.change(boot_id="boot-2")
    world.rounds(3, beat=False)

    (report,) = world.api.reports
    assert report[2].startswith("Cancelled: its host is away. ")
    assert "may still run" not in report[2]


def test_a_proof_ends_the_grace_and_leaves_no_tombstone():
    world, run_id = lonely()
    world.rounds(TTL + 3, beat=False)
    world.roster.change(boot_id="boot-2")
    world.rounds(3, beat=False)

    assert state(world, run_id) is None
    assert "its host a was restarted" in world.api.reports[0][2]
    assert world.claims.tombs() == []


def test_another_machine_with_the_same_name_proves_nothing():
    world, run_id = lonely()
    world.rounds(TTL + 3, beat=False)
    world.roster.change(boot_id="boot-2", machine="another")
    world.rounds(10, beat=False)

    assert state(world, run_id) is State.MISSING


def test_a_host_that_names_no_machine_proves_nothing_by_another_boot_id():
    world, run_id = lonely(machine="")
    world.rounds(TTL + 3, beat=False)
    world.roster.change(boot_id="boot-2", machine="")
    world.rounds(10, beat=False)

    assert state(world, run_id) is State.MISSING


def test_what_a_person_has_given_up_waits_for_no_lease():
    world, run_id = lonely(proof="forgotten")
    world.rounds(4, beat=False)

    assert world.api.kind(run_id) is StateType.CRASHED
    assert "worker forget" in world.api.reports[0][2]
    assert world.claims.tombs() == []


def test_a_retry_of_a_lost_run_waits_for_its_host_and_its_user_is_told_once_why():
    world, run_id = lonely()
    world.rounds(TTL + GRACE + 6, beat=False)
    world.api.due_at[run_id] = world.time.moment()
    world.api.be(run_id, StateType.SCHEDULED, "Scheduled")
    world.roster.change(live=True, boot_id="boot-1")
    world.rounds(60)

    assert world.published == []
    [line] = world.api.lines
    assert line.run_id == run_id
    assert "may live on a: bring it back, or, if it is gone for good, `worker forget worker@a`" in line.message

    world.roster.change(boot_id="boot-2")
    world.rounds(15)
    assert [message.run_id for message in world.published] == [run_id]


def test_a_buried_process_keeps_its_slot():
    world, _ = lonely()
    world.rounds(TTL + GRACE + 6, beat=False)
    world.roster.change(live=True, slots=2)
    world.api.add_many(3)
    world.rounds(20)

    assert len(world.published) == 1


def test_most_of_the_runs_missing_at_once_are_waited_for_once_more(caplog):
    world = World.of(boot_id="boot-1", machine="m")
    world.rounds(2.0)
    runs = [started(world, f"run-{number}") for number in range(3)]
    world.rounds(TTL + GRACE + 6, beat=False)

    assert {state(world, run_id) for run_id in runs} == {State.MISSING}
    assert [record.missing for record in caplog.records if "more than half" in record.message] == [3]
    world.rounds(TTL, beat=False)
    assert {state(world, run_id) for run_id in runs} == {None}


@pytest.mark.parametrize(("lost", "living"), [(1, 0), (2, 2), (2, 3)])
def test_a_single_run_or_no_more_than_half_of_them_missing_are_waited_for_no_longer(lost, living, caplog):
    world = World.of(boot_id="boot-1", machine="m")
    world.roster.add("other@b", boot_id="boot-1", machine="n")
    world.rounds(2.0)
    silent = [started(world, f"silent-{number}") for number in range(lost)]
    heard = [started(world, f"heard-{number}", worker="other@b", machine="n") for number in range(living)]
    for _ in range(int((TTL + GRACE + 6) / 2)):
        world.roster.beat("other@b")
        world.rounds(2, beat=False)

    assert {state(world, run_id) for run_id in silent} == {None}
    assert {state(world, run_id) for run_id in heard} <= {State.RUNNING}
    assert "more than half" not in caplog.text


def test_a_worker_that_only_the_api_hears_of_is_waited_for_ten_minutes_and_told_as_cut_off():
    world, run_id = lonely()
    for number in range(64):
        world.api.beats[run_id] = f"beat {number}"
        world.rounds(10, beat=False)
        if number == 58:
            assert state(world, run_id) is State.MISSING

    assert world.api.kind(run_id) is StateType.CRASHED
    assert "is cut off from Redis since" in world.api.reports[0][2]


class Beating(World):
    """At Prefect 1, where runs beat."""

    def make_api(self, time: Time) -> FakePrefect1:
        return FakePrefect1(time)


def test_a_run_that_beats_at_the_api_is_never_held_for_lost():
    world = Beating.of()
    world.rounds(2.0)
    run_id = started(world)
    for number in range(80):
        world.api.beats[run_id] = f"beat {number}"
        world.rounds(10, beat=False)
    assert state(world, run_id) is State.MISSING

    world.rounds(GRACE + 12, beat=False)  # its last beat was long ago
    assert [kind for _, kind, _ in world.api.reports] == [StateType.FAILED]


def test_a_lost_run_that_is_to_run_again_does_so_after_proof_alone():
    world, run_id = lonely(policy="requeue")
    world.rounds(TTL + GRACE + 6, beat=False)
    assert world.api.kind(run_id) is StateType.CRASHED

    world, run_id = lonely(policy="requeue", proof="forgotten")
    world.rounds(4, beat=False)
    assert world.api.kind(run_id) is not StateType.CRASHED
    assert world.claims.attempts == {run_id: 1}


def test_a_switch_that_has_run_out_is_a_proof_a_margin_after_the_grace():
    world, run_id = lonely(policy="requeue", switch=True)
    world.rounds(TTL + GRACE + 3, beat=False)
    assert state(world, run_id) is State.MISSING
    world.rounds(6, beat=False)

    assert world.api.count("run_again") == 1
    assert world.claims.tombs() == []


def test_a_switch_is_waited_for_as_long_as_its_host_may_count_by_the_lease_of_a_leader_before():
    world, run_id = lonely(policy="requeue", switch=True, ttl=TTL + 100)
    world.rounds(TTL + GRACE + 100, beat=False)
    assert state(world, run_id) is State.MISSING
    world.rounds(10, beat=False)

    assert world.api.count("run_again") == 1


def test_an_api_that_is_away_hears_of_a_lost_run_when_it_is_back():
    world, run_id = lonely()
    world.rounds(TTL + GRACE - 4, beat=False)
    world.api.fail("report", error=ApiUnavailable("gone"))
    world.rounds(60, beat=False)
    assert state(world, run_id) is State.JUDGED
    world.api.heal()
    world.rounds(90, beat=False)

    assert state(world, run_id) is None
    assert world.api.kind(run_id) is StateType.CRASHED


def test_a_leader_that_was_replaced_between_reading_and_writing_tells_nothing():
    world, run_id = lonely()
    world.rounds(TTL + GRACE - 4, beat=False)
    asked = world.api.states

    def replaced(run_ids):
        world.gate.written = replace(world.gate.written, term=99)
        return asked(run_ids)

    world.api.states = replaced
    world.rounds(6, beat=False)

    assert world.api.reports == []
    assert state(world, run_id) is State.JUDGED


def beats_and_meets_an_outage(world, run_id, next_beat_seconds):
    """Beats at the API while it is missing in the ledger; then the API is away for longer than the grace."""
    for number in range(5):
        world.api.beats[run_id] = f"beat {number}"
        world.rounds(10, beat=False)
    assert state(world, run_id) is State.MISSING
    world.api.fail(error=ApiUnavailable("the API is away"))
    world.rounds(GRACE + 60, beat=False)
    world.api.heal()
    world.rounds(next_beat_seconds, beat=False)
    world.api.beats[run_id] = "beat after the outage"


def test_an_outage_of_the_api_begins_the_grace_of_a_worker_anew_that_shows_itself_there():
    """It is cut off from Redis, and shows itself in its pool each few seconds, as far as the API lets it."""
    world, run_id = lonely()
    beats_and_meets_an_outage(world, run_id, next_beat_seconds=8)
    world.rounds(30, beat=False)
    assert world.api.reports == []
    world.rounds(GRACE + 10, beat=False)
    assert len(world.api.reports) == 1


def test_an_outage_of_the_api_begins_the_grace_of_a_run_anew_that_beats_there():
    """A worker is away for an upgrade, and its run beats at a Prefect 1 API, which is away for three minutes."""
    world = Beating.of()
    world.rounds(2.0)
    run_id = started(world)
    beats_and_meets_an_outage(world, run_id, next_beat_seconds=25)
    world.rounds(10, beat=False)
    assert world.api.reports == []


def test_long_pauses_between_looks_are_no_outage():
    """A leader with nothing to do sleeps until the next thing is due."""
    world, run_id = lonely()
    world.rounds(TTL + 2, beat=False)
    assert state(world, run_id) is State.MISSING
    for _ in range(4):
        world.time.now += GRACE / 3
        world.loop.round()
    assert len(world.api.reports) == 1


@pytest.mark.parametrize("policy", ["report", "requeue"])
def test_what_is_told_of_a_run_fits_what_is_known_when_it_is_told(policy):
    """Its host is back between the judgement and the report."""
    world, run_id = lonely(policy=policy)
    world.rounds(TTL + GRACE - 4, beat=False)
    world.api.fail("report", "run_again", "states", error=ApiUnavailable("gone"))
    world.rounds(60, beat=False)
    assert state(world, run_id) is State.JUDGED
    world.claims.by_run[run_id] = replace(world.claims.by_run[run_id], proof="worker@a says that it has ended")
    world.api.heal()
    world.rounds(90, beat=False)
    messages = [message for _, _, message in world.api.reports] or [world.api.again[run_id]]
    assert world.claims.tombs() == []
    assert "worker@a says that it has ended" in messages[0]
    assert not [words for words in ("may live on", "not started again") if words in messages[0]]
