"""Fencing: what becomes of living runs whose claims the ledger does not confirm, by what the API shows."""

import logging
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import Mark, RunState, StateType
from flowfleet.api.life import cut_off_name
from flowfleet.errors import ApiUnavailable, KeyRefused, LedgerUnavailable
from flowfleet.flow_run import Offer
from flowfleet.ledger.claims import CancelHow, Lease, Refusal, Renewal, State
from flowfleet.retry import SharedOutage
from tests.unit.memory_ledger import START, HandClock, a_claim
from workers.deployment import Exit, StopReason
from workers.runs.api_watch import ApiWatch
from workers.runs.fence_table import Fate, decide
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.state.run_folders import RunFolder

ENDS = ("COMPLETED", "FAILED", "CRASHED")


def shown(kind, name=None, *, run_id="r1", at=START, **more):
    return RunState(run_id=run_id, run_name="n", kind=StateType(kind), name=name or kind.title(), at=at, **more)


def fate(refusal, state, *, others=False):
    return decide(Refusal(refusal) if refusal else None, state, claimed_since=lambda: others)


# -- the table


@pytest.mark.parametrize("refusal", ["state", "buried", "owner", "unknown", None])
def test_a_cancelled_or_deleted_run_is_killed_whatever_the_ledger_says(refusal):
    assert fate(refusal, shown("CANCELLED")) is Fate.KILL
    assert fate(refusal, None) is Fate.KILL


@pytest.mark.parametrize("kind", ENDS)
def test_a_run_with_another_end_is_left_to_its_own(kind):
    assert {fate(refusal, shown(kind)) for refusal in ("state", "buried", "other-claim", "unknown")} == {Fate.LEAVE}
    assert fate(None, shown(kind)) is Fate.KEEP, "while the ledger is away its end is reported in order"


@pytest.mark.parametrize("kind", ["RUNNING", "PENDING", "PAUSED"])
@pytest.mark.parametrize("refusal", ["state", "buried", "unknown", None])
def test_a_run_goes_on_until_somebody_else_has_claimed_it(refusal, kind):
    assert fate(refusal, shown(kind)) is Fate.KEEP
    assert fate(refusal, shown(kind), others=True) is Fate.STOP


def test_a_run_that_is_scheduled_again_is_stopped_unless_its_own_process_put_it_off():
    assert fate("buried", shown("SCHEDULED")) is Fate.STOP
    assert fate("state", shown("SCHEDULED", held=True)) is Fate.KEEP
    assert fate(None, shown("SCHEDULED")) is Fate.KEEP, "nobody has it yet, as far as this worker can know"


def test_a_run_that_is_being_cancelled_ends_and_one_whose_claim_is_gone_at_once():
    assert fate(None, shown("CANCELLING")) is Fate.CANCEL
    assert fate("state", shown("CANCELLING")) is Fate.KILL
    assert fate(None, shown("CANCELLING"), others=True) is Fate.STOP, "it is the other attempt that is cancelled"


def test_the_ledgers_word_is_enough_where_it_says_who_has_the_run_or_that_it_is_forgotten():
    assert fate("other-claim", shown("RUNNING")) is fate("owner", shown("RUNNING")) is Fate.STOP
    assert fate("forgotten", shown("RUNNING")) is Fate.KILL
    assert fate("forgotten", shown("COMPLETED")) is Fate.KILL


# -- the watch


