"""Requeue all of a route or a worker: which runs are meant, what is said first, and what becomes of each."""

from types import SimpleNamespace

import click
import pytest

from flowfleet.api.client import Mark, StateType
from flowfleet.commands import batch, requeue
from flowfleet.commands.batch import RouteOrWorker
from flowfleet.commands.cancel import _all_of as claims_of
from flowfleet.commands.chosen_run import ChosenRun, NoSuchRun
from flowfleet.commands.failed_runs import failed_runs
from flowfleet.commands.requeue import BatchRequeue, Requeueing
from flowfleet.errors import ApiUnavailable, LedgerUnavailable, SettingsError
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import State
from flowfleet.monitor.snapshot import Snapshot
from tests.unit.memory_ledger import POOL, ROUTE, a_claim
from tests.unit.poller_world import World, route

FAILED, CRASHED, COMPLETED = StateType.FAILED, StateType.CRASHED, StateType.COMPLETED
NOW = 1_000_000.0
LOST = (
    "it was told as lost, and its earlier process may live on the host box: bring that back, or, if it is gone for "
    "good, say worker forget worker@box"
)
OTHER_ROUTE = Route("prefect3", POOL, "urgent")


class Fleet:
    """A fleet whose claims have gone: runs with a state at the API and a record each, the oldest first."""

    def __init__(self):
        self.world = World.of()
        self.api, self.claims = self.world.api, self.world.claims
        self.records, self.said, self.hints = [], [], []
        self.ledger = SimpleNamespace(
            claims=self.claims,
            gate=self.world.gate,
            hints=SimpleNamespace(publish=lambda kind, text: self.hints.append(text)),
        )
        self.claims.records = lambda limit: self.records
        #: what happens while the command waits
        self.meanwhile = lambda: None

    def ended(self, name, kind=CRASHED, **record):
        run_id = self.api.add(name=name)
        self.api.be(run_id, kind, kind.value.title())
        self.record(run_id, **record)
        return run_id

    def record(self, run_id, *, route=ROUTE, worker="worker@box", ago=60.0):
        gone = {"run_id": run_id, "name": "old", "route": str(route), "worker": worker, "gone_at": NOW - ago}
        self.records.insert(0, gone)

    def found(self, given="flowfleet/default"):
        return failed_runs(RouteOrWorker(given, {POOL: "flowfleet"}), self.records, NOW, self.api)

    def names(self, given="flowfleet/default"):
        return [run.name for run in self.found(given)]

    def batch(self, runs=None):
        requeueing = Requeueing(
            ledger=self.ledger, api=self.api, mark=Mark(fleet="f"), whom="by u@h: why", say=self.said.append,
            clock=self.world.time.clock.monotonic, pause=self.pause,
        )  # fmt: skip
        runs = self.found() if runs is None else runs
        return BatchRequeue(requeueing=requeueing, runs=runs)

    def pause(self, seconds):
        self.world.time.now += seconds
        self.meanwhile()

    def claim(self, run_id, state=State.QUEUED):
        self.claims.by_run[run_id] = a_claim(run_id, state, worker="worker@box")

    def snapshot(self):
        return Snapshot(
            at=NOW, fleet="f", redis_version="7", gate_open=True, leader=None, queues=(), workers=(),
            claims=tuple(self.claims.live()), tombs=tuple(self.claims.tombs()),
        )  # fmt: skip

    def bury(self, run_id):
        self.claims.tomb_of[run_id] = SimpleNamespace(run_id=run_id, host="box", worker="worker@box")


@pytest.fixture
def fleet():
    return Fleet()


# which runs


@pytest.mark.parametrize("given", ["flowfleet/default", str(ROUTE), "worker", "worker@box"])
def test_a_batch_is_all_runs_of_a_route_or_a_worker_that_failed_or_crashed_the_first_end_first(fleet, given):
    fleet.ended("first")
    fleet.ended("elsewhere", route=OTHER_ROUTE, worker="worker@box2" if given == "worker@box" else "second@box")
    fleet.ended("then", FAILED)
    assert fleet.names(given) == ["first", "then"]


@pytest.mark.parametrize("kind", [kind for kind in StateType if kind not in (FAILED, CRASHED)])
def test_no_other_state_at_the_api_is_started_again(fleet, kind):
    fleet.ended("good", kind)
    fleet.ended("bad")
    assert fleet.names() == ["bad"]


def test_the_last_record_of_a_run_says_where_it_was_and_each_run_comes_once(fleet):
    moved = fleet.ended("moved")
    twice = fleet.ended("twice")
    fleet.record(moved, route=OTHER_ROUTE, worker="second@box")
    fleet.record(twice)
    assert fleet.names() == ["twice"]
    assert fleet.names("worker@box") == ["twice"]
    assert fleet.names("second") == ["moved"]


