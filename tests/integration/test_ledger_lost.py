"""What is lost, on a real server: the tombstone and what opens it, the host's word, forget, and attempts."""

import dataclasses
import uuid

import pytest

from flowfleet.ledger.claims import AGAIN, UNKNOWN_WORKER, Claim, Refusal, State
from tests.ledger_world import CALL, LedgerWorld, flow_run, held, row
from tests.valkey import Valkey


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url).up(at_boot("boot-1"))


def at_boot(boot_id: str, nonce: str = "n1"):
    return dataclasses.replace(row(nonce=nonce), boot_id=boot_id, machine="m")


def buried(world: LedgerWorld, **facts: str) -> Claim:
    claim = world.bring(State.JUDGED)
    if facts:
        world.set(claim, **facts)
    assert world.claims.bury(world.term, claim.run_id, claim.claim, "crashed").moved
    return claim


def again(world: LedgerWorld, claim: Claim) -> Refusal | None:
    """The same run is claimed once more."""
    run = dataclasses.replace(flow_run(), run_id=claim.run_id)
    return world.claim(run)[0].refusal


def renew(world: LedgerWorld, *mine: Claim, worker: str = "w@h", nonce: str = "n1"):
    standing = next((one for one in world.roster.rows() if one.worker == worker), None)
    return world.claims.renew(worker, nonce, standing.beat + 1 if standing else 1, mine)


def test_a_tombstone_keeps_its_claim_gone_and_the_run_unclaimed_and_takes_a_slot(world):
    claim = buried(world)
    [tomb] = world.claims.tombs()

    assert tomb == world.claims.tomb(claim.run_id)
    assert (tomb.claim, tomb.worker, tomb.host, tomb.boot_id) == (claim.claim, "w@h", "h", "boot-1")
    assert dict(renew(world, held(claim, State.RUNNING)).fenced) == {claim.run_id: Refusal.BURIED}
    assert world.claims.live() == []
    assert again(world, claim) is Refusal.BURIED
    assert sum(one.moved for one in world.claim(*(flow_run() for _ in range(6)))) == 3


def test_a_tombstone_outlives_its_record_and_a_restart_of_redis(world):
    claim = buried(world)
    store = world.ledger.store
    store.client.delete(store.key("records"), store.key("gone"))
    world.shut()

    assert dict(renew(world, held(claim, State.RUNNING)).fenced) == {claim.run_id: Refusal.BURIED}
    world.open()
    assert again(world, claim) is Refusal.BURIED


def test_the_host_is_asked_for_what_it_has_not_answered_and_its_word_opens_the_tombstone(world):
    claim, missing = buried(world), world.bring(State.MISSING)
    asked = {one.run_id: (one.claim, one.worker) for one in renew(world).missed}
    assert asked == {claim.run_id: (claim.claim, "w@h"), missing.run_id: (missing.claim, "w@h")}
    assert renew(world, held(missing, State.RUNNING)).missed[0].run_id == claim.run_id

    assert world.claims.prove(claim.run_id, claim.claim, "w@h", "n1", "no process is left").moved
    assert world.claims.tombs() == []
    assert renew(world).missed == ()
    assert again(world, claim) is None


def test_a_missing_claim_keeps_the_word_of_its_host_for_the_judge_until_it_is_heard_of_again(world):
    claim = world.bring(State.MISSING)
    assert world.claims.prove(claim.run_id, claim.claim, "w@h", "n1", "no process is left").moved
    assert world.claims.get(claim.run_id).proof == "no process is left"

    renew(world, held(claim, State.RUNNING))
    heard = world.claims.get(claim.run_id)
    assert (heard.state, heard.proof, heard.was, heard.missed_at) == (State.RUNNING, None, None, 0.0)

    assert world.claims.miss(world.term, claim.run_id, claim.claim).moved
    world.claims.prove(claim.run_id, claim.claim, "w@h", "n1", "no process is left")
    judged = world.claims.judge(world.term, claim.run_id, claim.claim, reason="Lost.").claim
    assert (judged.proof, judged.reason) == ("no process is left", "Lost.")
    world.claims.bury(world.term, claim.run_id, claim.claim, "crashed")
    assert world.claims.tombs() == []
    assert dict(renew(world, held(claim, State.RUNNING)).fenced) == {claim.run_id: Refusal.BURIED}


@pytest.mark.parametrize(
    ("worker", "nonce", "refusal"),
    [("w@h", "n2", Refusal.OWNER), ("x@other", "nx", Refusal.OWNER), ("x@h", "nx", None)],
)
def test_only_a_worker_of_the_host_that_has_its_name_gives_its_word(world, worker, nonce, refusal):
    for one in ("x@other", "x@h"):
        assert world.roster.sign_on(row(one, nonce="nx")) is None
    for claim in (buried(world), world.bring(State.MISSING)):
        assert world.claims.prove(claim.run_id, claim.claim, worker, nonce, "gone").refusal is refusal