class World:
    """A watch over runs of a table; what the API shows, who has claimed since, and what was stopped how."""

    def __init__(self, tmp_path, backend="prefect3"):
        self.folder, self.clock, self.attempts = tmp_path, HandClock(1000.0), Attempts()
        self.shows, self.asked, self.histories, self.since = {}, [], [], set()
        self.stopped, self.cancelled, self.pool, self.claim = [], [], [], None
        self.view = LedgerView(Offer(backend=backend, pools=("p1", "p2")), clock=self.clock)
        presence = SimpleNamespace(
            online=lambda pool, name, seconds: self.pool.append(("on", pool, name, seconds)),
            offline=lambda pool, name: self.pool.append(("off", pool, name)),
        )
        self.watch = ApiWatch(
            mark=Mark(fleet="f", worker="w@h"),
            ledger_view=self.view,
            claims=SimpleNamespace(get=self.get),
            cancelling=SimpleNamespace(
                attempts=self.attempts,
                api=SimpleNamespace(
                    ends=SimpleNamespace(states=self.states, claimed_since=self.claimed_since),
                    presence=presence,
                    traits=traits.of(backend),
                ),
                supervisor=SimpleNamespace(stop=lambda key, stop: self.stopped.append((key, stop.reason, stop.kill))),
                to_api=SimpleNamespace(outage=SharedOutage("the Prefect API", self.clock)),
                cancelled=lambda attempt, asked: self.cancelled.append((attempt.key, asked.how)),
            ),
            clock=self.clock,
        )
        self.renewed()

    def get(self, run_id):
        if isinstance(self.claim, Exception):
            raise self.claim
        return self.claim

    def states(self, run_ids):
        self.asked.append(sorted(run_ids))
        if isinstance(self.shows, Exception):
            raise self.shows
        return {run_id: self.shows[run_id] for run_id in run_ids if run_id in self.shows}

    def claimed_since(self, run_id, claim):
        assert claim == "c"
        self.histories.append(run_id)
        return run_id in self.since

    def begin(self, run_id="r1", state=State.RUNNING, **more):
        held, folder = a_claim(run_id, state, claim="c"), RunFolder(self.folder / f"{run_id}.c")
        self.attempts.begin(Attempt(**{"held": held, "folder": folder, "started_run": SimpleNamespace(), **more}))
        self.shows[run_id] = shown("RUNNING", run_id=run_id)
        return self.attempts.get(f"{run_id}.c")

    def refuse(self, refusal, run_id="r1"):
        self.watch.refused(self.attempts.get(f"{run_id}.c"), Refusal(refusal))

    def renewed(self):
        self.view.tell(Renewal(lease=Lease(renew_seconds=5.0)), self.clock())

    def cut_off(self):
        self.clock.now += 10.1


@pytest.fixture
def world(tmp_path, caplog):
    caplog.set_level(logging.INFO, "workers.runs")
    return World(tmp_path)


def test_confirmed_runs_cost_the_api_nothing(world):
    world.begin()
    world.watch.look()
    assert world.asked == []


def test_a_refused_run_goes_on_while_the_api_shows_it_as_ours_and_is_asked_about_again(world):
    world.begin()
    world.begin("r2")
    for _ in range(3):
        world.refuse("state")
        world.watch.look()
    assert (world.asked, world.stopped) == ([["r1"]] * 3, [])
    assert world.histories == ["r1"], "a state that was ours once is ours"
    assert not world.attempts.get("r1.c").fenced, "its end is still to be told"


def test_only_news_hurries_the_look(world):
    world.begin()
    for refusal, hurries in (("state", True), ("state", False), ("buried", True)):
        world.watch._nudged.clear()
        world.refuse(refusal)
        assert world.watch._nudged.is_set() is hurries


def test_a_confirmed_renewal_ends_the_doubt(world):
    world.begin()
    world.refuse("state")
    world.watch.fencing.confirmed(["r1.c"])
    world.watch.look()
    assert world.asked == []


def test_a_left_run_is_stopped_once_it_is_handed_out_anew(world):
    world.begin()
    world.refuse("buried")
    world.shows["r1"] = shown("CRASHED")
    for _ in range(2):
        world.watch.look()
    assert world.attempts.get("r1.c").fenced
    assert world.stopped == []
    world.shows["r1"] = shown("SCHEDULED")
    world.watch.look()
    assert world.stopped == [("r1.c", StopReason.FENCE, True)]
    world.watch.look()
    assert len(world.stopped) == 1, "it is told once"


@pytest.mark.parametrize(("backend", "kill"), [("prefect3", True), ("prefect1", False)])
def test_no_engine_gets_a_term_for_which_it_would_write_a_crash_over_the_new_attempt(tmp_path, backend, kill):
    world = World(tmp_path, backend)
    world.begin()
    world.refuse("other-claim")
    world.watch.look()
    assert world.stopped == [("r1.c", StopReason.FENCE, kill)]
    assert world.attempts.get("r1.c").fenced


def test_a_new_running_state_is_looked_at_anew(world):
    world.begin()
    world.refuse("buried")
    world.watch.look()
    world.since.add("r1")
    world.watch.look()
    assert world.stopped == []
    world.shows["r1"] = shown("RUNNING", at=START.replace(hour=13))
    world.watch.look()
    assert [key for key, _, _ in world.stopped] == ["r1.c"]


