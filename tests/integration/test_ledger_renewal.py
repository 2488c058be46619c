"""Renewal: what one script keeps, fences, repairs and answers, also after Redis has lost something."""

from collections.abc import Callable
from typing import Any

import pytest

from flowfleet.ledger.claims import TRANSITIONS, CancelAsked, CancelHow, Claim, Lease, Refusal, State
from tests.ledger_world import LedgerWorld, held, other_claim, route, row
from tests.valkey import Valkey
from tests.waiting import until

STARTED = (State.STARTING, State.RUNNING, State.ENDED)
HOLDABLE = (State.TAKEN, *STARTED)


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url).up()


class Worker:
    """w@h as its renewals go."""

    def __init__(self, world: LedgerWorld) -> None:
        self.world, self.beat = world, 0

    def renew(self, *mine, nonce="n1", beat=None):
        self.beat += 1
        return self.world.claims.renew("w@h", nonce, beat or self.beat, mine)


@pytest.fixture
def worker(world: LedgerWorld) -> Worker:
    return Worker(world)


def restart(world: LedgerWorld) -> None:
    """All that was written so far was written under another server process, and the gate is shut."""
    world.shut()
    for claim in world.claims.live():
        world.set(claim, process="before")


def test_the_answer_carries_gate_wish_numbers_and_routes(world, worker):
    world.roster.know([route("b"), route("a")])
    # of a newer version, and passed over
    world.ledger.store.client.sadd(world.ledger.store.key("routes"), "prefect9/x/y")
    world.roster.want("w@h", "draining")
    leader = world.gate.leader()
    world.gate.lead(world.term, leader.nonce, Lease(renew_seconds=1.5, ttl_seconds=6, grace_seconds=7))

    renewal = worker.renew()

    assert (renewal.gate_open, renewal.wanted, renewal.signed_on) == (True, "draining", True)
    assert renewal.lease == Lease(renew_seconds=1.5, ttl_seconds=6, grace_seconds=7)
    assert renewal.routes == (route("a"), route("b"))
    world.shut()
    assert not worker.renew().gate_open


@pytest.mark.parametrize("state", HOLDABLE)
def test_a_renewal_moves_the_counter_of_each_held_claim_and_nothing_else(world, worker, state):
    claim, other = world.bring(state), world.bring(State.RUNNING)

    renewal = worker.renew(held(claim))

    after = world.claims.get(claim.run_id)
    assert (after.moves, after.state, after.since) == (claim.moves + 1, state, claim.since)
    assert world.claims.get(other.run_id) == other
    assert not renewal.fenced
    assert not renewal.reasserted


def test_cancels_come_with_the_renewal_of_the_run_and_no_other(world, worker):
    claim, other = world.bring(State.RUNNING, cancelled=True), world.bring(State.RUNNING)
    hurried = world.bring(State.RUNNING)
    world.claims.cancel(hurried.run_id, how=CancelHow.OVER, why="u@h: now")

    assert worker.renew(held(claim), held(other), held(hurried)).cancelled == {
        claim.run_id: CancelAsked(how=CancelHow.ASKED),
        hurried.run_id: CancelAsked(how=CancelHow.OVER, why="u@h: now"),
    }


def test_a_renewal_says_whether_a_cancel_was_found_at_the_api_or_is_the_word_of_who_asks(world, worker):
    claim = world.bring(State.RUNNING)
    for why, found in (("Cancelling at the Prefect API", True), ("by Ann", False)):
        world.claims.cancel(claim.run_id, why=why, found=found)
        asked = CancelAsked(how=CancelHow.ASKED, why=why, found=found)
        assert worker.renew(held(claim)).cancelled == {claim.run_id: asked}


def test_a_cancel_is_lost_with_its_claim_and_can_be_said_again(world, worker):
    claim = world.bring(State.RUNNING, cancelled=True)
    world.lose(claim)

    renewal = worker.renew(held(claim))
    assert renewal.reasserted == {claim.run_id}
    assert not renewal.cancelled
    assert world.claims.cancel(claim.run_id, claim.claim).moved
    assert claim.run_id in worker.renew(held(claim)).cancelled


