"""Each script that moves a claim, alone: its way, its repeats and each of its refusals, on a real server."""

import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from flowfleet.flow_run import claim_id
from flowfleet.ledger.claims import TRANSITIONS, CancelHow, Claim, Refusal, State
from tests.ledger_world import ASKED, DUE, WAYS, LedgerWorld, flow_run, held, other_claim, route, row
from tests.valkey import Valkey
from tests.waiting import until


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url).up()


MOVES = [row for row in TRANSITIONS if row.name in ASKED]
BUILT = {row.name for row in TRANSITIONS if row.built}


def ask(world: LedgerWorld, move: str, about: Claim, **changes: Any) -> Any:
    return world.ask(move, **{"run": about.run_id, "claim": about.claim, **changes})


def cases(pick: Callable[[Any], Any]) -> list[Any]:
    return [pytest.param(row.name, item, id=f"{row.name}-{item}") for row in MOVES for item in pick(row)]


def test_every_move_of_the_table_is_asked_for_here():
    # claim and assert have tests of their own below; adopt, which keeps its state, has them in test_worker_takeover.py,
    # yield, which moves many, in test_ledger_yield.py, restore, prove, forget and clear in test_ledger_lost.py; cancel,
    # which goes from any state, below
    others = {"claim", "assert", "adopt", "yield", "cancel", "restore", "prove", "forget", "clear"}
    assert set(ASKED) | others == BUILT


@pytest.mark.parametrize(("move", "source"), cases(lambda row: row.sources))
def test_a_move_goes_from_each_of_its_states_and_repeating_it_says_moved_again(world, move, source):
    claim = world.bring(source)
    target = next(row.target for row in MOVES if row.name == move)

    first, second = ask(world, move, claim), ask(world, move, claim)

    assert first.moved
    assert second.moved
    assert first.refusal is None
    assert second.refusal is None
    after = world.claims.get(claim.run_id)
    assert (after.state if after else None) == target
    if after:
        assert after.moves == claim.moves + 1, "the repeat must not look like life"


@pytest.mark.parametrize(
    ("move", "state"),
    # what its worker says of a missing claim is said of the state that it had
    cases(lambda row: [s for s in State if s not in (*row.sources, row.target, State.MISSING)]),
)
def test_a_move_is_refused_from_every_other_state_and_changes_nothing(world, move, state):
    claim = world.bring(state)

    outcome = ask(world, move, claim)

    assert not outcome.moved
    assert outcome.refusal is Refusal.STATE
    assert outcome.claim == claim == world.claims.get(claim.run_id)


def _ready(world: LedgerWorld, move: str) -> Claim:
    return world.bring(next(row.sources[0] for row in MOVES if row.name == move))


@pytest.mark.parametrize(("move", "refusal"), cases(lambda row: [r for r in row.refusals if r is not Refusal.STATE]))
def test_each_refusal_of_the_table_is_given_and_changes_nothing(world, move, refusal):
    claim = _ready(world, move)
    changes: dict[str, Any] = {}
    if refusal is Refusal.TERM:
        changes["term"] = world.term + 1
    elif refusal is Refusal.GATE:
        world.shut()
    elif refusal is Refusal.UNKNOWN:
        world.lose(claim)
    elif refusal is Refusal.OTHER_CLAIM:
        changes["claim"] = other_claim(claim)
    elif refusal is Refusal.VERSION:
        world.set(claim, v="2")
    elif refusal is Refusal.OWNER:
        if claim.state is State.QUEUED and move != "take":
            world.set(claim, state="taken", worker="other@h")
        changes.update(worker="other@h", nonce="n9")
    elif refusal is Refusal.FORGOTTEN:
        world.give_up(claim)
    elif refusal is Refusal.CANCELLED:
        world.claims.cancel(claim.run_id)
    before = world.claims.get(claim.run_id)

    if refusal is Refusal.OWNER and before and before.worker == "other@h":
        changes.update(worker="w@h", nonce="n1")
    outcome = ask(world, move, claim, **changes)

    assert not outcome.moved
    assert outcome.refusal is refusal
    assert outcome.claim == before or refusal is not Refusal.OTHER_CLAIM, "it shows what stood in the way"
    assert world.claims.get(claim.run_id) == before


# claim


