"""Endings: what becomes of a report that the API does not take as it is."""

from types import SimpleNamespace

from flowfleet.api import traits
from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Outcome
from workers.reporting.endings import Endings
from workers.reporting.outbox import Report
from workers.state.attempts import Attempts
from workers.state.run_folders import RunFolders


def test_a_run_that_was_to_start_again_and_is_being_cancelled_is_told_as_cancelled_and_as_nothing_else(tmp_path):
    cancelling = RunState(run_id="r", run_name="n", kind=StateType.CANCELLING, name="Cancelling")
    at_once, told, settled = SimpleNamespace(post=lambda job: job()), [], []
    report = Report(run_id="r", claim="c", kind=StateType.SCHEDULED, message="It is started again.", worker="w@h")

    def take(_run_id, kind, message, _mark, *, claim):
        assert claim == "c"
        told.append((kind, message))
        return Answer(verdict=Verdict.ACCEPTED)

    endings = Endings(
        attempts=Attempts(),
        claims=SimpleNamespace(release=lambda *_: Outcome(moved=True)),
        api=SimpleNamespace(run_again=lambda *_: Answer(verdict=Verdict.REFUSED, state=cancelling), report=take),
        traits=traits.of("prefect3"),
        worker="w@h",
        mark=Mark(fleet="default"),
        runs=RunFolders(tmp_path),
        outbox=SimpleNamespace(to_send=lambda: [report], put=lambda _report: None, remove=lambda *_: None),
        to_ledger=at_once,
        to_api=at_once,
        run_log=SimpleNamespace(say=lambda _run_id, words, _level: told.append(words)),
        failpoints=Failpoints(),
        on_settled=lambda _attempt, outcome: settled.append(outcome),
        cancel_at_api=lambda *_: Answer(verdict=Verdict.ACCEPTED),
    )
    endings.resend()
    sentence = "Cancelled. The flow run's process was stopped."
    assert told == [(StateType.CANCELLED, sentence), sentence]
    assert settled == ["cancelled"]