def test_a_lapsed_worker_is_live_again(world, worker):
    world.roster.lapse(world.term, "w@h", 0)
    assert not world.roster.rows()[0].live

    worker.renew()

    assert world.roster.rows()[0].live
    assert world.roster.rows()[0].beat == 1


def test_a_renewal_that_was_overtaken_changes_nothing(world, worker):
    claim = world.bring(State.RUNNING)
    worker.renew(beat=5)
    world.lose(claim)

    renewal = worker.renew(held(claim), beat=4)

    assert world.claims.get(claim.run_id) is None
    assert not renewal.reasserted
    assert not renewal.fenced
    assert world.roster.rows()[0].beat == 5


def test_a_repeated_renewal_writes_nothing_again_that_went_meanwhile(world, worker):
    claim = world.bring(State.RUNNING)
    worker.renew(held(claim), beat=5)
    world.lose(claim)  # and its record has been cleared away

    assert worker.renew(held(claim), beat=5).fenced == {claim.run_id: Refusal.UNKNOWN}
    assert world.claims.get(claim.run_id) is None


# fencing


@pytest.mark.parametrize("refusal", next(t for t in TRANSITIONS if t.name == "assert").refusals)
def test_a_claim_that_is_no_longer_ours_is_fenced_with_the_reason_and_left_alone(world, worker, refusal):
    claim = world.bring(State.TAKEN)
    mine = held(claim)
    if refusal is Refusal.UNKNOWN:
        world.claims.give_back(claim.run_id, claim.claim, "late", term=world.term)
        world.claims.drop(claim.run_id, claim.claim, term=world.term)
    elif refusal is Refusal.OTHER_CLAIM:
        mine = held(claim, claim=other_claim(claim))
    elif refusal is Refusal.OWNER:
        world.set(claim, worker="x@h")
    elif refusal is Refusal.STATE:
        world.claims.give_back(claim.run_id, claim.claim, "late", term=world.term)
    elif refusal is Refusal.BURIED:
        claim = world.bring(State.JUDGED)
        mine = held(claim, State.RUNNING)
        world.claims.bury(world.term, claim.run_id, claim.claim, "crashed")
    elif refusal is Refusal.FORGOTTEN:
        world.give_up(claim)
    else:
        world.set(claim, v="2")
    before = world.ledger.store.client.hgetall(world.ledger.store.key(f"claim:{claim.run_id}"))

    assert dict(worker.renew(mine).fenced) == {claim.run_id: refusal}
    assert world.ledger.store.client.hgetall(world.ledger.store.key(f"claim:{claim.run_id}")) == before


def test_another_process_with_the_workers_name_keeps_nothing(world, worker):
    claim = world.bring(State.RUNNING)
    assert world.roster.sign_on(row(nonce="n2"), over=world.roster.rows()[0]) is None

    renewal = worker.renew(held(claim))

    assert renewal.fenced[claim.run_id] is Refusal.OWNER
    assert not renewal.signed_on
    assert world.claims.get(claim.run_id) == claim
    assert not worker.renew(held(claim), nonce="n2").fenced, "the new process goes on with it"


@pytest.mark.parametrize("end", ["released", "given back by its worker"])
@pytest.mark.parametrize("state", HOLDABLE)
def test_what_went_in_order_never_comes_back(world, worker, end, state):
    if end == "released":
        claim = world.bring(State.ENDED)
        assert world.claims.release(claim.run_id, claim.claim, "w@h", "done").moved
    else:
        claim = world.bring(State.RETURNING)
        assert world.claims.drop(claim.run_id, claim.claim, worker="w@h").moved
    for gate in ("open", "shut"):
        if gate == "shut":
            world.shut()

        assert worker.renew(held(claim, state)).fenced == {claim.run_id: Refusal.UNKNOWN}, gate
        assert world.claims.get(claim.run_id) is None


