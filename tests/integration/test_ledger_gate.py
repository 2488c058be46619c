"""Gate and leader: one leads, by a term that each script checks; the gate knows the server process that it accepted."""

import re
from dataclasses import replace

import pytest

from flowfleet.ledger.claims import Lease, State
from flowfleet.ledger.ledger_id import KEPT
from tests.ledger_world import LedgerWorld, row
from tests.valkey import Valkey
from tests.waiting import until

#: ids of ledgers that somebody remembers, more than are kept
OLD = tuple(f"{number:08x}" for number in range(1, KEPT + 5))


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url)


def elect(world, nonce, seen=None):
    return world.gate.elect("agent", f"host-{nonce}", nonce, seen, Lease())


def test_a_newcomer_is_elected_and_written_down_and_may_ask_again(world):
    assert world.gate.leader() is None
    term = elect(world, "n1")

    leader = world.gate.leader()
    assert (leader.name, leader.host, leader.nonce, leader.term, leader.beat) == ("agent", "host-n1", "n1", term, 0)
    assert term > 0
    assert elect(world, "n1") == term


def test_a_leader_is_not_replaced_unseen_or_after_its_beat_has_moved(world):
    term = elect(world, "n1")
    seen = world.gate.leader()
    assert elect(world, "n2") is None
    assert elect(world, "n2", replace(seen, term=seen.term + 1)) is None
    assert world.gate.lead(term, "n1", Lease())
    assert elect(world, "n2", seen) is None
    assert world.gate.leader().nonce == "n1"


def test_one_standby_takes_over_from_a_beat_that_stands_still_with_a_higher_term(world):
    old = elect(world, "n1")
    seen = world.gate.leader()
    new = elect(world, "n2", seen)

    assert new > old
    assert elect(world, "n3", seen) is None
    assert not world.gate.lead(old, "n1", Lease())
    assert world.gate.lead(new, "n2", Lease())
    assert world.gate.leader().beat == 1


def test_after_a_resignation_nobody_waits_and_terms_go_on_growing(world):
    old = elect(world, "n1")
    seen = world.gate.leader()
    world.gate.resign(old)
    assert world.gate.leader() is None
    assert not world.gate.lead(old, "n1", Lease())

    assert elect(world, "n2", seen) > old


def test_a_resignation_under_an_old_term_takes_nobody_down(world):
    old = elect(world, "n1")
    elect(world, "n2", world.gate.leader())
    world.gate.resign(old)

    assert world.gate.leader().nonce == "n2"


def test_two_leaders_around_a_loss_of_the_last_writes_do_not_share_a_term(world):
    elect(world, "n1")
    before = world.ledger.store.client.hgetall(world.ledger.store.key("leader"))
    terms = set()
    for nonce in range(20):
        world.ledger.store.client.hset(world.ledger.store.key("leader"), mapping=before)
        terms.add(elect(world, f"m{nonce}", world.gate.leader()))

    assert len(terms) > 15  # by chance of 10,000


# the id of the ledger


def emptied(world):
    world.ledger.store.client.delete(*world.ledger.store.client.keys(world.ledger.store.key("*")))


def offered(world, nonce, *ledgers):
    return world.gate.elect("agent", "h", nonce, world.gate.leader(), Lease(), ledgers=ledgers)


def test_the_first_election_gives_the_ledger_an_id_by_chance_that_later_ones_leave(world):
    elect(world, "n1")
    (first,) = world.gate.ledgers()
    assert re.fullmatch("[0-9a-f]{8}", first)
    elect(world, "n2", world.gate.leader())
    assert world.gate.ledgers() == (first,)
    emptied(world)
    elect(world, "n3")
    assert first not in world.gate.ledgers(), "nobody has said what it was called"
    assert world.ledger.store.client.ttl(world.ledger.store.key("ledgers")) == -1


def test_an_emptied_ledger_gets_the_id_back_that_its_new_leader_remembers_with_earlier_ones_behind_it(world):
    assert offered(world, "n1", *OLD[:3])
    assert world.gate.ledgers() == OLD[:3]


def test_a_ledger_that_has_its_id_keeps_it_and_learns_what_a_new_leader_and_one_that_stands_by_remember(world):
    elect(world, "n1")
    (own,) = world.gate.ledgers()
    offered(world, "n2", OLD[0], own)
    world.gate.stand_by("n3", (OLD[1], own, OLD[0]))
    world.gate.stand_by("n4")
    assert world.gate.ledgers() == (own, *OLD[:2])


