"""Real poller processes on a real Valkey and an API that takes every state from everybody."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flowfleet.broker import queue_key
from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import Held, Message, Offer, Route
from flowfleet.ledger import connect
from flowfleet.ledger.api_troubles import LEADER, STARTING, ApiTrouble
from flowfleet.ledger.claims import Claim, State
from flowfleet.ledger.roster import WorkerRow
from flowfleet.monitor.snapshot import take_snapshot
from tests.broken_messages import decoded
from tests.lawless_api import LawlessApi
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, stays, until
from tests.world import World

RENEW_SECONDS = 0.5


class StandIn(threading.Thread):
    """A worker that takes messages as Redis has them, and holds each run for `seconds` (None: for ever)."""

    def __init__(self, fleet: PollerFleet, name: str, slots: int, seconds: float | None) -> None:
        super().__init__(daemon=True, name=name)
        self._fleet = fleet
        self.identity = f"{name}@test"
        self.slots = slots
        self.seconds = seconds
        # a message whose answer comes too late would be lost here, and given out once more
        self.ledger = connect(fleet.valkey.url, fleet.world.fleet, socket_timeout=60)
        self.nonce = uuid.uuid4().hex
        #: run id → what it holds and until when
        self.held: dict[str, tuple[Claim, float]] = {}
        self.errors: list[BaseException] = []
        self._ended = threading.Event()
        #: False: it renews, and leaves the messages where they are
        self.takes = True
        self._beat = 0
        self._next_beat = 0.0
        self._sign_on()

    def _sign_on(self) -> None:
        offer = Offer(backend="prefect3", pools=(self._fleet.world.pool,), pool_ids=(self._fleet.pool_id,))
        row = WorkerRow(
            worker=self.identity,
            nonce=self.nonce,
            offer=offer,
            routes=(self._fleet.route,),
            slots=self.slots,
            version="0.1.0",
            beat=self._beat,
        )
        assert self.ledger.roster.sign_on(row) is None

    def stop(self) -> None:
        self._ended.set()
        self.join(10)
        self.ledger.close()
        assert not self.errors, self.errors

    def run(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self._step()
            except LedgerUnavailable:
                time.sleep(0.2)
            except BaseException as error:
                self.errors.append(error)
                return

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + RENEW_SECONDS
            self._beat += 1
            held = [item for item, _ in self.held.values()]
            renewal = self.ledger.claims.renew(self.identity, self.nonce, self._beat, held)
            if not renewal.signed_on:
                self._sign_on()
            for run_id in renewal.fenced:
                self.held.pop(run_id, None)
        for run_id, (item, ends_at) in list(self.held.items()):
            if now >= ends_at:
                self.ledger.claims.end(run_id, item.claim, self.identity, {"code": 0})
                self._fleet.api.write(run_id, "COMPLETED")
                self.ledger.claims.release(run_id, item.claim, self.identity, "completed")
                del self.held[run_id]
        if self.takes and len(self.held) < self.slots:
            self._take()

    def _take(self) -> None:
        body = self.ledger.store.ask(lambda client: client.rpop(queue_key(self._fleet.world.fleet, self._fleet.route)))
        if body is None:
            return
        _, kwargs, _ = json.loads(decoded(str(body)))
        message = Message.from_kwargs(kwargs)
        self._fleet.messages[message.task_id] += 1
        claims, who = self.ledger.claims, (self.identity, self.nonce)
        if not claims.take(message.run_id, message.claim, *who).moved:
            return
        taken = claims.get(message.run_id)
        if taken is None or not claims.start(message.run_id, message.claim, *who).moved:
            return
        self._fleet.starts[message.run_id] += 1
        self._fleet.started_at[message.run_id] = time.time()
        claims.run(message.run_id, message.claim, self.identity, {"kind": "process", "host": "test", "id": "1"})
        self._fleet.api.write(message.run_id, "RUNNING")
        held = replace(taken, state=State.RUNNING)
        ends_at = float("inf") if self.seconds is None else time.monotonic() + self.seconds
        self.held[message.run_id] = (held, ends_at)


class PollerFleet:
    """One fleet: its API, its Valkey, its pollers and stand-ins."""

    def __init__(self, folder: Path, valkey: Valkey) -> None:
        self.valkey = valkey
        self.api = LawlessApi().start()
        self.world = World(folder, self.api.api_url, valkey.url)
        self.world.env |= {"FLOWFLEET_RENEW_SECONDS": str(RENEW_SECONDS), "FLOWFLEET_LEASE_SECONDS": "4"}
        self.pool_id = str(self.api.add_pool(self.world.pool)["id"])
        self.route = Route("prefect3", self.pool_id, "default")
        self.ledger = connect(valkey.url, self.world.fleet, socket_timeout=60)
        self.workers: list[StandIn] = []
        self.starts: Counter[str] = Counter()
        self.started_at: dict[str, float] = {}
        self.messages: Counter[str] = Counter()

    def poller(self, name: str = "agent", *options: str, **how: Any) -> Any:
        return self.world.start_poller(name, *options, **how)

    def worker(self, name: str = "w", *, slots: int = 4, seconds: float | None = 0.0) -> StandIn:
        worker = StandIn(self, name, slots, seconds)
        self.workers.append(worker)
        worker.start()
        return worker

    def runs(self, number: int, due_in: float = 0.0) -> list[str]:
        return [self.api.add_run(self.world.pool, due_in=due_in) for _ in range(number)]

    def kinds(self, runs: list[str]) -> Counter[str]:
        return Counter(str(self.api.state(run)["type"]) for run in runs)

    def done(self, runs: list[str]) -> bool:
        return self.kinds(runs) == {"COMPLETED": len(runs)}

    def close(self) -> None:
        try:
            for worker in self.workers:
                worker.stop()
        finally:
            self.world.close()
            self.ledger.close()
            self.api.stop()


@pytest.fixture
def fleet(valkey, tmp_path):
    with closing(PollerFleet(tmp_path, valkey)) as made:
        yield made


@pytest.fixture
def poller(fleet):
    return fleet.poller()


def test_sixty_runs_with_two_pollers_and_two_workers_start_once_each(fleet):
    fleet.poller("one")
    fleet.poller("two")
    fleet.worker("a"), fleet.worker("b")
    runs = fleet.runs(60)

    until(lambda: fleet.done(runs), 60, "all runs to be completed")

    assert {fleet.starts[run] for run in runs} == {1}
    assert set(fleet.messages.values()) == {1}
    assert len(fleet.messages) == 60
    until(lambda: fleet.ledger.claims.live() == [], 10, "the ledger to be empty")


def test_a_freed_slot_is_filled_without_waiting_for_the_next_poll(fleet, poller):
    fleet.worker("a", slots=1)
    runs = fleet.runs(20)
    until(lambda: fleet.starts, 15, "the first start")

    # 19 idle polls would be more than three minutes
    until(lambda: fleet.done(runs), 60, "all runs to be completed")


def test_requests_in_a_burst_are_few(fleet, poller):
    fleet.worker("a", slots=4, seconds=0.5)
    until(lambda: fleet.api.workers, 15, "the pool to be online")
    before = fleet.api.counted()
    runs = fleet.runs(40)

    until(lambda: fleet.done(runs), 90, "all runs to be completed")

    assert fleet.api.counted() - before <= 3 * 40


def test_what_is_held_back_and_what_nobody_takes_is_in_the_status(fleet):
    fleet.runs(3)
    fleet.api._queue(fleet.world.pool, "default")["is_paused"] = True
    fleet.api._create_queue(fleet.world.pool, {"name": "gpu"})
    fleet.api.add_run(fleet.world.pool, queue="gpu")
    fleet.worker("a")
    fleet.poller()
    gpu = replace(fleet.route, name="gpu")

    def queues():
        return {queue.route: queue for queue in take_snapshot(fleet.ledger).queues}

    until(lambda: fleet.route in queues() and queues()[fleet.route].held.paused == 3, 30, "the pause to be seen")
    assert (queues()[fleet.route].due, queues()[fleet.route].eligible_workers) == (0, 1)
    fleet.workers[0].stop()
    until(lambda: queues()[gpu].held == Held(unserved=1), 30, "the run without a worker to be counted")
    assert (queues()[gpu].due, queues()[gpu].eligible_workers) == (1, 0)


def test_an_api_that_hangs_is_in_the_status_at_once_and_the_numbers_show_their_age(fleet):
    fleet.worker("a")
    fleet.api.fail("", "mute", times=-1)  # also while the poller starts
    fleet.poller(wait=False)
    away = (ApiTrouble(part=STARTING, trouble="away"),)
    until(lambda: take_snapshot(fleet.ledger).api_troubles == away, 12, "the poller that starts to say so")
    fleet.api.heal()
    fleet.api._muted.set()
    until(lambda: take_snapshot(fleet.ledger).leader, 60, "the poller to lead")
    until(lambda: take_snapshot(fleet.ledger).due_at, 20, "the API to be asked what is due")
    # the round in which the API is first asked may still be going on
    until(lambda: take_snapshot(fleet.ledger).api_troubles == (), 20, "the poller to say that it is over")

    fleet.api._muted.clear()
    fleet.api.fail("", "mute", times=-1)
    away = (ApiTrouble(part=LEADER, trouble="away"),)
    until(lambda: take_snapshot(fleet.ledger).api_troubles == away, 20, "the leader to say so")
    until(lambda: (take_snapshot(fleet.ledger).stale_seconds or 0) > 15, 20, "the numbers to be old")
    fleet.api.heal()
    fleet.api._muted.set()
    until(lambda: take_snapshot(fleet.ledger).api_troubles == (), 60, "it to be over")
    until(lambda: take_snapshot(fleet.ledger).stale_seconds is None, 20, "the numbers to be new")


def longest_pause(fleet):
    """Watches from one look to the next, a listing or a count; True when nearly ten seconds lie between the two."""
    first = fleet.api.counted()
    until(lambda: fleet.api.counted() > first, 15, "a look")
    began = time.monotonic()
    second = fleet.api.counted()
    until(lambda: fleet.api.counted() > second, 15, "the next look")
    return time.monotonic() - began > 9


@pytest.mark.slow
def test_idle_requests_do_not_grow_with_the_workers(fleet, poller):
    for name in "abcd":
        fleet.worker(name)
    until(lambda: fleet.api.workers, 15, "the pool to be online")
    until(lambda: longest_pause(fleet), 40, "the pauses between polls to have grown to their longest")
    before = fleet.api.counted()
    most = before + 8 * 30 / 60 + 1
    stays(lambda: fleet.api.counted() <= most, 30, "eight requests a minute at most")


def test_a_run_scheduled_ahead_is_claimed_shortly_before_its_time(fleet, poller):
    fleet.worker("a")
    (run,) = fleet.runs(1, due_in=14)
    due = datetime.fromisoformat(fleet.api.runs[run]["next_scheduled_start_time"]).timestamp()

    until(lambda: fleet.starts[run], 30, "the run to start")

    assert fleet.started_at[run] - due > -7


def after(line):
    """What starts a poller in whose process this line of Python comes first."""
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", f"{line}\n{run}"]


#: a poller that lists by itself every five minutes only
RARELY = (
    "from poller.pace import Pace; Pace.of = lambda backend, *, idle_seconds: Pace(idle_seconds=300, busy_seconds=300)"
)
#: a standby that waits five minutes for a leader that is silent
PATIENTLY = (
    "from flowfleet.settings.classes import PollerSettings as S; S.__init__.__kwdefaults__['leader_seconds'] = 300.0"
)


def test_poke_wakes_the_leader_also_by_way_of_a_standby(fleet):
    fleet.worker("a")
    fleet.poller("one", before=after(RARELY))
    standby = fleet.poller("two", before=after(RARELY))
    for poked in range(3):
        # what is freed by a run makes it look too
        until(lambda: fleet.ledger.claims.live() == [], 15, "the ledger to be empty")
        (run,) = fleet.runs(1)
        assert standby.ask("/api/poke")[0] == 200
        until(lambda run=run: fleet.starts[run], 40, f"the run after poke {poked}")


def test_its_page_tells_how_it_is(fleet, poller):
    fleet.worker("a")
    until(lambda: fleet.api.workers, 15, "the pool to be online")

    status, body = poller.ask("/api/health")
    assert (status, json.loads(body)["role"]) == (200, "leader")
    assert "flowfleet_poll_duration_seconds_count" in poller.ask("/metrics")[1]


def two_pollers(fleet, **standby):
    """The leader, with a standby and a worker beside it."""
    leader = fleet.poller("one")
    until(fleet.ledger.gate.leader, 10, "a leader")
    fleet.poller("two", **standby)
    fleet.worker("a")
    return leader


def test_sigterm_ends_it_in_order_and_the_standby_takes_over_at_once(fleet):
    leader = two_pollers(fleet, before=after(PATIENTLY))

    began = time.monotonic()
    assert leader.stop() == 0
    assert time.monotonic() - began < 5 * SCALE
    (run,) = fleet.runs(1)
    until(lambda: fleet.starts[run], 40, "the standby to claim")
    assert fleet.ledger.gate.leader().name == "two"


class Queued:
    """Runs that are queued for a live worker that takes none."""

    def __init__(self, fleet, number):
        self.fleet = fleet
        self.worker = fleet.worker("a", slots=number)
        self.worker.takes = False
        self.runs = fleet.runs(number)
        claims = fleet.ledger.claims
        until(lambda: [claim.state for claim in claims.live()] == [State.QUEUED] * number, 30, "all to be queued")

    def back(self):
        return self.fleet.kinds(self.runs) == {"SCHEDULED": len(self.runs)} and not self.fleet.ledger.claims.live()

    def messages(self):
        key = queue_key(self.fleet.world.fleet, self.fleet.route)
        return self.fleet.ledger.store.ask(lambda client: client.llen(key))


def test_a_stop_without_a_standby_gives_back_what_is_queued_and_empties_the_queue(fleet, poller):
    queued = Queued(fleet, 20)
    began = time.monotonic()
    assert poller.stop() == 0
    assert time.monotonic() - began < 5 * SCALE
    assert queued.back()
    assert queued.messages() == 0
    assert fleet.ledger.gate.leader() is None


def moves(counter, what):
    """Wait until a counter has moved, from now on."""
    before = counter()
    until(lambda: counter() != before, 30, what)


def seen_to_stand_by(fleet):
    """The leader has seen the standby move just now: for the next seconds that may pause."""
    gate = fleet.ledger.gate
    until(gate.standbys, 20, "the standby to stand by")
    # after each beat of its own the leader looks at the standbys, and one that stops is done with that first
    for _ in range(2):
        moves(gate.standbys, "the standby's counter to move")
        moves(lambda: gate.leader().beat, "the leader to look")


def test_a_restart_of_the_leader_beside_a_standby_bounces_no_run(fleet):
    leader = two_pollers(fleet)
    fleet.workers[0].takes = False
    runs = fleet.runs(2)
    until(lambda: [claim.state for claim in fleet.ledger.claims.live()] == [State.QUEUED] * 2, 30, "all to be queued")
    seen_to_stand_by(fleet)
    assert leader.stop() == 0
    assert fleet.kinds(runs) == {"PENDING": 2}
    fleet.workers[0].takes = True
    until(lambda: fleet.done(runs), 40, "all to be done, by their first claims")
    assert {len(fleet.api.history(run)) for run in runs} == {4}


@pytest.mark.parametrize("together", [True, False])
def test_of_two_pollers_that_are_both_stopped_the_last_gives_back(fleet, together):
    leader = two_pollers(fleet)
    fleet.workers[0].takes = False
    standby = fleet.world.parts[-1]
    runs = fleet.runs(3)
    until(lambda: [claim.state for claim in fleet.ledger.claims.live()] == [State.QUEUED] * 3, 30, "all to be queued")
    counter = fleet.ledger.gate.standbys()
    until(lambda: fleet.ledger.gate.standbys() != counter, 20, "the standby's counter to move")
    leader.signal(signal.SIGTERM)
    if not together:
        assert leader.wait() == 0
    standby.signal(signal.SIGTERM)
    assert (leader.wait(), standby.wait()) == (0, 0)
    assert fleet.kinds(runs) == {"SCHEDULED": 3}
    assert fleet.ledger.claims.live() == []


def test_a_stop_whose_api_hangs_names_what_it_could_not_give_back_and_the_next_poller_does_it(fleet, poller):
    queued = Queued(fleet, 2)
    fleet.api.fail("", "mute", times=-1)
    assert poller.stop(15) == 0
    fleet.api.heal()
    assert "runs could not be given back" in poller.text()
    assert all(run in poller.text().splitlines()[-1] for run in queued.runs)
    queued.worker.takes = True
    fleet.poller("two")
    until(lambda: fleet.done(queued.runs), 120, "the runs to be done after all")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("return.after_ledger", marks=pytest.mark.slow),
        # the rounds by hand in tests/unit/test_poller_departure.py look at each place
        *(pytest.param(place, marks=pytest.mark.stress) for place in ("return.after_api", "leave.before_resign")),
    ],
)
def test_a_poller_that_is_killed_in_its_stop_strands_no_run(fleet, place):
    poller = fleet.poller(env={"FLOWFLEET_FAILPOINT": f"{place}:kill"})
    queued = Queued(fleet, 2)
    poller.signal(signal.SIGTERM)
    assert poller.wait() == -signal.SIGKILL
    queued.worker.takes = True
    fleet.poller("two")
    until(lambda: fleet.done(queued.runs), 120, "the runs to be done by the next poller")
    assert set(fleet.starts.values()) == {1}


def test_sigint_works_also_where_the_shell_has_set_it_to_be_ignored(fleet):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        poller = fleet.poller()
    finally:
        signal.signal(signal.SIGINT, before)
    poller.signal(signal.SIGINT)

    assert poller.wait(10) == 0


def test_an_api_that_hangs_does_not_keep_an_orderly_end_waiting(fleet, poller):
    fleet.worker("a")
    until(lambda: fleet.api.workers, 20, "the pool to be online")
    fleet.api.fail("", "mute", times=-1)
    asked = fleet.api.counted()
    until(lambda: fleet.api.counted() > asked, 20, "a request that is not answered")

    began = time.monotonic()
    assert poller.stop(15) == 0
    assert time.monotonic() - began < 10 * SCALE
    assert "ended without waiting for an answer any longer" in poller.text()
    assert fleet.ledger.gate.leader() is None


def test_a_second_signal_cuts_the_end_short(fleet, poller):
    fleet.worker("a")
    fleet.api.fail("bulk_set_state", "mute", times=-1)
    fleet.runs(1)
    claims = fleet.ledger.claims
    until(lambda: [claim.state for claim in claims.live()] == [State.CLAIMING], 20, "a claim that is not answered")
    poller.signal(signal.SIGTERM)
    stays(lambda: poller.process.poll() is None, 0.5, "it waits for the claim in hand, up to a minute")

    def hurried():
        # two that it has not seen yet are one
        poller.signal(signal.SIGTERM)
        return poller.process.poll() is not None

    until(hurried, 15, "its end", pause=0.1)
    assert poller.wait() == 128 + signal.SIGTERM


def test_a_leader_that_is_killed_is_replaced_after_fifteen_seconds_and_not_before(fleet):
    leader = two_pollers(fleet)
    seen = time.monotonic()
    beat = fleet.ledger.gate.leader().beat
    until(lambda: fleet.ledger.gate.leader().beat != beat, 10, "the counter to move")
    leader.kill()
    (run,) = fleet.runs(1)

    until(lambda: fleet.starts[run], 40, "the standby to claim")

    assert time.monotonic() - seen >= 15
    assert fleet.starts[run] == 1


def test_a_leader_that_was_frozen_comes_back_as_a_standby_and_doubles_nothing(fleet):
    leader = two_pollers(fleet)
    leader.signal(signal.SIGSTOP)
    runs = fleet.runs(12)
    until(lambda: fleet.done(runs), 60, "the standby to do all")
    leader.signal(signal.SIGCONT)
    more = fleet.runs(12)
    until(lambda: fleet.done(more), 40, "the rest")

    until(lambda: json.loads(leader.ask("/api/health")[1] or "{}").get("role") == "standby", 15, "it to stand by")
    assert set(fleet.starts.values()) == {1}
    assert set(fleet.messages.values()) == {1}


def test_what_is_submitted_by_this_fleet_and_unknown_to_it_is_handed_back_at_the_start(fleet):
    (run,) = fleet.runs(1)
    call = "22222222-2222-4222-8222-222222222222"
    fleet.api.write(run, "PENDING", "Submitted", f"flowfleet {fleet.world.fleet} claimed by agent", transition_id=call)
    (foreign,) = fleet.runs(1)
    fleet.api.write(foreign, "PENDING", "Submitted", "flowfleet another claimed by agent", transition_id=call)
    fleet.worker("a")
    fleet.poller()

    until(lambda: fleet.done([run]), 40, "the run to be started after all")

    assert fleet.api.history(foreign)[-1] == "Submitted"


def test_an_api_that_does_not_answer_for_a_while_is_outlived(fleet, poller):
    fleet.worker("a")
    fleet.api.fail("", "status", times=-1, status=500)
    (run,) = fleet.runs(1)
    until(lambda: "does not answer" in poller.text(), 60, "the outage to be said")
    fleet.api.heal()

    until(lambda: fleet.done([run]), 60, "the run to be completed")


@pytest.mark.parametrize("kind", ["drop_after", "null_abort", "null_abort_after"])
def test_a_claim_whose_answer_is_lost_is_settled(fleet, poller, kind):
    fleet.worker("a")
    fleet.api.fail("bulk_set_state", kind, times=1)
    runs = fleet.runs(3)

    until(lambda: fleet.done(runs), 60, "all runs to be completed")

    assert {fleet.starts[run] for run in runs} == {1}


def test_redis_that_restarts_empty_is_rebuilt_and_nothing_is_doubled(tmp_path):
    with Valkey.private(tcp=True) as valkey, closing(PollerFleet(tmp_path, valkey)) as fleet:
        fleet.poller()
        worker = fleet.worker("a", slots=4, seconds=None)
        runs = fleet.runs(3)
        until(lambda: len(worker.held) == 3, 30, "three running")
        valkey.restart(kill=True, wipe=True)
        more = fleet.runs(1)

        until(lambda: fleet.starts[more[0]], 90, "the fleet to go on", pause=0.2)

        assert {fleet.starts[run] for run in runs + more} == {1}
        live = {claim.run_id: claim.state for claim in fleet.ledger.claims.live()}
        assert {live[run] for run in runs} == {State.RUNNING}


# --- commands that end


def command(fleet, *options, **env):
    return fleet.world.command("poller", "start", *options, seconds=60, **env)


def test_max_polls_ends_it_with_zero(fleet):
    fleet.worker("a")
    done = command(fleet, "--max-polls", "2")

    assert done.returncode == 0, done.stderr
    assert fleet.api.counted("get_scheduled") == 2
    assert fleet.ledger.gate.leader() is None


@pytest.mark.parametrize(
    ("options", "env", "code"),
    [
        pytest.param(("--require-api",), {"PREFECT_API_URL": "{nowhere}/api"}, 3, id="no API, and --require-api"),
        pytest.param((), {"PREFECT_API_URL": "{api}/nothing"}, 3, id="an address that is no Prefect API"),
        pytest.param((), {"FLOWFLEET_REDIS": "rediss-cluster://nowhere"}, 4, id="a Redis that cannot be used"),
    ],
)
def test_what_waiting_cannot_cure_is_one_sentence_and_its_code(fleet, options, env, code):
    places = {"nowhere": f"http://127.0.0.1:{free_port()}", "api": fleet.api.api_url}
    told = {name: value.format(**places) for name, value in env.items()}
    done = command(fleet, *options, **told)

    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