def move(world: LedgerWorld, claim: Claim, *moves: str) -> None:
    for one in moves:
        assert world.ask(one, claim.run_id, claim.claim).moved


HAPPENS: dict[str, Callable[[LedgerWorld, Claim], Any]] = {
    "judged": lambda world, claim: world.set(claim, state="judged"),
    "missing": lambda world, claim: world.set(claim, state="missing", was=claim.state),
    "left as it is": lambda world, claim: None,
    "given back with proof": lambda world, claim: move(world, claim, "give back (with proof)", "drop (leader)"),
    "dropped by the leader": lambda world, claim: move(world, claim, "give back (leader)", "drop (leader)"),
    "being given back": lambda world, claim: [restart(world), world.open(), move(world, claim, "give back (leader)")],
}


@pytest.mark.parametrize(
    ("state", "event", "mine", "fenced", "after"),
    [
        (State.RUNNING, "judged", State.RUNNING, Refusal.STATE, State.JUDGED),
        (State.RUNNING, "missing", State.RUNNING, None, State.RUNNING),
        (State.RETURNING, "left as it is", State.TAKEN, None, State.RETURNING),
        (State.STARTING, "given back with proof", State.STARTING, Refusal.UNKNOWN, None),
        # these were queued or taken for all that Redis still knows of them, and have started on their host
        (State.QUEUED, "dropped by the leader", State.RUNNING, None, State.RUNNING),
        (State.TAKEN, "being given back", State.RUNNING, None, State.RUNNING),
    ],
)
def test_a_claim_of_which_redis_says_something_else_is_kept_or_fenced(world, worker, state, event, mine, fenced, after):
    claim = world.bring(state)
    HAPPENS[event](world, claim)

    renewal = worker.renew(held(claim, mine))
    assert dict(renewal.fenced) == ({claim.run_id: fenced} if fenced else {})
    assert renewal.reasserted == ({claim.run_id} if state in (State.QUEUED, State.TAKEN) else set())
    found = world.claims.get(claim.run_id)
    assert (found and found.state) == after
    assert (world.claims.records() == []) == (fenced is not Refusal.UNKNOWN), "what is written again has no record"


# after a loss


@pytest.mark.parametrize("gate", ["open", "shut"])
@pytest.mark.parametrize("state", STARTED)
def test_a_lost_claim_that_has_started_is_written_again_whole(world, worker, state, gate):
    claim = world.bring(state)
    world.lose(claim)
    if gate == "shut":
        world.shut()

    renewal = worker.renew(held(claim))

    again = world.claims.get(claim.run_id)
    assert renewal.reasserted == {claim.run_id}
    assert (again.state, again.worker, again.call, again.route) == (state, "w@h", claim.call, claim.route)
    assert (again.due, again.handle, again.exit, again.claim) == (claim.due, claim.handle, claim.exit, claim.claim)
    assert (again.flow, again.deployment) == ("orders", "nightly")
    assert not worker.renew(held(claim)).reasserted


def test_a_lost_claim_that_was_only_taken_is_written_again_only_while_the_gate_is_shut(world, worker):
    claim = world.bring(State.TAKEN)
    world.lose(claim)

    assert worker.renew(held(claim)).fenced == {claim.run_id: Refusal.UNKNOWN}
    world.shut()
    assert worker.renew(held(claim)).reasserted == {claim.run_id}
    assert world.claims.get(claim.run_id).state is State.TAKEN


@pytest.mark.parametrize("ledger", [State.CLAIMING, State.QUEUED, State.TAKEN, State.STARTING, State.RUNNING])
@pytest.mark.parametrize("disk", HOLDABLE)
def test_the_ledger_follows_the_workers_disk_forward_and_never_back(world, worker, ledger, disk):
    claim = world.bring(ledger)
    order = list(State)
    exit_ = {"code": 0, "last_lines": []}

    renewal = worker.renew(held(claim, disk, handle={"id": 9}, exit=exit_ if disk is State.ENDED else None, flow="f"))

    after = world.claims.get(claim.run_id)
    ahead = order.index(disk) > order.index(ledger)
    assert after.state is (disk if ahead else ledger)
    assert (claim.run_id in renewal.reasserted) == ahead
    assert not renewal.fenced
    if ahead:
        assert (after.worker, after.handle, after.flow) == ("w@h", {"id": 9}, "f")