@pytest.mark.parametrize("move", ["miss", "judge"])
def test_a_renewal_that_came_since_the_leader_looked_wins(world, move):
    claim = world.bring(State.RUNNING)
    if move == "judge":
        world.claims.miss(world.term, claim.run_id, claim.claim)
        claim = world.claims.get(claim.run_id)
    renew(world, held(claim, State.RUNNING))

    if move == "miss":
        outcome = world.claims.miss(world.term, claim.run_id, claim.claim, claim.moves)
    else:
        outcome = world.claims.judge(world.term, claim.run_id, claim.claim, claim.moves, reason="Lost.")
    assert outcome.refusal is Refusal.STATE
    assert world.claims.get(claim.run_id).state is State.RUNNING


def test_the_leader_clears_a_tombstone_of_a_host_with_another_boot_id(world):
    claim = buried(world)
    assert world.claims.clear(world.term + 1, claim.run_id, claim.claim).refusal is Refusal.TERM
    assert world.claims.clear(world.term, claim.run_id, "another").refusal is Refusal.OTHER_CLAIM
    assert world.claims.clear(world.term, claim.run_id, claim.claim).moved
    assert world.claims.clear(world.term, claim.run_id, claim.claim).refusal is Refusal.UNKNOWN
    assert again(world, claim) is None


def test_what_worker_forget_gives_up_is_proved_dead_and_refused_when_it_comes_back(world):
    running, tomb, ended = world.bring(State.RUNNING), buried(world), world.bring(State.ENDED)
    [live] = world.roster.rows()
    renew(world)
    assert world.roster.forget("w@h") is None
    assert world.roster.forget("w@h", live) is None, "its beat has moved since it was seen"

    assert world.roster.forget("w@h", world.roster.rows()[0]) == sorted([running.run_id, tomb.run_id])
    assert world.claims.tombs() == []
    assert world.claims.get(running.run_id).proof == "forgotten"
    assert again(world, tomb) is Refusal.NO_SLOT, "no tombstone is in its way, only no worker is left"

    assert world.roster.sign_on(at_boot("boot-1", "n3")) is None
    answer = renew(world, held(running, State.RUNNING), held(tomb, State.RUNNING), held(ended, State.ENDED), nonce="n3")
    assert dict(answer.fenced) == {running.run_id: Refusal.FORGOTTEN, tomb.run_id: Refusal.FORGOTTEN}
    assert world.claims.end(running.run_id, running.claim, "w@h", {"code": 0}).refusal is Refusal.FORGOTTEN


def test_the_owner_of_an_inherited_end_comes_to_the_same_end(world):
    claim = world.bring(State.ENDED)
    assert world.claims.inherit(world.term, claim.run_id, claim.claim, claim.moves, outcome="crashed").moved

    answer = renew(world, held(claim, State.ENDED))
    assert (dict(answer.fenced), answer.reasserted) == ({}, frozenset())
    assert world.claims.end(claim.run_id, claim.claim, "w@h", {"code": 1}).moved
    assert world.claims.release(claim.run_id, claim.claim, "w@h", "crashed").moved
    assert world.claims.live() == []


def test_a_tombstone_from_before_a_loss_gives_way_to_a_newer_claim_and_one_of_now_does_not(world):
    claim = buried(world)
    newer = held(claim, State.RUNNING, claim=str(uuid.uuid4()))
    assert dict(renew(world, newer).fenced) == {claim.run_id: Refusal.OTHER_CLAIM}

    store = world.ledger.store
    text = store.client.hget(store.key("tombs"), claim.run_id)
    process = world.gate.server()
    store.client.hset(store.key("tombs"), claim.run_id, text.replace(process, "an earlier one"))
    assert renew(world, newer).reasserted == {claim.run_id}
    assert world.claims.tombs() == []


def started_again(world: LedgerWorld, run, most: int) -> Claim:
    (outcome,) = world.claims.claim(world.term, [run], str(uuid.uuid4()), policy="requeue", max_attempts=most)
    return outcome.claim