def test_a_deleted_run_and_one_that_ended_more_than_a_day_ago_are_not_meant(fleet):
    fleet.ended("old", ago=24 * 3600 + 1)
    fleet.ended("young", ago=24 * 3600 - 1)
    del fleet.api.runs[fleet.ended("deleted")]
    assert fleet.names() == ["young"]


def test_a_route_of_prefect_1_is_given_by_its_labels(fleet):
    fleet.ended("labelled", route=route("x", "y"))
    fleet.ended("other", route=route("x"))
    assert fleet.names("x,y") == ["labelled"]


def test_a_record_of_a_later_version_has_its_worker_all_the_same(fleet):
    fleet.ended("later", route="prefect4/of/something/else", worker="second@box")
    assert fleet.names("second@box") == ["later"]


def test_where_nothing_is_found_one_sentence_says_what_there_is(fleet):
    with pytest.raises(
        NoSuchRun, match="no run of 'nobody' that has ended within the last day: it knows no run at all"
    ):
        fleet.found("nobody")
    fleet.ended("good", COMPLETED)
    with pytest.raises(NoSuchRun, match="it knows runs of flowfleet/default, worker@box"):
        fleet.found("nobody")
    with pytest.raises(NoSuchRun, match="1 run of worker ended within the last day, and the API shows none as Failed"):
        fleet.found("worker")


def test_an_empty_text_means_no_run_though_some_have_no_worker(fleet, monkeypatch):
    fleet.ended("refused", worker=None)
    with pytest.raises(NoSuchRun):
        fleet.found("")
    fleet.claims.by_run["waits"] = a_claim("waits", State.QUEUED)
    monkeypatch.setattr("flowfleet.commands.cancel.take_snapshot", lambda ledger: fleet.snapshot())
    with pytest.raises(NoSuchRun):
        claims_of(fleet.ledger, "")


# the question


def test_the_count_some_names_and_what_may_be_alive_are_told_before_anything_is_done(fleet):
    runs = [fleet.ended(f"run-{number}") for number in range(12)]
    fleet.bury(runs[0])
    fleet.claim(runs[1], State.ENDED)
    said = requeue._question(fleet.found(), "worker", fleet.snapshot())
    assert said.startswith("To be started again: 12 runs of worker (run-0, run-1, run-2, ")
    assert said.endswith(", run-9 and 2 more), of which 2 may be alive still")


@pytest.mark.parametrize("answer", ["y", "n"])
def test_the_question_is_asked_on_a_terminal_and_refused_elsewhere(monkeypatch, answer):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(SettingsError, match="To be started again: 1 run: say --yes"):
        batch.agreed("To be started again: 1 run")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    asked = []
    monkeypatch.setattr(click, "confirm", lambda text, err: asked.append(text) or answer == "y")
    assert batch.agreed("To be started again: 1 run") is (answer == "y")
    assert asked == ["To be started again: 1 run. Go on?"]


@pytest.mark.parametrize(("yes", "agreed", "code"), [(False, False, 1), (False, True, 0), (True, None, 0)])
def test_without_a_yes_nothing_is_started_again(fleet, monkeypatch, capsys, yes, agreed, code):
    run_id = fleet.ended("calm-otter")
    asked = []
    monkeypatch.setattr(requeue, "take_snapshot", lambda ledger: fleet.snapshot())
    monkeypatch.setattr(batch, "agreed", lambda question: asked.append(question) or agreed)
    assert requeue._requeue_all_of(fleet.batch([]).requeueing, "worker", yes=yes, no_wait=True) == code
    assert fleet.api.kind(run_id) is (CRASHED if code else StateType.SCHEDULED)
    question = "To be started again: 1 run of worker (calm-otter)"
    assert asked == ([] if yes else [question])
    said = f"{question}.\n" if yes else "Nothing is started again.\n" if code else ""
    assert capsys.readouterr().err == said


# what becomes of them


def test_each_is_due_at_the_api_and_hinted_and_the_claims_are_waited_for(fleet, capsys):
    runs = [fleet.ended(name) for name in ("calm-otter", "late-lark")]

    def claimed():
        fleet.claim(runs[0])
        if fleet.world.time.now > 1004:
            fleet.api.be(runs[1], StateType.RUNNING, "Running")

    fleet.meanwhile = claimed
    assert fleet.batch().carry_out(no_wait=False) == 0
    assert fleet.hints == runs
    assert fleet.api.kind(runs[0]) is StateType.SCHEDULED
    assert fleet.said == ["starting again calm-otter, 1 of 2", "waiting for 2s: 1 of 2 are claimed",
                          "waiting for 4s: 1 of 2 are claimed"]  # fmt: skip
    assert capsys.readouterr().out == "2 of 2 runs started again: due at the API, and 2 of them claimed anew by now.\n"