def test_no_start_is_repeated_for_a_claim_that_a_renewal_brought_to_starting(world, worker):
    claim = world.bring(State.TAKEN)
    worker.renew(held(claim, State.STARTING))

    assert world.claims.start(claim.run_id, claim.claim, "w@h", "n1").refusal is Refusal.STATE


def test_a_leftover_of_the_same_run_gives_way_to_a_claim_that_has_started_and_to_no_other(world, worker):
    old = world.bring(State.TAKEN)
    restart(world)
    idle = worker.renew(held(old, State.TAKEN, claim=other_claim(old)))
    assert idle.fenced == {old.run_id: Refusal.OTHER_CLAIM}
    assert world.claims.get(old.run_id).claim == old.claim
    newer = held(old, State.RUNNING, claim=other_claim(old))

    assert worker.renew(newer).reasserted == {old.run_id}
    assert world.claims.get(old.run_id).claim == newer.claim
    assert world.claims.records()[0]["move"] == "replace"


def test_a_claim_whose_owner_has_renewed_since_the_loss_is_no_leftover(world, worker):
    old = world.bring(State.RUNNING)
    restart(world)
    worker.renew(held(old))

    renewal = worker.renew(held(old, State.RUNNING, claim=other_claim(old)))

    assert renewal.fenced == {old.run_id: Refusal.OTHER_CLAIM}


def test_a_lost_row_is_said_and_its_claims_are_kept_all_the_same(world, worker):
    claim = world.bring(State.RUNNING)
    world.ledger.store.client.delete(world.ledger.store.key("worker:w@h"), world.ledger.store.key("workers"))

    assert not worker.renew(held(claim)).signed_on
    assert world.claims.get(claim.run_id).moves == claim.moves + 1


def test_redis_without_its_data_is_rebuilt_from_the_hosts():
    with Valkey.private(tcp=True) as server:
        world = LedgerWorld(server.url).up()
        claims = [world.bring(state) for state in HOLDABLE]
        server.restart(kill=True)
        until(lambda: not world.gate.is_open(), 5, "the new process to be seen")

        renewal = Worker(world).renew(*map(held, claims))

        assert not renewal.signed_on
        assert renewal.reasserted == {claim.run_id for claim in claims}
        assert {c.run_id: c.state for c in world.claims.live()} == {c.run_id: c.state for c in claims}
        assert world.gate.leader() is None
        assert world.claim()[0].refusal is Refusal.TERM
        world.lead()
        assert world.claim()[0].refusal is Refusal.GATE
        world.open()
        assert world.gate.is_open()


def test_redis_with_its_data_lets_nothing_begin_until_the_gate_is_opened():
    with Valkey.private(tcp=True, aof=True) as server:
        world = LedgerWorld(server.url).up()
        queued, taken, running = world.bring(State.QUEUED), world.bring(State.TAKEN), world.bring(State.RUNNING)
        before = world.gate.server()
        server.restart()

        assert world.gate.server() != before
        assert not world.gate.is_open()
        assert world.gate.leader() is not None
        assert world.claim()[0].refusal is Refusal.GATE
        assert world.claims.start(taken.run_id, taken.claim, "w@h", "n1").refusal is Refusal.GATE
        assert world.claims.take(queued.run_id, queued.claim, "w@h", "n1").refusal is Refusal.GATE
        assert world.claims.end(running.run_id, running.claim, "w@h", {"code": 0, "last_lines": []}).moved
        Worker(world).renew(held(taken))
        world.open()
        assert world.claims.start(taken.run_id, taken.claim, "w@h", "n1").moved
        assert world.claims.take(queued.run_id, queued.claim, "w@h", "n1").refusal is Refusal.GATE
