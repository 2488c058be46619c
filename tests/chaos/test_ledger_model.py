"""The ledger against its model: any order of steps, crashes between any two, echoes, and the last writes lost."""

import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from flowfleet.flow_run import claim_id
from flowfleet.ledger.claims import Claim, Refusal, State
from tests.chaos.ledger_fleet import RUNS, LedgerFleet
from tests.chaos.ledger_oracle import NAMED, TABLE, Asked, Tally, expected
from tests.ledger_world import held, other_claim
from tests.valkey import Valkey

MODEL = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
    "stateful_step_count": 60,
    "database": None,
}
ACTIONS = (
    *("things_go_well_for_a_while",) * 3,
    *("a_poller_goes_on", "a_worker_goes_on") * 3,
    *("a_poller_claims", "a_worker_renews", "a_message_arrives_however_late_or_often") * 2,
    *("the_network_delivers_a_question_once_more", "a_poller_finds_what_stands_too_long", "the_leader_opens_the_gate")
    * 2,
    *("a_poller_finds_what_stands_too_long",) * 2,
    *("a_poller_is_elected", "a_poller_crashes", "the_leader_sweeps", "the_leader_opens_the_gate"),
    *("a_worker_gives_back_what_it_has_not_started", "a_worker_without_room_refuses_a_message") * 3,
    *("a_worker_takes_over_what_a_dead_one_has_left", "a_worker_yields", "a_worker_hands_back_what_it_has_yielded") * 4,
    *("nobody_is_heard_of", "the_leader_goes_on_with_a_lost_run", "somebody_restarts_in_the_ui") * 3,
    *("the_leader_restores_what_redis_has_lost",) * 2,
    *("the_leader_inherits", "the_host_reboots", "a_person_forgets_a_worker"),
    *("a_worker_crashes", "a_worker_comes_back", "a_worker_lapses", "somebody_cancels"),
    *("redis_dies_and_loses_its_last_writes",) * 2,
    *("somebody_asks_for_what_must_be_refused",) * 4,
    *("the_clock_of_the_redis_host_jumps", "a_stranger_asserts_a_claim"),
)

#: of CI; a machine that is slow takes a third of them
#: FLOWFLEET_TEST_STEPS: a part of it, for several machines or days
AT_LENGTH = int(os.environ.get("FLOWFLEET_TEST_STEPS", "1000000"))
STEPS = 4_000 if os.environ.get("FLOWFLEET_TEST_THIRD") else 8_000
#: what the table promises and the steps of CI need not meet; `make stress` wants all of it
NOT_IN_CI = {
    ("adopt", "owner"),
    ("adopt", "running"),
    ("clear", "other-claim"),
    ("drop (worker)", "forgotten"),
    ("forget", "running"),
    ("forget", "starting"),
    ("give back (with proof)", "forgotten"),
    ("give back (with proof)", "queued"),
    ("give back (worker)", "forgotten"),
    ("judge", "gate"),
    ("prove", "missing"),
    ("yield", "gate"),
}
#: how many steps may go well: to each state, and more often to those that pass quickly
STRETCHES = (1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 9)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    """Not the session's: this one is killed all the time."""
    with first_in_line(), Valkey.private() as private:
        yield private


