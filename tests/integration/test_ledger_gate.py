"""Gate and leader: one leads, by a term that each script checks; the gate knows the server process that it accepted."""

from dataclasses import replace

import pytest

from flowfleet.ledger.claims import Lease, State
from tests.ledger_world import LedgerWorld
from tests.valkey import Valkey
from tests.waiting import until


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
