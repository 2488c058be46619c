"""Hand-backs that meet a cancel at the API or a loss of Redis on their way."""

from dataclasses import replace

import pytest

from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Refusal
from tests.ledger_world import flow_run
from tests.waiting import until


class Broken(Failpoints):
    """At this place something happens to the run in hand, and the launch breaks off."""

    def __init__(self, place, *happens):
        super().__init__()
        self.place, self.happens, self.message, self.done = place, happens, None, False

    def hit(self, name):
        if name == self.place:
            for each in self.happens:
                each(self.message)
            self.done = True
            raise RuntimeError(name)


def broken_launch(world, place, *happens):
    """A run whose launch breaks off at `place` after these have happened to it; its message."""
    broken = Broken(place, *happens)
    world.start(failpoints=broken)
    message = broken.message = world.claim(world.create("/bin/true"))
    world.publisher.publish(message)
    until(lambda: broken.done, 10, "the launch to break off")
    return message


def cancelled_at_the_api(world):
    return lambda message: world.api.write(message.run_id, "CANCELLING")


def lost_by_redis(world):
    return lambda message: world.ledger.lose(world.ledger.claims.get(message.run_id))


def held_for_lost(world, *, buried):
    """What a leader does that has not heard of the worker for too long."""

    def happens(message):
        ids, claims, term = (message.run_id, message.claim), world.ledger.claims, world.ledger.term
        assert claims.miss(term, *ids).moved
        assert claims.judge(term, *ids, reason="Lost.").moved
        if buried:
            world.api.write(message.run_id, "CRASHED")
            assert claims.bury(term, *ids, "crashed").moved
            assert claims.tomb(message.run_id) is not None

    return happens


@pytest.mark.parametrize("place", ["take.after_move", "start.after_move", "start.before_fork"])
def test_a_cancel_at_the_api_that_meets_a_hand_back_is_told_as_done(world, place):
    message = broken_launch(world, place, cancelled_at_the_api(world))
    world.wait_gone(message)
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "CANCELLED"


def test_a_run_whose_claim_redis_has_lost_before_the_fork_goes_back_to_the_api(world):
    message = broken_launch(world, "start.before_fork", lost_by_redis(world))
    world.wait_handed_back(message)

    assert world.api.history(message.run_id) == ["Scheduled", "Submitted", "Launching", "Scheduled"]


def test_a_cancel_of_a_run_whose_claim_redis_has_lost_is_told_as_done(world):
    message = broken_launch(world, "start.before_fork", lost_by_redis(world), cancelled_at_the_api(world))
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "CANCELLED"


def test_a_lost_claim_that_a_late_renewal_has_written_again_goes_all_the_same(world, monkeypatch):
    give_back = world.ledger.claims.give_back

    def renewed_meanwhile(*ids, **how):
        outcome = give_back(*ids, **how)
        if outcome.refusal is Refusal.UNKNOWN:
            assert world.service.heartbeat.renew().reasserted
        return outcome

    monkeypatch.setattr(world.ledger.claims, "give_back", renewed_meanwhile)
    message = broken_launch(world, "start.before_fork", lost_by_redis(world), cancelled_at_the_api(world))
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "CANCELLED"
    assert world.ledger.claims.get(message.run_id) is None


def test_a_run_that_somebody_has_claimed_since_redis_lost_ours_is_theirs_to_cancel(world, monkeypatch):
    tell = world.client.ends.hand_back

    def claimed_meanwhile(run_id, *rest, **named):
        (outcome,) = world.ledger.claim(replace(flow_run(world.route), run_id=run_id))
        assert outcome.moved
        return tell(run_id, *rest, **named)

    monkeypatch.setattr(world.client.ends, "hand_back", claimed_meanwhile)
    message = broken_launch(world, "start.before_fork", lost_by_redis(world), cancelled_at_the_api(world))
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "CANCELLING"


@pytest.mark.parametrize("buried", [True, False], ids=["buried", "judged"])
def test_a_run_that_was_held_for_lost_before_it_began_is_answered_for_by_its_host(world, buried):
    message = broken_launch(world, "start.before_fork", held_for_lost(world, buried=buried))
    world.wait_handed_back(message)
    world.service.heartbeat.renew()

    claims = world.ledger.claims
    if buried:
        until(lambda: claims.tomb(message.run_id) is None, 10, "the tombstone to go")
    else:
        until(lambda: claims.get(message.run_id).proof, 10, "the word of the host")
    assert world.api.history(message.run_id)[-1] == ("Crashed" if buried else "Launching")