@contextmanager
def first_in_line() -> Iterator[None]:
    """What this process does, and starts, comes before other work: each small question would wait for a processor."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


class LedgerMachine(RuleBasedStateMachine):
    """One rule, many actions: hypothesis switches whole rules off in an example, and here every mixture matters.

    `server`, `tally` and `steps` are set on a subclass by the test. An action answers False if there is nothing to do.
    """

    server: Valkey
    tally: Tally
    #: one item for each step of all examples
    steps: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.fleet = LedgerFleet(self.server, self.tally)
        self.fleet.elect(self.fleet.pollers[0])
        self.fleet.open_gate(self.fleet.pollers[0])
        for worker in self.fleet.workers:
            self.fleet.sign_on(worker)

    @initialize(lossy=st.integers(0, 2).map(bool))
    def redis_keeps_what_it_was_told_or_not(self, lossy):
        """A third of the examples loses nothing: there, nothing at all may be left in the end."""
        self.lossy = lossy

    @rule(chance=st.integers(0, 2**23 - 1))
    def step(self, chance):
        """One number decides all: many small draws repeat themselves, and so would a wider range than 24 bits."""
        dice = random.Random(chance)
        action, who, pick, answered = dice.choice(ACTIONS), dice.randrange(2), dice.randrange(60), dice.random() < 0.85
        note(f"{action}({who}, {pick}, {answered})")
        self.steps.append(chance)
        getattr(self, action)(who, pick, answered)

    def somebody_asks_for_what_must_be_refused(self, who, pick, answered):
        """Each refusal of a few moves that can be had now."""
        for number in range(pick, pick + 5):
            move = NAMED[number % len(NAMED)]
            for why in TABLE[move].refusals:
                if why is Refusal.VERSION:
                    self._ask_about_a_newer_claim(move, pick)
                else:
                    self._ask_for(move, why, pick)

    @invariant()
    def never_twice(self):
        self.fleet.check()
        self.fleet.snapshot()

    def teardown(self) -> None:
        self.fleet.settle()
        self.fleet.world.ledger.close()
        self.fleet.raw.close()

    # pollers

    def things_go_well_for_a_while(self, who, pick, answered):
        """A stretch without trouble, so that trouble finds all states."""
        self._a_good_stretch(who, pick, STRETCHES[pick // 5], answered=answered)

    def _a_good_stretch(self, who: int, pick: int, steps: int, *, answered: bool) -> None:
        fleet, poller, owner = self.fleet, self.fleet.pollers[who], self.fleet.workers[pick % 2]
        leader = fleet.gate.leader()
        if leader is None or leader.term != poller.term:
            fleet.elect(poller)
        fleet.open_gate(poller)
        if not owner.alive:
            fleet.sign_on(owner)
        fleet.renew(owner)
        before, run = set(poller.hands), RUNS[pick % len(RUNS)].run_id
        fleet.claim(poller, [pick % len(RUNS)], answered=True)
        for key in sorted(set(poller.hands) - before):
            for _ in range(steps):
                if key in poller.hands:
                    fleet.go_on(poller, key)
                elif key in owner.folders:
                    fleet.work(owner, key, answered=answered)
                elif (run, key) in fleet.messages:
                    fleet.deliver(owner, (run, key), answered=True)

    def a_poller_is_elected(self, who, pick, answered):
        self.fleet.elect(self.fleet.pollers[who])

    def a_poller_claims(self, who, pick, answered):
        runs = sorted({pick % 4, pick // 4 % 4, pick // 16 % 4})
        self.fleet.claim(self.fleet.pollers[who], runs, answered=answered)

    def a_poller_goes_on(self, who, pick, answered):
        poller = self.fleet.pollers[who]
        if poller.hands:
            self.fleet.go_on(poller, sorted(poller.hands)[pick % len(poller.hands)], answered=answered)

    def a_poller_finds_what_stands_too_long(self, who, pick, answered):
        live = self.fleet.claims.live()
        if live:
            claim = live[pick % len(live)]
            self.fleet.pick_up(self.fleet.pollers[who], claim)
            for worker in self.fleet.workers:
                if worker.name == claim.worker and worker.alive:
                    self.fleet.renew(worker, answered=answered)

    def nobody_is_heard_of(self, who, pick, answered):
        """What has started is missed, and as a rule judged; the other half of the time its host is heard of again."""
        if who == 0:
            self._a_good_stretch(0, pick, (4, 6, 7)[pick % 3], answered=True)
        started = [claim for claim in self.fleet.claims.live() if claim.state in TABLE["miss"].sources]
        for claim in started[pick % 2 :]:
            self.fleet.miss(self.fleet.pollers[0], claim)
        if pick % 3:
            self._judge_all(0)

    def _judge_all(self, who: int) -> None:
        for claim in self.fleet.claims.live():
            if claim.state is State.MISSING:
                self.fleet.pick_up(self.fleet.pollers[who], claim)

    def the_leader_goes_on_with_a_lost_run(self, who, pick, answered):
        poller = self.fleet.pollers[0]
        lost = [claim for claim in self.fleet.claims.live() if claim.state in (State.MISSING, State.JUDGED)]
        for claim in lost[: 1 + pick % 3]:
            if claim.claim not in poller.hands:
                self.fleet.pick_up(poller, claim)
            for _ in range(1 + pick % 2):
                if claim.claim in poller.hands:
                    self.fleet.go_on(poller, claim.claim, answered=answered)

    def somebody_restarts_in_the_ui(self, who, pick, answered):
        run = RUNS[pick % len(RUNS)]
        self.fleet.api[run.run_id].restart()
        self.fleet.claim(self.fleet.pollers[0], [pick % len(RUNS)], answered=answered)

    def the_leader_inherits(self, who, pick, answered):
        self._a_good_stretch(0, pick, 9, answered=False)
        for claim in self.fleet.claims.live():
            if claim.state is State.ENDED:
                self.fleet.inherit(self.fleet.pollers[0], claim)

    def the_leader_restores_what_redis_has_lost(self, who, pick, answered):
        """What has been launched, with its host away until the gate is open; some of it is judged before it is back."""
        if self.lossy:
            self._a_good_stretch(0, pick, (5, 6, 7)[pick % 3], answered=True)
            self.fleet.lose_claims(RUNS[pick % 2 :])
        self.fleet.open_gate(self.fleet.pollers[0])
        self.fleet.restore(self.fleet.pollers[0], late=not answered)
        if pick % 4 == 0:
            self._judge_all(0)

    def the_host_reboots(self, who, pick, answered):
        self.fleet.reboot(self.fleet.pollers[0])

    def a_person_forgets_a_worker(self, who, pick, answered):
        worker = self.fleet.workers[who]
        self.fleet.forget(worker, dead=False)
        if pick % 2 == 0:
            self._a_good_stretch(0, pick, (6, 7)[pick % 3 == 0], answered=True)
            for claim in self.fleet.claims.live()[pick % 2 :]:
                if claim.state in TABLE["miss"].sources and pick % 3:
                    self.fleet.miss(self.fleet.pollers[0], claim)
        if pick % 5 == 0:
            self._judge_all(0)
        self.fleet.forget(worker, dead=True)
        if answered and not worker.alive:
            self.fleet.sign_on(worker)
            self.fleet.renew(worker)

    def a_poller_crashes(self, who, pick, answered):
        self.fleet.pollers[who].hands = {}

    def the_leader_sweeps(self, who, pick, answered):
        self.fleet.sweep()

    def the_leader_opens_the_gate(self, who, pick, answered):
        self.fleet.open_gate(self.fleet.pollers[who])

    # workers

    def a_message_arrives_however_late_or_often(self, who, pick, answered):
        worker, messages = self.fleet.workers[who], self.fleet.messages[::-1]
        if worker.alive and messages:
            self.fleet.deliver(worker, messages[pick % len(messages)], answered=answered)

    def a_worker_goes_on(self, who, pick, answered):
        worker = self.fleet.workers[who]
        if worker.alive and worker.folders:
            self.fleet.work(worker, sorted(worker.folders)[pick % len(worker.folders)], answered=answered)

    def a_worker_gives_back_what_it_has_not_started(self, who, pick, answered):
        worker = self.fleet.workers[who]
        unbegun = sorted(key for key, f in worker.folders.items() if f.phase in ("taken", "starting", "launched"))
        if worker.alive and unbegun:
            key = unbegun[pick % len(unbegun)]
            worker.folders[key].phase = "abandoned"
            self.fleet.work(worker, key, answered=answered)

    def a_worker_without_room_refuses_a_message(self, who, pick, answered):
        worker, messages = self.fleet.workers[who], self.fleet.messages[::-1]
        if worker.alive and messages and messages[pick % len(messages)][1] not in worker.folders:
            self.fleet.refuse_message(worker, messages[pick % len(messages)], proof=pick % 2 == 0)

    def a_worker_yields(self, who, pick, answered):
        """It stops, is kept from taking runs, or looks for what dead ones have left; half the time it is the last."""
        worker, other = self.fleet.workers[who], self.fleet.workers[1 - who]
        if not worker.alive:
            return
        if pick % 2:
            self._a_good_stretch(0, pick, 2, answered=True)  # up to queued, with a message
            for found in self.fleet.world.roster.rows():
                if found.worker == other.name:
                    self.fleet.world.roster.lapse(self.fleet.pollers[0].term, found.worker, found.beat)
        if pick % 5 == 0:
            self.fleet.yield_waiting(worker, "stopping", answered=False, nonce="stranger")
        live = self.fleet.claims.live()
        if pick % 7 == 0 and live:
            with self.fleet.newer(live[pick % len(live)]):
                self.fleet.yield_waiting(worker, "idle", answered=False)
        how = ("stopping", "idle", "finishing")[pick % 3]
        self.fleet.yield_waiting(worker, how, answered=answered)
        if how == "stopping" and pick % 4 == 0:
            self.fleet.crash(worker)

    def a_worker_hands_back_what_it_has_yielded(self, who, pick, answered):
        worker = self.fleet.workers[who]
        if worker.alive and worker.yielded:
            self.fleet.finish_yielded(worker, sorted(worker.yielded)[pick % len(worker.yielded)], answered=answered)

    def a_worker_renews(self, who, pick, answered):
        if self.fleet.workers[who].alive:
            self.fleet.renew(self.fleet.workers[who], answered=answered)

    def a_worker_crashes(self, who, pick, answered):
        self.fleet.crash(self.fleet.workers[who])

    def a_worker_takes_over_what_a_dead_one_has_left(self, who, pick, answered):
        worker, other = self.fleet.workers[1 - pick % 2], self.fleet.workers[pick % 2]
        if not worker.alive:
            return
        if who == 0:
            self._a_good_stretch(0, pick, (4, 6, 7, 8, 9)[pick % 5], answered=True)
        for key in sorted(key for key, f in other.folders.items() if f.phase in ("forked", "exited") and other.alive):
            self.fleet.work(other, key, answered=False)  # killed right after it
        self.fleet.crash(other)
        self.fleet.take_over(worker, other, answered=answered)

    def a_worker_comes_back(self, who, pick, answered):
        if not self.fleet.workers[who].alive:
            self.fleet.sign_on(self.fleet.workers[who])

    def a_worker_lapses(self, who, pick, answered):
        for found in self.fleet.world.roster.rows():
            if found.worker == self.fleet.workers[who].name:
                self.fleet.world.roster.lapse(self.fleet.pollers[who].term, found.worker, found.beat)

    # the world

    def somebody_cancels(self, who, pick, answered):
        live = self.fleet.claims.live()
        if live:
            unbegun = [claim for claim in live if claim.state is State.TAKEN] or live
            claim = unbegun[pick % len(unbegun)]
            self.fleet.ask(Asked(move="cancel", run=claim.run_id, claim=claim.claim))
            self._ask_for("start", Refusal.CANCELLED, pick)

    def the_network_delivers_a_question_once_more(self, who, pick, answered):
        if self.fleet.echoes:
            self.fleet.echoes[pick % len(self.fleet.echoes)]()

    def redis_dies_and_loses_its_last_writes(self, who, pick, answered):
        if self.fleet.snapshots:
            self.fleet.restart_redis([0, 1, 2, 3, 5, 8, 20][pick % 7] if self.lossy else 0)
            for move in NAMED:
                if Refusal.GATE in TABLE[move].refusals:
                    self._ask_for(move, Refusal.GATE, pick)

    def the_clock_of_the_redis_host_jumps(self, who, pick, answered):
        """All that was ever written down was written another time ago."""
        client, key, shift = self.fleet.store.client, self.fleet.store.key, (-400, -2, 2, 400)[pick % 4] * 86400
        for run in RUNS:
            if client.exists(key(f"claim:{run.run_id}")):
                client.hincrbyfloat(key(f"claim:{run.run_id}"), "since", shift)
        for worker in self.fleet.workers:
            if client.exists(key(f"worker:{worker.name}")):
                client.hincrbyfloat(key(f"worker:{worker.name}"), "seen", shift)
        for claim in client.zrange(key("gone"), 0, -1):
            client.zincrby(key("gone"), shift, claim)

    # strangers

    def a_stranger_asserts_a_claim(self, who, pick, answered):
        live = self.fleet.claims.live()
        if live:
            claim = live[pick % len(live)]
            if pick % 3 == 0:
                self._another_process_asserts(claim)
            else:
                self._a_wrong_claim_is_asserted(claim, newer=pick % 3 == 1)

    def _another_process_asserts(self, claim: Claim) -> None:
        if claim.worker and self.fleet.hash(f"worker:{claim.worker}"):
            before = self.fleet.hash(f"claim:{claim.run_id}")
            renewal = self.fleet.claims.renew(claim.worker, "stranger", 10**9, [held(claim, State.RUNNING)])
            assert dict(renewal.fenced) == {claim.run_id: Refusal.OWNER}
            assert self.fleet.hash(f"claim:{claim.run_id}") == before
            self.tally.add("assert", Refusal.OWNER)

    def _a_wrong_claim_is_asserted(self, claim: Claim, *, newer: bool) -> None:
        worker = self.fleet.workers[0]
        if self.fleet.hash(f"worker:{worker.name}").get("nonce") != worker.nonce:
            return
        worker.beat += 1
        mine = held(claim, State.TAKEN) if newer else held(claim, State.TAKEN, claim=other_claim(claim))
        with self.fleet.newer(claim) if newer else nullcontext():
            renewal = self.fleet.claims.renew(worker.name, worker.nonce, worker.beat, [mine])
        (facts,) = self.fleet.facts(Asked(move="assert", run=claim.run_id, claim=mine.claim))
        why = Refusal.FORGOTTEN if facts.forgotten else Refusal.VERSION if newer else Refusal.OTHER_CLAIM
        assert dict(renewal.fenced) == {claim.run_id: why}
        self.tally.add("assert", why)

    def _ask_for(self, move: str, why: Refusal, pick: int) -> None:
        questions = list(self._questions(move))
        facts = self.fleet.facts(*questions)
        found = [asked for asked, fact in zip(questions, facts, strict=True) if expected(asked, fact) is why]
        if found:
            self.fleet.ask(found[pick % len(found)], echo=False)

    def _questions(self, move: str) -> Iterator[Asked]:
        leader, live = self.fleet.gate.leader(), self.fleet.claims.live()
        term = leader.term if leader else 1
        claims = [(claim.run_id, claim.claim) for claim in live]
        claims += [(claim.run_id, other_claim(claim)) for claim in live]
        claims += [(run.run_id, claim_id(run.run_id, run.run_id)) for run in RUNS]
        for (run_id, claim), worker, asked_term in itertools.product(claims, self.fleet.workers, (term, term + 1)):
            ids = {"run": run_id, "claim": claim, "term": asked_term}
            yield Asked(move=move, worker=worker.name, nonce=worker.nonce, **ids)

    def _ask_about_a_newer_claim(self, move: str, pick: int) -> None:
        live, leader, worker = self.fleet.claims.live(), self.fleet.gate.leader(), self.fleet.workers[0]
        if live and leader:
            claim = live[pick % len(live)]
            ids = {"run": claim.run_id, "claim": claim.claim, "term": leader.term}
            with self.fleet.newer(claim):
                self.fleet.ask(Asked(move=move, worker=worker.name, nonce=worker.nonce, **ids), echo=False)


def machine(server: Valkey, tally: Tally) -> type[LedgerMachine]:
    return type("Machine", (LedgerMachine,), {"server": server, "tally": tally, "steps": []})


def play(server: Valkey, tally: Tally, examples: int, *, number: int, length: int = 60) -> int:
    """Examples that are the same whenever they have this number; how many steps they took."""
    made = seed(number)(machine(server, tally))
    run_state_machine_as_test(
        made, settings=settings(**{**MODEL, "stateful_step_count": length}, max_examples=examples, derandomize=False)
    )
    return len(made.steps)


@pytest.mark.timeout(1800)
def test_any_order_of_steps_starts_no_run_twice_and_loses_none(server):
    """A change of the model changes its examples; so there are more of them until the table has been gone through."""
    tally, steps = Tally(), 0
    for number in range(10):
        steps += play(server, tally, 80, number=number)
        missing = set(tally.missing()) - NOT_IN_CI
        print(f"{steps} steps, not taken yet: {sorted(missing)}")
        if steps >= STEPS and not missing:
            return
    pytest.fail(f"the table has what no example has taken: {sorted(missing)}")


@pytest.mark.stress
@pytest.mark.timeout(4 * 3600)
def test_any_order_of_steps_starts_no_run_twice_and_loses_none_at_length(server):
    tally, steps = Tally(), 0
    while steps < AT_LENGTH:
        number = random.randrange(1 << 32)
        steps += play(server, tally, 500, number=number, length=120)
        print(f"{steps} steps, the last by number {number}, not taken yet: {sorted(tally.missing())}", flush=True)
    assert not tally.missing(), "the table has what no example has taken"