def test_a_worker_gives_back_what_it_remembers_and_hears_what_is_known_and_the_leader_elected_then_is_first(world):
    assert world.roster.sign_on(row(), ledgers=OLD[:2]) is None
    assert world.claims.renew("w@h", "n1", 1, []).ledgers == OLD[:2]
    offered(world, "n1")
    own, *others = world.claims.renew("w@h", "n1", 2, []).ledgers
    assert own not in OLD
    assert tuple(others) == OLD[:2]

    emptied(world)
    assert world.roster.sign_on(row(), ledgers=(OLD[0], OLD[1])) is None
    offered(world, "n2", OLD[1])
    assert world.gate.ledgers() == (OLD[1], OLD[0])


def test_a_worker_whose_name_another_process_has_tells_the_ledger_nothing(world):
    assert world.roster.sign_on(row()) is None
    assert world.roster.sign_on(row(nonce="n2"), ledgers=OLD[:1]) is not None
    assert world.gate.ledgers() == ()


def test_of_too_many_ids_the_newest_are_kept_and_the_ledgers_own_always(world):
    assert world.roster.sign_on(row(), ledgers=OLD) is None
    assert world.gate.ledgers() == OLD[:KEPT]
    elect(world, "n1")
    own, *others = world.gate.ledgers()
    assert own not in OLD
    assert tuple(others) == OLD[: KEPT - 1]
    world.gate.stand_by("n2", ["ffffffff"])
    assert world.gate.ledgers() == (own, *others)


def test_the_gate_is_shut_at_first_and_opened_by_the_leader_for_the_process_that_it_swept(world):
    term = elect(world, "n1")
    assert not world.gate.is_open()
    assert not world.gate.open(term + 1, world.gate.server())
    assert not world.gate.open(term, "another")
    assert not world.gate.is_open()
    assert world.gate.open(term, world.gate.server())
    assert world.gate.is_open()


def test_empty_tells_whether_there_is_any_claim(world):
    world.up()
    assert world.gate.empty()
    world.bring(State.ENDED)
    assert not world.gate.empty()


def test_the_leaders_numbers_reach_the_workers(world):
    world.up()
    leader = world.gate.leader()
    world.ledger.store.client.delete(world.ledger.store.key("lease"))
    assert world.gate.lease() == Lease()
    lease = Lease(renew_seconds=0.25, ttl_seconds=1.0, grace_seconds=2.0)
    assert world.gate.lead(world.term, leader.nonce, lease)

    assert world.claims.renew("w@h", "n1", 1, []).lease == lease
    assert world.gate.lease() == lease


def test_the_leaders_numbers_come_with_its_election_so_that_no_run_starts_under_others(world):
    lease = Lease(renew_seconds=0.25, ttl_seconds=1.0, grace_seconds=2.0)
    assert world.gate.elect("agent", "h", "n1", None, lease)
    assert world.gate.lease() == lease
    assert not world.gate.elect("agent", "h", "n2", None, Lease())
    assert world.gate.lease() == lease


def test_a_primary_that_followed_another_for_a_while_shuts_the_gate_since_it_has_lost_its_last_moves():
    with Valkey.private(tcp=True) as server, Valkey.private(tcp=True) as other:
        world = LedgerWorld(server.url).up()
        claim = world.bring(State.QUEUED)
        until_copied(other, server)
        assert world.gate.is_open(), "a replica that comes changes nothing"
        with other.client() as promoted, server.client() as primary:
            promoted.execute_command("REPLICAOF", "NO", "ONE")
            assert world.claims.take(claim.run_id, claim.claim, "w@h", "n1").moved
            primary.execute_command("REPLICAOF", "127.0.0.1", other.port)
            until(lambda: primary.info("replication")["master_link_status"] == "up", 20, "the copy")
            primary.execute_command("REPLICAOF", "NO", "ONE")

        assert world.claims.get(claim.run_id).state is State.QUEUED, "the move is lost"
        assert not world.gate.is_open()
        assert not world.claims.take(claim.run_id, claim.claim, "w2@h", "n2").moved
        assert world.gate.open(world.term, world.gate.server())
        assert not world.claims.take(claim.run_id, claim.claim, "w2@h", "n2").moved, (
            "it is handed back, never taken twice"
        )


def until_copied(replica, primary):
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        until(lambda: client.info("replication")["master_link_status"] == "up", 20, "the copy")
