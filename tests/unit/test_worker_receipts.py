"""Receipts: which ends are settled by the engine's own word, and when it is believed no more."""

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flowfleet.api import traits
from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import CancelAsked, CancelHow, Outcome, State
from tests.unit.memory_ledger import a_claim
from workers.deployment import Exit, StopReason
from workers.reporting.endings import Endings
from workers.reporting.receipts import Receipts
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders

COMPLETED = {"disposition": "STATE_REPORTED", "state_type": "COMPLETED", "state_name": "Completed", "state_id": "s"}
GOOD = Exit(code=0, receipt=COMPLETED, receipt_age=0.4)


class Chosen:
    """A choice that has been made."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0) if self.numbers else 0.9


class World:
    """One worker with one ended run; its API and what it was asked."""

    def __init__(self, path, end: Exit = GOOD, *, chosen: Chosen | None = None, **facts) -> None:
        self.asked: list[list[str]] = []
        self.settled: list[str] = []
        self.said: list[str] = []
        self.counted: list[str] = []
        self.shown: StateType | None = StateType.COMPLETED
        self.receipts = Receipts(choice=chosen or Chosen(), count=self.counted.append)
        self.attempts = Attempts()
        at_once = SimpleNamespace(post=lambda job, after=0.0: job())
        self.endings = Endings(
            attempts=self.attempts,
            claims=SimpleNamespace(end=lambda *_: Outcome(moved=True), release=lambda *_: Outcome(moved=True)),
            api=SimpleNamespace(states=self._states),
            traits=traits.of("prefect3"),
            worker="w@h",
            mark=Mark(fleet="default"),
            runs=RunFolders(path),
            outbox=SimpleNamespace(
                remove=lambda *_: None, put=lambda report: self.settled.append(f"tell {report.kind}")
            ),
            to_ledger=at_once,
            to_api=at_once,
            run_log=SimpleNamespace(say=lambda _run_id, words, _level: self.said.append(words)),
            failpoints=Failpoints(),
            on_settled=lambda _attempt, outcome: self.settled.append(outcome),
            receipts=self.receipts,
            cancel_at_api=lambda *_: Answer(verdict=Verdict.ACCEPTED),
            clock=itertools.count(0.0, 40.0).__next__,
        )
        self.folder = RunFolders(path).get("r", "c")
        self.end(end, **facts)

    def _states(self, run_ids):
        self.asked.append(list(run_ids))
        if self.shown is None:
            return {}
        return {run: RunState(run_id=run, run_name="n", kind=self.shown, name=self.shown.title()) for run in run_ids}

    def end(self, end: Exit, **facts) -> None:
        held = replace(a_claim("r", State.RUNNING), claim="c")
        attempt = Attempt(held=held, folder=self.folder, adopted=True, **facts)
        self.attempts.begin(attempt)
        self.attempts.change(attempt.key, exit=end, **facts)
        self.endings.ended(self.attempts.get(attempt.key))


@pytest.mark.parametrize("kind", [kind for kind in StateType if kind.terminal])
def test_an_end_with_the_receipt_of_a_terminal_state_is_settled_without_a_question(tmp_path, kind):
    world = World(tmp_path, replace(GOOD, receipt={**COMPLETED, "state_type": str(kind)}))
    assert (world.asked, world.settled, world.counted) == ([], [kind.value.lower()], ["believed"])


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(Exit(code=0), id="no receipt"),
        pytest.param(replace(GOOD, receipt={**COMPLETED, "state_type": "PAUSED"}), id="of a pause"),
        pytest.param(replace(GOOD, receipt={**COMPLETED, "state_type": "SCHEDULED"}), id="of a retry that is awaited"),
        pytest.param(replace(GOOD, receipt={**COMPLETED, "state_type": "ODD"}), id="of an unknown state"),
        pytest.param(replace(GOOD, receipt={"disposition": "ORCHESTRATION_ABORTED"}), id="of an abort"),
        pytest.param(replace(GOOD, code=3), id="then a code"),
        pytest.param(replace(GOOD, code=None, signal=9), id="then a signal"),
        pytest.param(replace(GOOD, receipt_age=60.0), id="long before the end: of a flow that this one has called"),
        pytest.param(replace(GOOD, receipt_age=None), id="by a shim that tells no time"),
        pytest.param(replace(GOOD, intent="sent"), id="though it was told of a cancel"),
        pytest.param(replace(GOOD, stop_reason=StopReason.CANCEL), id="of a run that was cancelled"),
    ],
)
def test_the_api_is_asked_for_every_other_end(tmp_path, end):
    world = World(tmp_path, end)
    assert (world.asked, world.settled) == ([["r"]], ["completed"])
    assert "believed" not in world.counted


def test_the_api_is_asked_for_the_end_of_a_run_that_somebody_cancels(tmp_path):
    world = World(tmp_path, cancel=CancelAsked(how=CancelHow.ASKED))
    assert (world.asked, world.counted) == ([["r"]], [])


def test_a_sample_is_asked_for_and_what_agrees_is_believed_on(tmp_path):
    world = World(tmp_path, chosen=Chosen(0.04, 0.06))
    assert (world.asked, world.settled, world.counted) == ([["r"]], ["completed"], ["right"])
    world.end(GOOD)
    assert (world.asked, world.counted) == ([["r"]], ["right", "believed"])


def test_a_wrong_receipt_is_the_last_one_that_counts_and_the_true_end_is_told(tmp_path, caplog):
    world = World(tmp_path, Exit(code=0), chosen=Chosen(0.0))
    world.shown = StateType.FAILED
    world.settled.clear()
    world.asked.clear()
    world.end(GOOD)
    assert (world.asked, world.settled, world.counted) == ([["r"]], ["failed"], ["wrong"])
    (warning,) = [record for record in caplog.records if "receipt differs" in record.message]
    assert (warning.levelname, warning.receipt, warning.state) == ("WARNING", "COMPLETED", "Failed")
    world.end(GOOD)
    assert len(world.asked) == 2
    assert "believed" not in world.counted


def test_a_run_that_does_not_exist_any_more_says_nothing_against_its_receipt(tmp_path):
    world = World(tmp_path, chosen=Chosen(0.9, 0.0, 0.9))
    world.shown = None
    world.end(GOOD)
    world.end(GOOD)
    assert world.settled == ["completed", "gone", "completed"]
    assert world.asked == [["r"], ["r"]], "it was looked for twice"


def test_about_one_end_in_twenty_is_asked_for_and_the_seed_says_which(tmp_path):
    def asked(seed: str) -> list[bool]:
        receipts = Receipts(choice=random.Random(seed))
        attempt = Attempt(held=a_claim("r", State.ENDED), folder=RunFolders(tmp_path).get("r", "c"), exit=GOOD)
        return [receipts.end_of(attempt) is None for _ in range(2000)]

    assert 60 < sum(asked("nonce")) < 140
    assert asked("nonce") == asked("nonce") != asked("another")


def test_the_stop_of_a_worker_is_said_also_of_a_run_that_has_told_its_end_itself(tmp_path):
    world = World(tmp_path, replace(GOOD, stopped_by="term", stop_reason=StopReason.WORKER, stop_worker="w@h"))
    assert (world.asked, world.settled) == ([], ["completed"])
    assert world.said == ["The flow run's process was stopped with its worker w@h and exited with code 0."]
