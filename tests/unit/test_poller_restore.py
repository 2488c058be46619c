"""Runs that Redis has lost and no worker tells of: restored as missing, and told as lost if their host stays away."""

import logging

import pytest

from flowfleet.api.client import StateType
from flowfleet.api.life import LaunchedClaim
from flowfleet.errors import ApiRejected
from flowfleet.ledger.claims import UNKNOWN_WORKER, State
from flowfleet.ledger.ledger_id import new_call
from flowfleet.ledger.roster import WorkerRow
from tests.unit.memory_ledger import OFFER, ROUTE, a_claim
from tests.unit.poller_world import FakePrefect1, Time, World

TTL, RENEW, GRACE = 20.0, 5.0, 120.0
SIGNED_ON = {"nonce": "n", "offer": OFFER, "routes": (ROUTE,), "slots": 0, "version": "0.1.0"}
#: of another Redis
ANOTHER = "0a0b0c0d"


def launched(
    world: World,
    kind: StateType = StateType.RUNNING,
    name: str = "Running",
    *,
    worker: str | None = "worker@gone",
    ledger: str = "",
) -> str:
    """A run that the API shows as launched by this fleet, through this ledger if none is named; no ledger knows it."""
    run_id = world.api.submitted(kind, name)
    call = new_call(ledger or world.leadership.ledger)
    world.api.origins[run_id] = LaunchedClaim(claim="claim", call=call, worker=worker)
    return run_id


def emptied(world: World) -> None:
    """Redis has lost everything."""
    world.claims.by_run.clear()
    world.gate.lose()


def left_alone(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "left alone" in record.message]


@pytest.fixture
def world() -> World:
    made = World.of(slots=0)
    made.rounds(2)
    return made


@pytest.mark.parametrize("shown", [(StateType.RUNNING, "Running"), (StateType.PENDING, "Launching")])
def test_a_run_that_redis_has_lost_with_its_host_is_missing_when_workers_have_had_their_time(world, shown):
    run_id = launched(world, *shown)
    emptied(world)
    world.rounds(TTL + RENEW - 2)
    assert world.claims.get(run_id) is None
    assert world.api.count("origin") == 0
    world.rounds(4)

    claim = world.claims.get(run_id)
    assert (claim.state, claim.claim, claim.call) == (State.MISSING, "claim", world.api.origins[run_id].call)
    assert (claim.worker, claim.host, claim.policy) == ("worker@gone", "gone", "report")
    assert world.metric("flowfleet_runs_unknown") == 0
    assert world.api.reports == []


def test_it_is_told_as_lost_after_the_grace_with_its_host_and_leaves_a_tombstone(world):
    run_id = launched(world)
    emptied(world)
    world.rounds(TTL + RENEW + 2)
    world.rounds(GRACE - 4)
    assert world.api.reports == []
    world.rounds(6)

    [(told, kind, message)] = world.api.reports
    assert (told, kind) == (run_id, StateType.CRASHED)
    assert "its host gone (worker worker@gone) has not been heard of since" in message
    assert "`worker forget worker@gone`" in message
    [tomb] = world.claims.tombs()
    assert (tomb.run_id, tomb.worker) == (run_id, "worker@gone")


def test_a_host_that_comes_back_in_the_grace_has_its_run_and_nothing_is_told(world):
    run_id = launched(world)
    emptied(world)
    world.rounds(TTL + RENEW + 2 + GRACE - 10)
    world.claims.be(run_id, State.RUNNING)

    for _ in range(30):
        world.claims.be(run_id, State.RUNNING)
        world.rounds(10)
    assert world.claims.get(run_id).state is State.RUNNING
    assert world.api.reports == []


def test_what_a_worker_tells_of_in_its_time_is_not_restored(world):
    run_id = launched(world)
    emptied(world)
    world.rounds(TTL)
    world.claims.by_run[run_id] = a_claim(run_id, claim="claim", worker="worker@a")
    world.rounds(20)

    assert world.claims.get(run_id).state is State.RUNNING
    assert world.api.count("origin") == 0


def test_a_run_that_somebody_else_launched_is_left_alone_and_named_once(world, caplog):
    run_id = world.api.submitted(StateType.RUNNING, "Running")
    before = world.api.runs[run_id]
    emptied(world)
    world.rounds(2000)

    assert (world.claims.get(run_id), world.api.runs[run_id]) == (None, before)
    assert world.metric("flowfleet_runs_unknown") == 1
    [said] = left_alone(caplog)
    assert (said.run_id, said.why) == (run_id, "somebody else has launched it, or has claimed it since")