def test_a_forgotten_run_is_killed_without_a_question(world):
    world.begin()
    world.refuse("forgotten")
    assert world.stopped == [("r1.c", StopReason.FENCE, True)]
    assert world.attempts.get("r1.c").refusal is Refusal.FORGOTTEN
    assert world.asked == []


def test_nothing_is_asked_about_a_run_that_has_ended_and_its_end_is_not_reported(world):
    world.begin(state=State.ENDED, exit=Exit(code=1))
    world.refuse("buried")
    world.watch.look()
    assert (world.asked, world.attempts.get("r1.c").fenced) == ([], True)


def test_a_run_whose_worker_has_only_lost_its_name_is_ours(world):
    attempt = world.begin()
    world.claim = attempt.held
    world.refuse("owner")
    world.shows["r1"] = shown("COMPLETED")
    world.watch.look()
    assert not world.attempts.get("r1.c").fenced
    world.claim = LedgerUnavailable("away")
    world.refuse("owner")
    assert not world.attempts.get("r1.c").fenced


@pytest.mark.parametrize(("living", "patience"), [(3, 30.0), (1, 120.0)], ids=["one of three", "all"])
def test_a_run_counts_as_deleted_when_the_api_has_not_known_it_for_long(world, caplog, living, patience):
    for number in range(1, living + 1):
        world.begin(f"r{number}")
        world.refuse("state", f"r{number}")

    def look(after):
        world.clock.now += after
        world.watch.look()
        return [key for key, _, _ in world.stopped]

    del world.shows["r1"]
    assert look(0.0) == look(patience - 1.0) == []
    world.shows["r1"] = shown("RUNNING")
    assert look(1.0) == [], "it was a fault of the API"
    del world.shows["r1"]
    assert look(1.0) == look(patience - 1.0) == []
    assert look(2.0) == ["r1.c"]
    assert len([line for line in caplog.messages if "does not know runs" in line]) == 2


# -- cut off from Redis


def test_a_worker_that_is_cut_off_asks_about_all_its_runs_in_one_request_and_shows_itself_in_its_pools(world):
    world.begin()
    world.begin("r2")
    world.cut_off()
    world.watch.look()
    assert world.asked == [["r1", "r2"]]
    name = cut_off_name("f", "w@h")
    assert world.pool == [("on", "p1", name, 5.0), ("on", "p2", name, 5.0)]
    world.pool.clear()
    world.renewed()
    world.watch.look()
    assert world.pool == [("off", "p1", name), ("off", "p2", name)]
    world.watch.look()
    assert len(world.pool) == 2
    assert world.asked == [["r1", "r2"]]


def test_a_short_outage_and_a_worker_without_runs_cost_no_request(world):
    world.cut_off()
    world.watch.look()
    world.renewed()
    world.begin()
    world.clock.now += 9.0
    world.watch.look()
    assert (world.asked, world.pool) == ([], [])


def test_a_worker_that_is_cut_off_ends_what_was_cancelled_or_taken_and_leaves_the_rest(world):
    for number in range(1, 7):
        world.begin(f"r{number}")
    kinds = ("CANCELLED", "CANCELLING", "COMPLETED", "SCHEDULED", "RUNNING", "PENDING")
    for number, kind in enumerate(kinds, 1):
        world.shows[f"r{number}"] = shown(kind, run_id=f"r{number}", call="another")
    world.since |= {"r5"}
    world.cut_off()
    world.watch.look()
    assert world.stopped == [("r5.c", StopReason.FENCE, True)]
    assert world.cancelled == [("r1.c", CancelHow.OVER), ("r2.c", CancelHow.ASKED)]
    assert {key for key in ("r1.c", "r3.c", "r4.c", "r6.c") if world.attempts.get(key).fenced} == set()
    assert world.attempts.get("r5.c").fenced


def test_our_own_pending_needs_no_history(world):
    world.begin()
    world.shows["r1"] = shown("PENDING", "Launching", call="c")
    world.cut_off()
    world.watch.look()
    assert (world.histories, world.stopped) == ([], [])


@pytest.mark.parametrize("error", [ApiUnavailable("away"), KeyRefused("401")])
def test_nothing_ends_while_redis_and_the_api_are_both_away(world, error):
    world.begin()
    world.refuse("state")
    world.cut_off()
    world.shows = error
    for _ in range(3):
        world.watch.look()
        world.clock.now += 60
    assert world.stopped == []
    assert not world.attempts.get("r1.c").fenced