@pytest.mark.parametrize("how", ["lost", "stopped", "inherited"])
def test_a_run_is_started_again_as_often_as_allowed_and_any_other_end_begins_anew(world, how):
    run, seen = flow_run(), []
    for _ in range(3):
        claim = started_again(world, run, 2)
        seen.append((claim.attempt, claim.policy))
        ids = (claim.run_id, claim.claim)
        for move in ("accept", "take", "start", "run", *(("miss", "judge") if how == "lost" else ("end",))):
            assert world.ask(move, *ids).moved
        if how == "lost":
            world.set(claim, proof="gone")
            assert world.claims.bury(world.term, *ids, AGAIN).moved
        elif how == "inherited":
            assert world.claims.inherit(world.term, *ids, outcome=AGAIN).moved
        else:
            assert world.claims.release(*ids, "w@h", AGAIN).moved
    assert seen == [(1, "requeue"), (2, "requeue"), (3, "report")]

    claim = started_again(world, run, 2)
    assert claim.attempt == 4
    for move in ("accept", "take", "start", "run", "end", "release"):
        assert world.ask(move, claim.run_id, claim.claim).moved
    assert started_again(world, run, 2).attempt == 1


@pytest.mark.parametrize(
    ("wanted", "most", "policy"), [("requeue", 3, "requeue"), ("requeue", 0, "report"), ("", 3, "report")]
)
def test_a_run_says_as_it_is_started_what_becomes_of_it_if_it_is_lost(world, wanted, most, policy):
    (outcome,) = world.claims.claim(world.term, [flow_run()], str(uuid.uuid4()), policy="report", max_attempts=most)
    claim = outcome.claim
    for move in ("accept", "take"):
        world.ask(move, claim.run_id, claim.claim)
    begun = world.claims.start(claim.run_id, claim.claim, "w@h", "n1", policy=wanted, switch=True).claim

    assert (begun.policy, begun.switch, begun.boot_id, begun.machine) == (policy, True, "boot-1", "m")


def lost_with_redis(world: LedgerWorld, worker: str = "w@h") -> Claim:
    """A running claim of this worker that Redis has lost, restored as the API shows it; as the worker holds it."""
    claim = world.bring(State.RUNNING)
    world.lose(claim)
    assert restore(world, claim, worker=worker) is None
    return held(claim, State.RUNNING, policy="requeue", attempt=2, switch=True, handle={"kind": "process", "id": 7})


def restore(world: LedgerWorld, claim: Claim, *, worker: str = "w@h", term: int | None = None) -> Refusal | None:
    return world.restore(claim.run_id, claim.claim, worker=worker, term=term).refusal


def test_a_claim_that_redis_has_lost_is_missing_again_with_what_the_api_tells_of_it(world):
    claim = lost_with_redis(world)
    found = world.claims.get(claim.run_id)

    assert (found.state, found.was, found.claim, found.call) == (State.MISSING, State.STARTING, claim.claim, CALL)
    assert (found.worker, found.policy, found.attempt, found.route) == ("w@h", "report", 1, claim.route)
    assert restore(world, claim) is None, "a repeat"
    assert [one.claim for one in renew(world).missed] == [claim.claim]
    assert world.claims.judge(world.term, claim.run_id, claim.claim, found.moves, reason="Lost.").moved
    assert world.claims.bury(world.term, claim.run_id, claim.claim, "crashed").moved
    assert [tomb.worker for tomb in world.claims.tombs()] == ["w@h"]


def test_nothing_is_restored_for_an_old_leader_beside_a_claim_or_tombstone_or_before_workers_had_their_time(world):
    running, tomb, lost = world.bring(State.RUNNING), buried(world), world.bring(State.RUNNING)
    world.lose(lost)
    store = world.ledger.store
    store.client.hdel(store.key("records"), tomb.claim)

    assert restore(world, lost, term=world.term + 1) is Refusal.TERM
    assert restore(world, running) is Refusal.KNOWN
    assert restore(world, held(running, claim=str(uuid.uuid4()))) is Refusal.KNOWN
    assert restore(world, tomb) is Refusal.BURIED
    world.shut()
    assert restore(world, lost) is Refusal.GATE
    world.open()
    assert restore(world, lost) is None


def test_a_claim_that_has_gone_in_order_is_not_restored_and_one_that_a_leader_has_dropped_for_want_of_news_is(world):
    released = world.bring(State.ENDED)
    world.claims.release(released.run_id, released.claim, "w@h", "completed")
    given_back, dropped = world.bring(State.RETURNING), world.bring(State.TAKEN)
    world.claims.drop(given_back.run_id, given_back.claim, worker="w@h")
    world.claims.give_back(dropped.run_id, dropped.claim, "late", term=world.term)
    world.claims.drop(dropped.run_id, dropped.claim, term=world.term)

    assert [restore(world, one) for one in (released, given_back, dropped)] == [Refusal.KNOWN, Refusal.KNOWN, None]


