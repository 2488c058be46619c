"""Yield: what waits for a worker that takes no more runs goes back, its messages too; and who finishes that."""

import dataclasses
import uuid

import pytest

from flowfleet.broker import Publisher, make_app, queue_key
from flowfleet.flow_run import Message
from flowfleet.ledger.claims import Lease, Refusal, State
from flowfleet.ledger.roster import WorkerRow
from tests.ledger_world import LedgerWorld, flow_run, route, row
from tests.valkey import Valkey

ME = ("w@h", "n1")


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url).up()


def other(name="other@h", **facts) -> WorkerRow:
    return row(name, nonce="n2", **facts)


def yields(world, how="idle", worker=ME):
    return world.claims.yield_waiting(*worker, how, "w@h takes no more runs")


def publish(world, *claims):
    publisher = Publisher(make_app(world.url, fleet=world.fleet))
    for claim in claims:
        publisher.publish(Message(run_id=claim.run_id, claim=claim.claim, route=claim.route))


def messages(world):
    return world.ledger.store.client.llen(queue_key(world.fleet, route()))


def test_queued_claims_and_their_messages_go_back_and_a_late_message_is_refused(world):
    waiting, taken = [world.bring(State.QUEUED) for _ in range(2)], world.bring(State.TAKEN)
    publish(world, *waiting, taken)

    yielded = yields(world)

    assert {claim.claim for claim in yielded} == {claim.claim for claim in waiting}
    assert {(claim.state, claim.worker, claim.never_began) for claim in yielded} == {(State.RETURNING, "w@h", False)}
    assert world.claims.get(taken.run_id) == taken
    assert messages(world) == 1, "that of the other claim"
    assert world.ask("take", waiting[0].run_id, waiting[0].claim).refusal is Refusal.STATE
    assert yields(world) == yielded, "a repeat, whose first answer may be lost, moves nothing and tells the same"
    for claim in waiting:
        assert world.claims.drop(claim.run_id, claim.claim, worker="w@h").moved
    assert yields(world) == []


@pytest.mark.parametrize(
    "state", [state for state in State if state not in (State.QUEUED, State.MISSING, State.JUDGED)]
)
def test_only_what_is_queued_is_yielded(world, state):
    about = world.bring(state)
    before = world.claims.get(about.run_id)
    assert yields(world) == []
    assert world.claims.get(about.run_id) == before


@pytest.mark.parametrize("why", ["lapsed", "paused", "draining", "signed off", "stopping", "newer", "another route"])
def test_a_worker_that_takes_no_runs_either_is_not_waited_for(world, why):
    world.roster.sign_on(other(routes=(route("else") if why == "another route" else route(),)))
    claim = world.bring(State.QUEUED)
    if why == "another route":
        pass
    elif why == "lapsed":
        world.roster.lapse(world.term, "other@h", 0)
    elif why == "signed off":
        world.roster.sign_off("other@h", "n2")
    elif why == "newer":
        world.ledger.store.client.hset(world.ledger.store.key("worker:other@h"), "v", "2")
    elif why == "stopping":
        assert yields(world, "stopping", ("other@h", "n2")) == [], "w@h still serves it"
    else:
        world.roster.want("other@h", why)
    assert [one.claim for one in yields(world)] == [claim.claim]


def test_what_another_worker_takes_stays_where_it_is_with_its_message(world):
    world.roster.sign_on(other())
    claim = world.bring(State.QUEUED)
    publish(world, claim)
    assert yields(world, "stopping") == []
    assert (world.claims.get(claim.run_id), messages(world)) == (claim, 1)
    assert world.ask("take", claim.run_id, claim.claim, worker="other@h", nonce="n2").moved


@pytest.mark.parametrize("why", ["shut", "queued before a restart", "newer", "another process", "a wrong name"])
def test_a_yield_that_is_refused_changes_nothing(world, why):
    claim, worker = world.bring(State.QUEUED), ME
    publish(world, claim)
    if why == "shut":
        world.shut()
    elif why == "queued before a restart":
        world.set(claim, process="another")
    elif why == "newer":
        world.set(claim, v="2")
    else:
        worker = ("w@h", "n9") if why == "another process" else ("nobody@h", "n1")
    before = world.claims.get(claim.run_id)
    assert yields(world, "stopping", worker) == []
    assert world.claims.get(claim.run_id) == before
    assert messages(world) == 1


