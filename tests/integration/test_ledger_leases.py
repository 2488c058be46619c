"""The lease by which a host may count, kept on each claim: a leader with a shorter one must not judge by its own."""

import uuid

import pytest

from flowfleet.commands.forget import Stake
from flowfleet.ledger.claims import Claim, Lease, State
from tests.ledger_world import LedgerWorld, flow_run, held, row
from tests.valkey import Valkey

LONG, SHORT = 300.0, 20.0


class LeaseWorld(LedgerWorld):
    """Leaders with another lease each, and the renewals of w@h."""

    beat = 0

    def set_lease(self, seconds: float) -> None:
        """A poller that leads with this lease from now on."""
        self.lead()
        assert self.gate.lead(self.term, self.gate.leader().nonce, Lease(ttl_seconds=seconds))

    def started(self, heard: float) -> Claim:
        """A claim with a switch, started by a worker that has heard this lease."""
        (outcome,) = self.claims.claim(self.term, [flow_run()], str(uuid.uuid4()), policy="requeue", max_attempts=3)
        ids = (outcome.claim.run_id, outcome.claim.claim)
        for move in ("accept", "take"):
            assert self.ask(move, *ids).moved
        return self.claims.start(*ids, "w@h", "n1", switch=True, ttl=heard).claim

    def renew(self, claim: Claim, heard: float, state: State = State.STARTING) -> float:
        """What stands on the claim after a renewal of a worker that has heard this lease."""
        self.beat += 1
        self.claims.renew("w@h", "n1", self.beat, [held(claim, state, ttl=heard)])
        return self.claims.get(claim.run_id).ttl


@pytest.fixture
def world(valkey: Valkey) -> LeaseWorld:
    made = LeaseWorld(valkey.url)
    made.set_lease(LONG)
    made.open()
    assert made.roster.sign_on(row()) is None
    return made


@pytest.mark.parametrize(("leads", "heard", "kept"), [(SHORT, LONG, LONG), (LONG, SHORT, LONG), (SHORT, 0.0, SHORT)])
def test_a_start_keeps_the_longer_of_what_its_worker_has_heard_and_what_is_the_lease_now(world, leads, heard, kept):
    world.set_lease(leads)
    assert world.started(heard).ttl == kept


def test_a_shorter_lease_holds_only_once_the_worker_has_said_that_it_has_heard_it(world):
    claim = world.started(LONG)
    world.set_lease(SHORT)
    assert world.renew(claim, LONG) == LONG, "its answer may be lost, and then the deadline is by the long one"
    assert world.renew(claim, SHORT) == SHORT


def test_a_longer_lease_holds_as_soon_as_a_renewal_may_be_answered_with_it(world):
    world.set_lease(SHORT)
    claim = world.started(SHORT)
    world.set_lease(LONG)
    assert world.claims.get(claim.run_id).ttl == SHORT
    assert world.renew(claim, SHORT) == LONG


def test_a_process_that_has_adopted_the_run_keeps_the_lease_of_the_one_before_until_it_has_written_a_deadline(world):
    claim = world.started(LONG)
    world.set_lease(SHORT)
    assert world.renew(claim, 0.0) == LONG


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING])
@pytest.mark.parametrize("lost", ["all of it", "its last move", "sight of it"])
def test_what_is_written_again_or_heard_of_again_has_the_lease_that_its_worker_has_heard(world, lost, state):
    claim = world.started(SHORT)
    world.set_lease(SHORT)
    if lost == "all of it":
        world.lose(claim)
    elif lost == "its last move":
        world.set(claim, state="taken", ttl="")
    else:
        assert world.claims.miss(world.term, claim.run_id, claim.claim).moved
    assert world.renew(claim, LONG, state) == LONG


def test_forgetting_a_worker_watches_for_the_longest_lease_that_its_runs_may_count_by(world):
    world.started(LONG)
    world.set_lease(SHORT)
    world.started(SHORT)
    assert Stake.of(world.ledger, "w@h").ttl_seconds == LONG