def test_claiming_writes_down_what_a_hand_back_and_a_worker_will_need(world):
    run, call = flow_run(), str(uuid.uuid4())
    (outcome,) = world.claims.claim(world.term, [run], call, policy="requeue", max_attempts=3)

    claim = world.claims.get(run.run_id)
    assert outcome.moved
    assert outcome.claim == claim
    assert (claim.claim, claim.call, claim.route) == (claim_id(call, run.run_id), call, run.route)
    assert (claim.state, claim.due, claim.attempt, claim.policy) == (State.CLAIMING, DUE, 1, "requeue")
    assert (claim.worker, claim.cancel, claim.moves) == (None, CancelHow.NONE, 1)


def test_claims_are_given_in_order_as_far_as_slots_are_free(world):
    runs = [flow_run() for _ in range(6)]
    outcomes = world.claim(*runs)

    assert [o.refusal for o in outcomes] == [None] * 4 + [Refusal.NO_SLOT] * 2
    assert {c.run_id for c in world.claims.live()} == {r.run_id for r in runs[:4]}


def test_the_same_call_again_is_told_that_it_has_claimed(world):
    run, call = flow_run(), str(uuid.uuid4())
    first, second = world.claim(run, call=call), world.claim(run, call=call)

    assert first[0].moved
    assert second[0].moved
    assert first[0].claim == second[0].claim


@pytest.mark.parametrize("state", [state for state in State if state not in (State.MISSING, State.JUDGED)])
def test_another_call_finds_the_run_known_however_far_it_is(world, state):
    about = world.bring(state)

    (outcome,) = world.claim(dataclasses.replace(flow_run(), run_id=about.run_id))

    assert outcome.refusal is Refusal.KNOWN
    assert outcome.claim.claim == about.claim


def test_a_used_up_claim_id_is_not_claimed_again_but_the_run_is(world):
    run, call = flow_run(), str(uuid.uuid4())
    world.claim(run, call=call)
    world.claims.refuse(world.term, run.run_id, claim_id(call, run.run_id), "no")

    assert world.claim(run, call=call)[0].refusal is Refusal.KNOWN
    assert world.claim(run)[0].moved


def test_nothing_is_claimed_under_another_term_a_shut_gate_or_a_leader_that_has_resigned(world):
    assert world.claim(term=world.term + 1)[0].refusal is Refusal.TERM
    world.shut()
    assert world.claim()[0].refusal is Refusal.GATE
    world.open()
    world.gate.resign(world.term)
    assert world.claim()[0].refusal is Refusal.TERM
    assert world.claims.live() == []


# slots


@pytest.mark.parametrize("state", State)
def test_a_claim_holds_a_slot_until_its_deployment_is_gone_though_its_worker_be_silent(valkey, state):
    """Whether its report is delivered does not matter."""
    world = LedgerWorld(valkey.url).up(row(slots=1))
    if state in (State.MISSING, State.JUDGED):
        world.set(world.bring(State.RUNNING), state=state)
    else:
        world.bring(state)

    assert world.claim()[0].refusal is (None if state is State.ENDED else Refusal.NO_SLOT)


@pytest.mark.parametrize("why", ["lapsed", "paused", "draining", "signed off", "newer"])
def test_only_live_and_active_workers_have_slots(world, why):
    if why == "lapsed":
        world.roster.lapse(world.term, "w@h", 0)
    elif why == "signed off":
        world.roster.sign_off("w@h", "n1")
    elif why == "newer":
        world.ledger.store.client.hset(world.ledger.store.key("worker:w@h"), "v", "2")
    else:
        world.roster.want("w@h", why)

    assert world.claim()[0].refusal is Refusal.NO_SLOT


def test_a_route_that_no_worker_consumes_has_no_slot(world):
    assert world.claim(flow_run(route("elsewhere")))[0].refusal is Refusal.NO_SLOT


def test_what_waits_on_a_shared_route_may_take_the_workers_of_this_one(valkey):
    a, b = route("a"), route("b")
    world = LedgerWorld(valkey.url).up(
        row("both@h", slots=1, routes=(a, b)), row("b@h", nonce="n2", slots=1, routes=(b,))
    )
    assert world.claim(flow_run(b))[0].moved

    assert world.claim(flow_run(a))[0].refusal is Refusal.NO_SLOT, "both@h may be the one that takes it"
    assert world.claim(flow_run(b))[0].moved, "b@h has a slot all the same"


