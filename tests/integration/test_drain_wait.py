"""Drain wait: what `worker drain --wait` says of workers that end, restart, are resumed, forgotten or lost."""

import pytest

from flowfleet.commands.drain_wait import DrainWait, NotDrained
from flowfleet.errors import LedgerUnavailable
from flowfleet.ledger.claims import State
from tests.ledger_world import LedgerWorld, row
from tests.valkey import Valkey

A, B = "w@h", "v@g"


@pytest.fixture
def world(valkey: Valkey) -> LedgerWorld:
    return LedgerWorld(valkey.url).up(row(), row(B, nonce="n2"))


class Wait:
    """A drain and the wait for it; its pauses are steps in which something happens, and a longer wait fails."""

    def __init__(self, world, *steps, workers=(A, B)):
        for worker in workers:
            world.roster.want(worker, "draining")
        self.said, self.told, self._steps = [], [], iter(steps)
        self._wait = DrainWait(
            ledger=world.ledger, workers=workers, say=self.said.append, tell=self.told.append, pause=self._step
        )

    def _step(self, _seconds):
        next(self._steps)()

    def run(self):
        self._wait.run()
        assert next(self._steps, None) is None, "it has not waited for all of it"
        return self


def quiet():
    pass


def end_and_release(world, claim):
    world.claims.end(claim.run_id, claim.claim, A, {"code": 0, "last_lines": []})
    world.claims.release(claim.run_id, claim.claim, A, "reported")


def test_runs_are_named_as_they_end_and_each_worker_when_it_has_ended(world):
    claim = world.bring(State.RUNNING)
    done = Wait(
        world,
        lambda: world.roster.sign_off(B, "n2"),
        quiet,
        lambda: world.claims.end(claim.run_id, claim.claim, A, {"code": 0, "last_lines": []}),
        lambda: world.claims.release(claim.run_id, claim.claim, A, "reported"),
        lambda: world.roster.sign_off(A, "n1"),
    ).run()
    assert done.told == [f"{B} has ended.", f"{A} has ended."]
    assert done.said == [
        f"waiting: {A} waits for 1 run (a run); {B} waits for its end",
        f"waiting: {A} waits for 1 run (a run)",
        f"waiting: {A} waits for the API to accept the end of a run",
        f"waiting: {A} waits for its end",
    ]


def test_one_that_has_ended_counts_though_its_supervisor_starts_it_again(world):
    world.roster.sign_off(B, "n2")
    done = Wait(world, lambda: world.roster.sign_on(row(B, nonce="n3")), lambda: world.roster.sign_off(A, "n1")).run()
    assert done.told == [f"{B} has ended.", f"{A} has ended."]


def test_a_worker_that_stopped_with_runs_that_go_on_is_waited_for_until_the_next_one_has_ended_them(world):
    claim = world.bring(State.RUNNING)
    world.roster.sign_off(A, "n1")
    done = Wait(world, lambda: end_and_release(world, claim), workers=[A]).run()
    assert done.said == [f"waiting: {A}, which is stopped, waits for 1 run (a run)"]
    assert done.told == [f"{A} has ended."]


def test_one_that_is_resumed_or_forgotten_meanwhile_is_named_at_the_end(world):
    wait = Wait(
        world,
        lambda: world.roster.want(A, "active"),
        lambda: world.roster.sign_off(B, "n2"),
    )
    with pytest.raises(NotDrained, match=f"{A} is active again, since somebody has said so meanwhile") as told:
        wait.run()
    assert (wait.told, told.value.exit_code) == ([f"{B} has ended."], 5)

    world.roster.forget(B)
    with pytest.raises(NotDrained, match=f"Not drained: {B} was forgotten meanwhile."):
        Wait(world, workers=[B]).run()


def test_runs_that_were_told_as_lost_are_named_since_their_processes_may_live(world):
    claim = world.bring(State.JUDGED)
    world.roster.lapse(world.term, A, 0)
    world.claims.bury(world.term, claim.run_id, claim.claim, "crashed")
    with pytest.raises(NotDrained, match=f"{A} is lost, and what it had may run on: a run; see flowfleet status"):
        Wait(world, workers=[A]).run()


def test_an_outage_of_redis_is_waited_out(world, monkeypatch):
    def refused():
        raise LedgerUnavailable("nobody answers")

    monkeypatch.setattr(world.ledger.roster, "rows", refused)
    done = Wait(world, monkeypatch.undo, lambda: [world.roster.sign_off(*one) for one in ((A, "n1"), (B, "n2"))]).run()
    assert done.told == [f"{A} has ended.", f"{B} has ended."]