def test_nothing_is_claimed_for_a_stopping_worker_until_it_signs_on_again(world):
    yields(world, "stopping")
    assert world.claim()[0].refusal is Refusal.NO_SLOT
    world.roster.update(row())
    assert world.claim()[0].refusal is Refusal.NO_SLOT, "what it serves is written once more"
    (found,) = world.roster.rows()
    assert (found.live, found.leaving, found.takes_runs) == (True, True, False)
    world.roster.sign_on(row(nonce="n2"), over=found)
    assert world.claim()[0].moved


@pytest.mark.parametrize("died", ["signed off", "its next process is there", "while it took"])
def test_what_a_dead_worker_was_handing_back_is_finished_by_any_other(world, died):
    claim = world.bring(State.RETURNING if died == "while it took" else State.QUEUED)
    if died != "while it took":
        yields(world)
    world.roster.sign_on(other())
    assert yields(world, "finishing", ("other@h", "n2")) == [], "its worker lives and is at it"
    heir = ("other@h", "n2")
    if died == "its next process is there":
        (found, _) = sorted(world.roster.rows(), key=lambda one: one.worker != "w@h")
        heir = ("w@h", "n3")
        world.roster.sign_on(row(nonce="n3"), over=found)
    else:
        world.roster.sign_off(*ME)
    (left,) = yields(world, "finishing", heir)
    assert (left.claim, left.worker) == (claim.claim, heir[0])
    assert left.moves > claim.moves, "the leader sees that somebody is at it"
    assert world.claims.drop(claim.run_id, claim.claim, worker=heir[0]).moved


def test_a_worker_that_only_finishes_lets_what_waits_wait_and_leaves_the_leaders_claims_alone(world):
    waits, leaders = world.bring(State.QUEUED), world.bring(State.QUEUED)
    world.claims.give_back(leaders.run_id, leaders.claim, "late", term=world.term)
    assert yields(world, "finishing") == []
    assert world.claims.get(waits.run_id).state is State.QUEUED


def test_what_the_leader_gives_back_leaves_the_queue_too_and_nothing_else_does(world):
    gone, kept = world.bring(State.QUEUED), world.bring(State.QUEUED)
    publish(world, gone, kept)
    world.ledger.store.client.lpush(queue_key(world.fleet, route()), "no message", "{}")
    assert world.claims.give_back(gone.run_id, gone.claim, "late", term=world.term).moved
    texts = world.ledger.store.client.lrange(queue_key(world.fleet, route()), 0, -1)
    assert len(texts) == 3
    assert not any(gone.claim in text for text in texts)
    assert any(kept.claim in text for text in texts)


def test_of_many_workers_that_stop_at_once_the_last_gives_back_whatever_waits(valkey):
    names = [f"w{number}@h" for number in range(5)]
    for _ in range(20):
        world = LedgerWorld(valkey.url).up(*(row(name, nonce=name) for name in names))
        claims = [world.bring(State.QUEUED, worker=names[0], nonce=names[0]) for _ in range(3)]
        for name in sorted(names, key=lambda _: uuid.uuid4().hex):
            found = yields(world, "stopping", (name, name))
        assert {claim.claim for claim in found} == {claim.claim for claim in claims}


def test_a_claim_that_is_accepted_after_the_yield_is_found_by_the_next_one(world):
    claim = world.bring(State.CLAIMING)
    assert yields(world) == []
    world.ask("accept", claim.run_id, claim.claim)
    assert [one.claim for one in yields(world)] == [claim.claim]
    assert world.claim(dataclasses.replace(flow_run(), run_id=claim.run_id))[0].refusal is Refusal.KNOWN


# pollers that stand by


def test_a_leader_gives_up_the_lead_only_to_a_poller_that_still_stands_by(world):
    world.gate.stand_by("standby")
    world.gate.stand_by("standby")
    assert world.gate.standbys() == {"standby": 2}
    assert world.gate.stand_down("standby"), "another one leads"
    assert not world.gate.resign(world.term, ["standby"])
    assert world.gate.leader() is not None
    world.gate.stand_by("standby")
    assert world.gate.resign(world.term, ["gone", "standby"])
    assert not world.gate.stand_down("standby"), "it has to lead, since nobody does"
    world.gate.stand_by("killed")
    world.gate.forget_standbys(["killed"])
    assert world.gate.standbys() == {}


def test_who_is_elected_stands_by_no_more(world):
    world.gate.stand_by("me")
    assert world.gate.elect("two", "h", "me", world.gate.leader(), Lease())
    assert world.gate.standbys() == {}


def test_the_word_to_leave_stands_until_it_is_taken_back(world):
    assert not world.gate.leave_ordered()
    world.gate.order_leave()
    assert world.gate.leave_ordered()
    world.gate.withdraw_leave()
    assert not world.gate.leave_ordered()
