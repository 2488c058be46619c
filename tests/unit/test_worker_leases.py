"""Leases: the deadline of each run comes from the last accepted renewal, is on disk in time, and is kept to."""

from types import SimpleNamespace

import pytest

from flowfleet.api.client import Job, RunState, StateType
from flowfleet.errors import StartFailed
from flowfleet.flow_run import Offer
from flowfleet.ledger.claims import Lease, Renewal, State
from tests.unit.memory_ledger import HandClock, a_claim
from workers.runs.leases import MARGIN_SECONDS, SHIM_SECONDS, Leases
from workers.runs.lost_policy import asked_policy
from workers.shim import switch
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.state.run_folders import RunFolders


class World:
    def __init__(self, tmp_path):
        self.clock, self.attempts, self.runs = HandClock(5000.0), Attempts(), RunFolders(tmp_path)
        self.view = LedgerView(Offer(backend="prefect3"))
        self.leases = Leases(attempts=self.attempts, ledger_view=self.view, clock=self.clock)

    def begin(self, run_id="r1", *, with_switch=True, state=State.RUNNING, **more):
        held = a_claim(run_id, state, claim="c", policy="requeue", switch=with_switch)
        folder = self.runs.create(run_id, "c", {})
        attempt = Attempt(held=held, folder=folder, started_run=SimpleNamespace(), **more)
        self.attempts.begin(attempt)
        return attempt

    def renew(self, *keys, ttl=20.0):
        sent = self.clock.now
        self.clock.now += 0.3
        self.view.tell(Renewal(lease=Lease(ttl_seconds=ttl)), sent)
        self.attempts.prove(list(keys), sent)
        self.leases.extend(keys)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_deadline_counts_from_the_sending_of_the_renewal_less_a_margin(world):
    attempt = world.begin()
    world.renew("r1.c")
    assert world.leases.deadline("r1.c") == switch.read(attempt.folder.path) == 5000.0 + 20.0 - MARGIN_SECONDS


def test_a_renewal_that_was_not_accepted_for_a_run_extends_nothing(world):
    first, other = world.begin(), world.begin("r2")
    world.renew("r1.c", "r2.c")
    world.clock.now += 5.0
    world.renew("r2.c")
    assert switch.read(other.folder.path) - switch.read(first.folder.path) == pytest.approx(5.3)


def test_a_lease_that_the_leader_shortens_is_shortened_on_the_disk(world):
    attempt = world.begin()
    world.renew("r1.c", ttl=60.0)
    world.renew("r1.c", ttl=20.0)
    assert switch.read(attempt.folder.path) == pytest.approx(5000.3 + 17.0)


def test_the_lease_that_a_deadline_counts_by_is_told_and_not_by_whoever_has_only_adopted_it(world):
    world.begin()
    world.begin("r2", adopted=True)
    world.renew("r1.c", ttl=60.0)
    assert (world.leases.ttl("r1.c"), world.leases.ttl("r2.c")) == (60.0, 0.0)
    world.renew("r1.c", "r2.c", ttl=40.0)
    assert (world.leases.ttl("r1.c"), world.leases.ttl("r2.c")) == (40.0, 40.0)


def test_only_runs_with_a_switch_that_live_cost_a_write(world):
    plain, ended = world.begin("r1", with_switch=False), world.begin("r2", state=State.ENDED)
    world.renew("r1.c", "r2.c", "gone.c")
    assert [switch.read(one.folder.path) for one in (plain, ended)] == [None, None]


def test_a_folder_that_cannot_be_written_holds_up_no_other_run(world):
    gone, other = world.begin(), world.begin("r2")
    gone.folder.remove()
    world.renew("r1.c", "r2.c")
    assert switch.read(other.folder.path) is not None


def test_a_run_that_lives_past_its_deadline_is_overdue_once_its_shim_has_had_its_time(world):
    world.begin()
    world.begin("r2", with_switch=False)
    world.renew("r1.c", "r2.c")
    world.clock.now = 5000.0 + 17.0 + SHIM_SECONDS - 0.1
    assert world.leases.overdue() == []
    world.clock.now += 0.2
    assert world.leases.overdue() == ["r1.c"]


def test_an_adopted_run_has_the_deadline_of_the_worker_before_until_a_renewal_is_accepted(world):
    attempt = world.begin(adopted=True)
    switch.write(attempt.folder.path, 5001.0)
    world.clock.now = 5010.0
    assert world.leases.overdue() == ["r1.c"]
    world.renew("r1.c")
    assert world.leases.overdue() == []


# -- what a run asks for


def a_job(variables, env):
    state = RunState(run_id="r", run_name="n", kind=StateType.PENDING, name="Submitted")
    return Job(state=state, variables=variables, env=env)


@pytest.mark.parametrize(
    ("variables", "env", "policy"),
    [
        ({}, {}, ""),
        ({"on_lost_run": "requeue"}, {}, "requeue"),
        ({"on_lost_run": None}, {"FLOWFLEET_ON_LOST_RUN": "report"}, "report"),
        ({"on_lost_run": "report"}, {"FLOWFLEET_ON_LOST_RUN": "requeue"}, "report"),
    ],
)
def test_a_run_asks_by_its_job_variable_or_its_environment(variables, env, policy):
    assert asked_policy(a_job(variables, env)) == policy


@pytest.mark.parametrize(("variables", "env"), [({"on_lost_run": "again"}, {}), ({}, {"FLOWFLEET_ON_LOST_RUN": "yes"})])
def test_a_word_that_is_no_policy_is_refused(variables, env):
    with pytest.raises(StartFailed, match="give report or requeue"):
        asked_policy(a_job(variables, env))