def test_routes_apart_do_not_take_each_others_slots(valkey):
    a, b = route("a"), route("b")
    world = LedgerWorld(valkey.url).up(row("a@h", slots=2, routes=(a,)), row("b@h", nonce="n2", slots=1, routes=(b,)))
    for _ in range(2):
        assert world.claim(flow_run(a))[0].moved

    assert world.claim(flow_run(a))[0].refusal is Refusal.NO_SLOT
    assert world.claim(flow_run(b))[0].moved


def test_a_worker_that_owns_more_than_its_slots_takes_none_from_others(valkey):
    world = LedgerWorld(valkey.url).up(row(slots=3))
    for _ in range(3):
        world.bring(State.RUNNING)
    world.roster.update(row(slots=1))
    assert world.roster.sign_on(row("x@h", nonce="n2", slots=1)) is None

    assert world.claim()[0].moved


# the worker's


HAPPENS: dict[str, Callable[[LedgerWorld, Claim], Any]] = {
    "another worker signs on": lambda world, claim: world.roster.sign_on(row("x@h", nonce="n2")),
    "the next one signs on": lambda world, claim: world.roster.sign_on(row(nonce="n2"), over=world.roster.rows()[0]),
    "its worker is forgotten": lambda world, claim: [world.roster.sign_off("w@h", "n1"), world.roster.forget("w@h")],
    "it is cancelled": lambda world, claim: world.claims.cancel(claim.run_id),
    "Redis is restarted": lambda world, claim: world.set(claim, process="an earlier one"),
    "the gate is shut": lambda world, claim: world.shut(),
    "the leader gives it back": lambda world, claim: ask(world, "give back (leader)", claim),
    "it is missing": lambda world, claim: world.set(claim, state="missing", was=claim.state),
}


@pytest.mark.parametrize(
    ("state", "event", "who", "move", "refusal"),
    [
        (State.TAKEN, "another worker signs on", ("x@h", "n2"), "take", Refusal.OWNER),
        (State.QUEUED, "the next one signs on", ("w@h", "n1"), "take", Refusal.OWNER),
        (State.TAKEN, "the next one signs on", ("w@h", "n1"), "start", Refusal.OWNER),
        (State.TAKEN, "the next one signs on", ("w@h", "n2"), "start", None),
        (State.STARTING, "the next one signs on", ("w@h", "n2"), "start", Refusal.STATE),
        (State.TAKEN, "its worker is forgotten", ("w@h", "n1"), "start", Refusal.OWNER),
        (State.STARTING, "it is cancelled", ("w@h", "n1"), "start", Refusal.CANCELLED),
        (State.QUEUED, "Redis is restarted", ("w@h", "n1"), "take", Refusal.GATE),
        (State.QUEUED, "Redis is restarted", ("w@h", "n1"), "give back (worker)", Refusal.GATE),
        (State.QUEUED, "Redis is restarted", ("w@h", "n1"), "give back (leader)", None),
        (State.TAKEN, "the gate is shut", ("w@h", "n1"), "give back (worker)", None),
        (State.TAKEN, "the leader gives it back", ("w@h", "n1"), "give back (worker)", Refusal.STATE),
        (State.TAKEN, "the leader gives it back", ("w@h", "n1"), "drop (worker)", Refusal.OWNER),
        (State.RUNNING, "it is missing", ("w@h", "n1"), "end", None),
    ],
)
def test_what_happens_to_a_claim_decides_who_may_do_what_with_it(world, state, event, who, move, refusal):
    claim = world.bring(state)
    HAPPENS[event](world, claim)

    outcome = ask(world, move, claim, worker=who[0], nonce=who[1])
    assert (outcome.moved, outcome.refusal) == (refusal is None, refusal)


def test_accepting_does_not_make_an_old_claim_fresh(world):
    claim = world.bring(State.CLAIMING)
    world.set(claim, process="an earlier one")
    assert ask(world, "accept", claim).moved

    assert ask(world, "take", claim).refusal is Refusal.GATE


def test_the_leader_finishes_what_a_worker_gives_back_and_sees_the_proof(world):
    claim = world.bring(State.STARTING)
    ask(world, "give back (with proof)", claim)
    returning = world.claims.get(claim.run_id)

    assert (returning.reason, returning.never_began) == ("cannot", True)
    assert ask(world, "drop (leader)", claim).moved