@pytest.mark.parametrize("named", ["w@h", "earlier@h", UNKNOWN_WORKER], ids=["its own", "a sibling", "nobody"])
def test_a_host_that_is_back_has_its_claim_as_its_disk_has_it_whomever_the_api_has_named(world, named):
    claim = lost_with_redis(world, named)
    answer = renew(world, claim)
    found = world.claims.get(claim.run_id)

    assert (dict(answer.fenced), answer.reasserted) == ({}, {claim.run_id})
    assert (found.state, found.worker, found.handle, found.boot_id) == (State.RUNNING, "w@h", claim.handle, "boot-1")
    assert (found.call, found.policy, found.attempt, found.switch) == (claim.call, "requeue", 2, True)
    assert (found.was, found.missed_at) == (None, 0.0)
    assert renew(world).missed == ()
    assert dict(renew(world, claim, worker="x@h", nonce="nx").fenced) == {claim.run_id: Refusal.OWNER}


def test_a_cancel_of_a_restored_claim_reaches_the_host_that_is_back(world):
    claim = lost_with_redis(world)
    world.claims.cancel(claim.run_id, why="by a test")
    assert renew(world, claim).cancelled[claim.run_id].why == "by a test"


@pytest.mark.parametrize("named", ["w@h", UNKNOWN_WORKER])
@pytest.mark.parametrize("before", ["run", "end"])
def test_what_a_host_says_of_its_run_before_its_first_renewal_counts(world, named, before):
    claim = lost_with_redis(world, named)
    assert world.ask(before, claim.run_id, claim.claim).moved
    found = world.claims.get(claim.run_id)
    assert (found.state, found.worker) == (State.RUNNING if before == "run" else State.ENDED, "w@h")
    renew(world, held(claim, found.state))
    assert world.claims.get(claim.run_id).policy == "requeue"


def test_a_message_of_a_restored_claim_starts_and_gives_back_nothing(world):
    claim = lost_with_redis(world, "earlier@gone")
    assert world.ask("take", claim.run_id, claim.claim).refusal is Refusal.OWNER
    assert world.ask("give back (with proof)", claim.run_id, claim.claim).refusal is Refusal.OWNER


@pytest.mark.parametrize(("asked", "refusal"), [("w@h", None), ("x@other", Refusal.OWNER)])
def test_the_host_of_a_restored_claim_answers_for_it_and_of_one_that_nobody_knows_any_host_does(world, asked, refusal):
    world.roster.sign_on(row("x@other", nonce="nx"))
    known, unknown = lost_with_redis(world), lost_with_redis(world, UNKNOWN_WORKER)
    nonce = "n1" if asked == "w@h" else "nx"
    missed = {one.claim for one in renew(world, worker=asked, nonce=nonce).missed}

    assert missed == ({unknown.claim} if refusal else {known.claim, unknown.claim})
    assert world.claims.prove(known.run_id, known.claim, asked, nonce, "gone").refusal is refusal
    assert world.claims.prove(unknown.run_id, unknown.claim, asked, nonce, "gone").moved


def test_a_newer_claim_that_its_host_holds_takes_the_place_of_a_restored_one(world):
    claim = lost_with_redis(world)
    newer = held(claim, claim=str(uuid.uuid4()))
    assert renew(world, newer).reasserted == {claim.run_id}
    assert world.claims.get(claim.run_id).claim == newer.claim


@pytest.mark.parametrize("worker", ["gone@away", UNKNOWN_WORKER])
@pytest.mark.parametrize("told", [False, True])
def test_a_worker_whose_row_redis_has_lost_is_forgotten_by_what_it_has_left(world, worker, told):
    claim = lost_with_redis(world, worker)
    if told:
        world.claims.judge(world.term, claim.run_id, claim.claim, reason="Lost.")
        world.claims.bury(world.term, claim.run_id, claim.claim, "crashed")
    assert world.roster.forget("nobody@h") is None
    assert world.roster.forget(worker) == [claim.run_id]

    assert world.claims.tombs() == []
    if not told:
        assert world.claims.get(claim.run_id).proof == "forgotten"
    assert dict(renew(world, claim).fenced) == {claim.run_id: Refusal.FORGOTTEN}


def test_a_worker_without_a_row_that_still_renews_is_not_forgotten(world):
    claim = lost_with_redis(world)
    store = world.ledger.store
    store.client.delete(store.key("worker:w@h"))
    store.client.srem(store.key("workers"), "w@h")
    renew(world, claim)
    assert world.roster.forget("w@h") is None


def test_what_was_forgotten_before_is_proved_dead_as_it_is_restored(world):
    claim = world.bring(State.RUNNING)
    world.lose(claim)
    world.give_up(claim)
    assert restore(world, claim) is None
    assert world.claims.get(claim.run_id).proof == "forgotten"
