"""Roster: signing on and off, what the operator wants, routes and what is due on them."""

from dataclasses import replace

import pytest

from flowfleet.errors import LedgerUnusable
from flowfleet.ledger.claims import State
from flowfleet.ledger.roster import RouteDue
from tests.ledger_world import LedgerWorld, route, row
from tests.valkey import Valkey


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    world = LedgerWorld(valkey.url)
    world.lead()
    return world


def only(world):
    (found,) = world.roster.rows()
    return found


def test_a_row_comes_back_as_the_worker_wrote_it(world):
    mine = replace(row(), address="http://h:1", facts={"python": "3.11", "none": None}, deploy="docker")
    assert world.roster.sign_on(mine) is None

    assert replace(only(world), seen=0.0) == mine
    assert only(world).seen > 1_600_000_000


def test_a_second_process_is_shown_the_live_one_and_takes_its_name_over_only_while_its_beat_stands_still(world):
    world.roster.sign_on(row(nonce="n1"))
    before = only(world)
    standing = world.roster.sign_on(row(nonce="n2"))
    assert standing == before == only(world)
    world.claims.renew("w@h", "n1", 1, [])

    moved_on = world.roster.sign_on(row(nonce="n2"), over=standing)
    assert moved_on is not None
    assert moved_on.beat == 1
    assert world.roster.sign_on(row(nonce="n2"), over=moved_on) is None
    assert only(world).nonce == "n2"


@pytest.mark.parametrize("gone", ["signed off", "lapsed"])
def test_a_name_that_is_not_live_is_free_at_once(world, gone):
    world.roster.sign_on(row(nonce="n1"))
    if gone == "lapsed":
        world.roster.lapse(world.term, "w@h", 0)
    else:
        world.roster.sign_off("w@h", "n1")
    assert not only(world).live

    assert world.roster.sign_on(row(nonce="n2")) is None
    assert (only(world).live, only(world).gone) == (True, "")


def test_a_worker_that_signs_off_has_stopped_and_one_that_falls_silent_is_lost_until_it_is_heard_of_again(world):
    world.roster.sign_on(row())
    world.roster.lapse(world.term, "w@h", 0)
    assert only(world).end == "lost"
    world.claims.renew("w@h", "n1", 1, [])
    assert (only(world).live, only(world).gone) == (True, "")
    world.roster.sign_off("w@h", "n1")
    assert only(world).end == "stopped"


def test_a_worker_that_has_stopped_is_not_called_lost_by_a_leader_that_saw_it_live_before(world):
    world.roster.sign_on(row())
    world.roster.sign_off("w@h", "n1")
    world.roster.lapse(world.term, "w@h", 0)
    assert only(world).end == "stopped"


def test_a_renewal_that_a_sign_off_has_overtaken_brings_nobody_back(world):
    world.roster.sign_on(row())
    world.roster.sign_off("w@h", "n1")
    world.claims.renew("w@h", "n1", 1, [])
    assert (only(world).live, only(world).end) == (False, "stopped")


@pytest.mark.parametrize(("leaving", "end"), [("1", "stopped"), (None, "lost")])
def test_a_row_that_an_older_version_has_ended_is_known_by_whether_it_gave_its_queues_back(world, leaving, end):
    world.roster.sign_on(row())
    facts = {"live": "0", "leaving": leaving}
    world.ledger.store.client.hset(
        world.ledger.store.key("worker:w@h"), mapping={name: text for name, text in facts.items() if text}
    )
    assert only(world).end == end


def test_only_the_process_of_that_name_signs_it_off_or_updates_it(world):
    world.roster.sign_on(row(nonce="n1", slots=4))

    world.roster.sign_off("w@h", "n0")
    assert not world.roster.update(row(nonce="n0", slots=9))
    assert (only(world).live, only(world).slots) == (True, 4)
    assert world.roster.update(row(nonce="n1", slots=9, routes=(route("x"),)))
    assert (only(world).slots, only(world).routes) == (9, (route("x"),))


@pytest.mark.parametrize("wanted", ["paused", "draining"])
def test_the_operators_word_on_a_known_worker_outlives_its_processes_and_its_own_updates(world, wanted):
    assert not world.roster.want("w@h", wanted)
    assert world.roster.rows() == []
    world.roster.sign_on(row(nonce="n1"))
    assert world.roster.want("w@h", wanted, "kernel update")
    world.roster.update(row(nonce="n1"))
    world.roster.sign_off("w@h", "n1")
    world.roster.sign_on(row(nonce="n2"))

    assert (only(world).wanted, only(world).note) == (wanted, "kernel update")
    assert world.roster.want("w@h", "active")
    assert (only(world).wanted, only(world).note) == ("active", "")


def test_lapsing_needs_the_term_and_a_beat_that_stands_still(world):
    world.roster.sign_on(row())
    world.roster.lapse(world.term + 1, "w@h", 0)
    assert only(world).live
    world.claims.renew("w@h", "n1", 1, [])
    world.roster.lapse(world.term, "w@h", 0)
    assert only(world).live
    world.roster.lapse(world.term, "w@h", 1)
    assert not only(world).live


def test_a_live_worker_is_not_forgotten_and_a_gone_one_is(world):
    world.roster.sign_on(row())
    assert world.roster.forget("w@h") is None
    world.roster.sign_off("w@h", "n1")
    assert world.roster.forget("w@h") == []
    assert world.roster.rows() == []
    assert world.roster.forget("w@h") is None


def test_a_row_of_a_newer_version_is_left_out_and_its_name_is_not_taken(world):
    world.roster.sign_on(row())
    world.ledger.store.client.hset(world.ledger.store.key("worker:w@h"), "v", "2")

    assert world.roster.rows() == []
    with pytest.raises(LedgerUnusable, match="w@h is signed on by a newer flowfleet"):
        world.roster.sign_on(row(nonce="n2"))


def test_routes_are_added_and_never_doubled(world):
    world.roster.know([])
    world.roster.know([route("b"), route("ä/ö, ü")])
    world.roster.know([route("b")])

    assert world.roster.routes() == [route("b"), route("ä/ö, ü")]


def test_what_is_due_is_replaced_as_a_whole_and_only_by_the_leader(world):
    first = [RouteDue(route=route("a"), due=50, at_least=True, oldest=10.5, at=20.0)]
    second = [RouteDue(route=route("b"), due=0, at_least=False, oldest=None, at=21.0)]
    world.roster.note_due(world.term, first)
    assert world.roster.due() == first
    world.roster.note_due(world.term, second)
    assert world.roster.due() == second
    world.roster.note_due(world.term + 1, first)
    assert world.roster.due() == second
    world.roster.note_due(world.term, [])
    assert world.roster.due() == []


def test_a_route_that_exists_no_more_goes_but_not_while_a_claim_is_on_it(valkey):
    world = LedgerWorld(valkey.url).up()
    claim = world.bring(State.QUEUED)
    world.roster.know([claim.route, route("old"), route("kept")])

    world.roster.unlearn([claim.route, route("old"), route("never")])
    assert set(world.roster.routes()) == {claim.route, route("kept")}

    world.claims.give_back(claim.run_id, claim.claim, "drill", term=world.term)
    world.claims.drop(claim.run_id, claim.claim, term=world.term)
    world.roster.unlearn([claim.route])
    assert world.roster.routes() == [route("kept")]