def test_handle_and_exit_come_back_as_they_were_in_short(world):
    claim = world.bring(State.STARTING)
    handle = {"kind": "process", "host": "h", "id": 7, "nested": {"empty": [], "none": None}}
    exit_ = {"code": 1, "last_lines": ["password=hunter2"], "cpu_seconds": 0.5, "error": "x" * 1000}
    world.claims.run(claim.run_id, claim.claim, "w@h", handle)
    world.claims.end(claim.run_id, claim.claim, "w@h", exit_)

    found = world.claims.get(claim.run_id)
    assert found.handle == handle
    assert found.exit["code"] == 1
    assert found.exit["cpu_seconds"] == 0.5
    assert len(found.exit["error"]) == 500


def test_what_a_run_has_printed_never_lies_in_redis(world):
    ended, lost = world.bring(State.RUNNING), world.bring(State.RUNNING)
    exit_ = {"code": 1, "last_lines": ["password=hunter2"]}
    world.claims.end(ended.run_id, ended.claim, "w@h", exit_)
    world.claims.renew("w@h", "n1", 1, [held(lost, State.ENDED, exit=exit_)])
    world.claims.release(ended.run_id, ended.claim, "w@h", "reported")

    assert world.claims.get(lost.run_id).exit == {"code": 1}
    assert world.claims.records()[0]["exit"] == {"code": 1}
    client = world.ledger.store.client
    assert all("hunter2" not in str(client.hgetall(key)) for key in client.scan_iter(_type="HASH"))


def test_an_oversized_handle_is_a_fault_of_the_deployer(world):
    claim = world.bring(State.STARTING)

    with pytest.raises(ValueError, match="4096 bytes"):
        world.claims.run(claim.run_id, claim.claim, "w@h", {"id": "x" * 5000})


def test_a_hand_back_names_one_mover(world):
    with pytest.raises(TypeError):
        world.claims.give_back("r", "c", "why")
    with pytest.raises(TypeError):
        world.claims.drop("r", "c", term=1, worker="w@h")


# cancel, reading, records


def test_its_worker_notes_that_the_api_shows_an_end_though_the_process_lives(world):
    claim = world.bring(State.RUNNING)
    linger = world.claims.linger
    assert linger(claim.run_id, claim.claim, "other@h", "Completed").refusal is Refusal.OWNER
    assert linger(claim.run_id, str(uuid.uuid4()), claim.worker, "Completed").refusal is Refusal.OTHER_CLAIM
    assert linger(str(uuid.uuid4()), claim.claim, claim.worker, "Completed").refusal is Refusal.UNKNOWN

    assert linger(claim.run_id, claim.claim, claim.worker, "Completed").claim.lingers == "Completed"
    found = world.claims.get(claim.run_id)
    assert (found.lingers, found.state, found.moves) == ("Completed", State.RUNNING, claim.moves)
    assert linger(claim.run_id, claim.claim, claim.worker, "Completed").claim.lingers_since == found.lingers_since > 0
    assert linger(claim.run_id, claim.claim, claim.worker, "").claim.lingers is None
    assert world.claims.get(claim.run_id).lingers is None


def test_a_cancel_leaves_the_state_and_says_so_on_the_claim_if_there_is_one(world):
    assert world.claims.cancel(str(uuid.uuid4())).refusal is Refusal.UNKNOWN
    claim = world.bring(State.RUNNING)

    assert world.claims.cancel(claim.run_id, why="u@h: wrong input").claim.cancel is CancelHow.ASKED
    found = world.claims.get(claim.run_id)
    assert (found.cancel, found.state, found.moves) == (CancelHow.ASKED, State.RUNNING, claim.moves)
    assert found.cancel_why == "u@h: wrong input"
    assert world.claims.cancel(claim.run_id, other_claim(claim)).refusal is Refusal.OTHER_CLAIM


@pytest.mark.parametrize("state", [state for state in WAYS if state])
def test_a_cancel_goes_from_every_state_and_one_in_a_hurry_is_never_taken_back(world, state):
    claim = world.bring(state)
    assert world.claims.cancel(claim.run_id, claim.claim, why="first").moved
    assert world.claims.cancel(claim.run_id, claim.claim, why="second").claim.cancel_why == "first"
    assert world.claims.cancel(claim.run_id, claim.claim, CancelHow.OVER, "third").moved
    assert world.claims.cancel(claim.run_id, claim.claim, why="fourth").moved

    found = world.claims.get(claim.run_id)
    assert (found.state, found.cancel, found.cancel_why) == (state, CancelHow.OVER, "third")