def test_a_run_claimed_through_another_redis_is_left_alone_and_said_once_with_what_is_the_case_and_what_to_do(
    world, caplog
):
    theirs = launched(world, ledger=ANOTHER)
    mine = launched(world)
    before = world.api.runs[theirs]
    emptied(world)
    world.rounds(2000)

    assert (world.claims.get(theirs), world.api.runs[theirs]) == (None, before)
    assert [run_id for run_id, _, _ in world.api.reports] == [mine]
    assert world.metric("flowfleet_runs_unknown") == 1
    [said] = left_alone(caplog)
    assert said.run_id == theirs
    assert "claimed through another Redis" in said.why
    assert "--fleet" in said.remedy
    assert f"`flowfleet cancel --now {theirs}` ends the run" in said.remedy


def test_a_run_claimed_through_another_redis_is_left_alone_though_its_worker_is_named_as_one_of_ours(world, caplog):
    run_id = launched(world, ledger=ANOTHER, worker="worker@a")
    emptied(world)
    world.rounds(2000)

    assert world.claims.get(run_id) is None
    assert world.api.reports == []
    assert [said.run_id for said in left_alone(caplog)] == [run_id]


@pytest.mark.parametrize("told", [True, False])
def test_where_all_pollers_are_new_a_worker_tells_by_what_the_emptied_redis_was_known(world, caplog, told):
    run_id, before = launched(world), world.gate.ledgers()
    emptied(world)
    world.build()
    world.rounds(2)
    assert not set(world.gate.ledgers()) & set(before)
    if told:
        world.roster.table.pop("worker@a")
        world.roster.sign_on(WorkerRow(worker="worker@a", **SIGNED_ON), ledgers=before)
    world.rounds(TTL + RENEW + 2)

    assert (world.claims.get(run_id) is not None, len(left_alone(caplog))) == (told, 0 if told else 1)
    assert world.leadership.ledger not in before


@pytest.mark.parametrize(
    "now",
    [
        {"kind": StateType.COMPLETED, "name": "Completed"},
        {"kind": StateType.SCHEDULED, "name": "Scheduled"},
        # Prefect 1: the process has ended, and a task is to be tried later
        {"kind": StateType.RUNNING, "name": "Running", "comes_back": True},
    ],
    ids=lambda now: now["name"],
)
def test_a_run_that_has_ended_or_goes_on_by_itself_is_not_restored(world, now):
    run_id = launched(world)
    seen = world.api.unfinished(None)
    world.api.be(run_id, **now)
    world.api.due_at[run_id] = world.time.moment(9000)

    world.loop.restorer.restore(world.leadership.term, seen)
    assert world.claims.get(run_id) is None
    assert world.api.count("origin") == 0


def test_an_api_that_tells_nothing_of_one_run_keeps_no_other_from_being_restored(world):
    first, second = launched(world), launched(world)
    asked = world.api.origin
    world.api.origin = lambda run_id, fleet: asked(run_id, fleet) if run_id == second else refuse()
    emptied(world)
    world.rounds(TTL + RENEW + 2)
    assert (world.claims.get(first), world.claims.get(second).state) == (None, State.MISSING)

    world.api.origin = asked
    world.rounds(600 + GRACE + 10)
    assert first in {run_id for run_id, _, _ in world.api.reports}


def refuse() -> None:
    raise ApiRejected("no")


def test_an_api_that_is_silent_as_the_gate_opens_has_its_runs_restored_when_it_is_back(world):
    run_id = launched(world)
    emptied(world)
    world.rounds(TTL + RENEW - 2)
    world.api.fail("states", "origin")
    world.rounds(20)
    assert world.gate.is_open()
    assert world.claims.get(run_id) is None
    world.api.heal()
    world.rounds(40)
    assert world.claims.get(run_id).state is State.MISSING
    world.rounds(GRACE)

    assert [run for run, _, _ in world.api.reports] == [run_id]


class Beating(World):
    """At Prefect 1, which names no worker."""

    def make_api(self, time: Time) -> FakePrefect1:
        return FakePrefect1(time)


def test_at_an_api_that_names_no_worker_the_message_says_so_and_what_to_do():
    world = Beating.of(slots=0)
    world.rounds(2)
    run_id = launched(world, worker=None)
    emptied(world)
    world.rounds(TTL + RENEW + 2)
    assert world.claims.get(run_id).worker == UNKNOWN_WORKER
    world.rounds(GRACE + 2)

    [(_, kind, message)] = world.api.reports
    assert kind is StateType.FAILED
    assert "its host, whose name was lost with the data of Redis, has not been heard of since" in message
    assert "`worker forget unknown@unknown`" in message


def test_a_retry_of_a_run_whose_host_nobody_knows_waits_and_its_user_is_told_what_to_do(world):
    run_id = launched(world, worker=None)
    emptied(world)
    world.rounds(TTL + RENEW + GRACE + 4)
    world.roster.change(slots=4)
    world.api.due_at[run_id] = world.time.moment()
    world.api.be(run_id, StateType.SCHEDULED, "Scheduled")
    world.rounds(60)

    assert world.published == []
    [line] = world.api.lines
    assert "may live on a host that nobody knows any more" in line.message
    assert "`worker forget unknown@unknown`" in line.message