def test_those_that_get_no_slot_are_not_waited_for_longer(fleet, capsys):
    runs = [fleet.ended("one"), fleet.ended("two")]
    fleet.meanwhile = lambda: fleet.claim(runs[0])
    assert fleet.batch().carry_out(no_wait=False) == 0
    assert fleet.world.time.now == pytest.approx(1015)
    assert capsys.readouterr().out.splitlines() == [
        "2 of 2 runs started again: due at the API, and 1 of them claimed anew by now.",
        "Why one waits is what flowfleet explain RUN says.",
    ]


def test_without_a_wait_nothing_is_said_of_claims(fleet, capsys):
    fleet.ended("one")
    assert fleet.batch().carry_out(no_wait=True) == 0
    assert fleet.world.time.now == 1000
    assert capsys.readouterr().out == "1 of 1 run started again: due at the API.\n"


def test_those_that_may_be_alive_are_refused_by_the_name_of_the_host_and_summed_up_by_reason(fleet, capsys):
    runs = {name: fleet.ended(name) for name in ("runs", "lost", "free", "lost-too")}
    fleet.claim(runs["runs"], State.RUNNING)
    fleet.bury(runs["lost"])
    fleet.bury(runs["lost-too"])
    assert fleet.batch().carry_out(no_wait=True) == 1
    assert {name: fleet.api.kind(run_id) for name, run_id in runs.items()} == {
        "runs": CRASHED, "lost": CRASHED, "free": StateType.SCHEDULED, "lost-too": CRASHED,
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 runs started again: due at the API.",
        "Refused: 3.",
        f"  lost, lost-too: {LOST}.",
        "  runs: it runs on the host box (worker@box); flowfleet cancel ends it.",
    ]


def test_a_shut_gate_refuses_all_in_one_line(fleet, capsys):
    fleet.ended("one")
    fleet.ended("two")
    fleet.world.gate.process = "redis-2"
    assert fleet.batch().carry_out(no_wait=False) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["0 of 2 runs started again.", "Refused: 2."]
    assert told[2].startswith("  one, two: Redis was restarted or replaced")
    assert len(told) == 3
    assert not fleet.api.count("restart")


def test_a_run_that_is_not_failed_any_more_when_its_turn_comes_is_left_alone(fleet, capsys):
    done, gone, bad = fleet.ended("done"), fleet.ended("gone"), fleet.ended("bad")
    runs = fleet.found()
    fleet.api.be(done, COMPLETED, "Completed")
    del fleet.api.runs[gone]
    assert fleet.batch(runs).carry_out(no_wait=True) == 0
    assert (fleet.api.kind(done), fleet.api.kind(bad)) == (COMPLETED, StateType.SCHEDULED)
    told = capsys.readouterr().out
    assert "Left alone, since they are not Failed or Crashed any more: done (Completed), gone (deleted)." in told
    fleet.api.be(bad, COMPLETED, "Completed")
    assert fleet.batch(runs).carry_out(no_wait=True) == 1, "nothing was started again"


def test_many_reasons_are_told_with_a_bound(fleet, capsys):
    for number in range(12):
        run_id = fleet.ended(f"run-{number}")
        fleet.claims.by_run[run_id] = a_claim(run_id, worker=f"worker@box{number}")
    assert fleet.batch().carry_out(no_wait=False) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "Refused: 12."
    assert len(told) == 13
    assert told[-1] == "  And for 2 more reasons: flowfleet requeue RUN says which."


@pytest.mark.parametrize("trouble", ["api", "redis"])
def test_an_outage_in_the_middle_ends_the_batch_and_what_was_done_is_told(fleet, capsys, trouble):
    runs = [fleet.ended(name) for name in ("one", "two", "three")]
    restart = fleet.api.restart

    def restart_once(*given):
        answer = restart(*given)
        fleet.api.fail("restart")
        fleet.world.ledger.away = trouble == "redis"
        return answer

    fleet.api.restart = restart_once
    with pytest.raises(ApiUnavailable if trouble == "api" else LedgerUnavailable):
        fleet.batch().carry_out(no_wait=False)
    assert [fleet.api.kind(run_id) for run_id in runs] == [StateType.SCHEDULED, CRASHED, CRASHED]
    told = capsys.readouterr().out
    assert told.startswith("1 of 3 runs started again: due at the API")
    assert "Not come to: 2 runs. Say it once more for them." in told


def test_a_reason_travels_to_the_api(fleet):
    run = ChosenRun(fleet.ended("one"), "one")
    asked = []
    restart = fleet.api.restart
    fleet.api.restart = lambda run_id, message, *rest: asked.append(message) or restart(run_id, message, *rest)
    fleet.batch([run]).carry_out(no_wait=True)
    assert asked == ["requeued by u@h: why"]