@pytest.mark.parametrize("how", [CancelHow.ASKED, CancelHow.OVER], ids=str)
def test_a_cancel_that_was_found_at_the_api_gives_way_to_the_word_of_who_asks_and_that_word_stays(world, how):
    claim = world.bring(State.RUNNING)
    for why, found, stands in (
        ("Cancelling at the Prefect API", True, "Cancelling at the Prefect API"),
        ("found again", True, "Cancelling at the Prefect API"),
        ("by Ann: wrong input", False, "by Ann: wrong input"),
        ("Cancelling at the Prefect API", True, "by Ann: wrong input"),
        ("by Bob", False, "by Ann: wrong input"),
    ):
        world.claims.cancel(claim.run_id, claim.claim, how, why, found=found)
        assert world.claims.get(claim.run_id).cancel_why == stands


def test_why_a_run_is_cancelled_is_short_and_holds_no_secret(world):
    claim = world.bring(State.RUNNING)
    world.claims.cancel(claim.run_id, why="postgres://u:hunter2@h/db " + "x" * 500)

    why = world.claims.get(claim.run_id).cancel_why
    assert "hunter2" not in why
    assert len(why) == 200


def test_only_what_is_new_in_a_cancel_wakes_the_worker(world):
    claim, heard = world.bring(State.RUNNING), []
    listener = world.ledger.hints.listen(lambda kind, text: heard.append((kind, text)))
    try:
        until(listener.subscribed.is_set, 10, "the subscription")
        for how in (CancelHow.ASKED, CancelHow.ASKED, CancelHow.OVER, CancelHow.OVER, CancelHow.ASKED):
            world.claims.cancel(claim.run_id, how=how)
        world.ledger.hints.publish("poke")
        until(lambda: ("poke", "") in heard, 10, "the hint that comes last")
    finally:
        listener.close()

    assert heard == [("cancel", claim.run_id)] * 2 + [("poke", "")]


def test_claims_of_a_newer_version_are_left_out_and_left_alone(world):
    claim = world.bring(State.RUNNING)
    world.set(claim, v="2")

    assert world.claims.live() == []
    assert world.claims.get(claim.run_id) is None
    assert world.claims.cancel(claim.run_id).refusal is Refusal.VERSION


def test_records_tell_what_became_of_each_claim_newest_first(world):
    refused, dropped, released = world.bring(None), world.bring(State.RETURNING), world.bring(State.ENDED)
    ask(world, "drop (worker)", dropped)
    ask(world, "release", released)

    records = world.claims.records()

    assert [(r["claim"], r["move"], r["reason"]) for r in records] == [
        (released.claim, "release", "reported"),
        (dropped.claim, "drop (worker)", "tired"),
        (refused.claim, "refuse", "no"),
    ]
    assert records[0]["exit"] == {"code": 0}
    assert world.claims.records(limit=1) == records[:1]
    assert world.ledger.store.counts() == {"refused": 1, "handed_back": 1}


def test_records_older_than_a_day_and_beyond_ten_thousand_go(world):
    store = world.ledger.store
    store.client.zadd(store.key("gone"), {f"old{i}": 1000 + i for i in range(150)})
    for _ in range(2):
        world.bring(None)
    assert store.client.zcount(store.key("gone"), "-inf", 2000) == 0

    now = world.claims.records()[0]["gone_at"]
    store.client.zadd(store.key("gone"), {f"new{i}": now - 100 + i / 1000 for i in range(10_050)})
    world.bring(None)
    assert store.client.zcard(store.key("gone")) == 10_000
    assert world.claims.records(limit=1)[0]["move"] == "refuse"


def test_names_and_reasons_are_bounded(world):
    run = flow_run()
    object.__setattr__(run, "name", "ü" * 5000)
    claim = world.claim(run)[0].claim
    world.claims.refuse(world.term, run.run_id, claim.claim, "y" * 5000)

    assert len(claim.name) == 200
    assert len(world.claims.records()[0]["reason"]) == 500


def test_nothing_is_written_outside_the_fleets_prefix(valkey):
    with Valkey.private() as server:
        world = LedgerWorld(server.url, fleet="only").up()
        for state in (None, State.QUEUED, State.RUNNING, State.RETURNING):
            world.bring(state)
        with server.client() as client:
            keys = set(client.keys("*"))

        assert keys
        assert all(key.startswith("flowfleet:only:") for key in keys)
        assert all(client.ttl(key) == -1 for key in keys), "no key expires"
