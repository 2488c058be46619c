"""The exit table: each row, and the sentences that people read."""

import pytest

from flowfleet.api import traits
from flowfleet.api.client import RunState, StateType
from flowfleet.ledger.claims import CancelAsked, CancelHow
from workers.deployment import Exit
from workers.reporting.exit_table import Step, decide


def state(kind, name="", **facts):
    return RunState(run_id="r", run_name="n", kind=kind, name=name or kind.value.title(), **facts)


def decided(exit_, kind, *, looked=False, backend="prefect3", name="", cancel=None, **facts):
    stands = state(kind, name, **facts)
    return decide(exit_, stands, traits=traits.of(backend), looked_before=looked, cancel=cancel)


@pytest.mark.parametrize("end", [Exit(code=0), Exit(code=3), Exit(signal=9), Exit(unknown=True), Exit(error="no")])
@pytest.mark.parametrize("kind", [kind for kind in StateType if kind.terminal])
def test_a_finished_state_is_never_written_over(end, kind):
    decision = decided(end, kind)
    assert decision.step is Step.RELEASE
    assert decision.outcome == kind.value.lower()


@pytest.mark.parametrize("end", [Exit(code=0), Exit(code=3)])
def test_a_run_that_the_api_does_not_know_any_more_is_released(end):
    assert decide(end, None, traits=traits.of("prefect3"), looked_before=False).outcome == "gone"


@pytest.mark.parametrize(("kind", "name"), [(StateType.PAUSED, "Suspended"), (StateType.SCHEDULED, "AwaitingRetry")])
@pytest.mark.parametrize("end", [Exit(code=0), Exit(signal=15)])
def test_what_comes_back_by_itself_is_released(end, kind, name):
    decision = decided(end, kind, name=name)
    assert decision.step is Step.RELEASE
    assert decision.outcome == name.lower()


@pytest.mark.parametrize("kind", [StateType.PAUSED, StateType.SCHEDULED])
def test_what_only_its_own_process_could_go_on_with_has_crashed(kind):
    assert decided(Exit(code=1), kind, held=True).kind is StateType.CRASHED
    assert decided(Exit(code=0), kind, held=True).step is Step.LOOK_AGAIN
    assert decided(Exit(code=0), kind, held=True, looked=True).kind is StateType.CRASHED


def test_prefect_1_with_a_task_to_retry_later_is_released_only_after_exit_0():
    assert decided(Exit(code=0), StateType.RUNNING, comes_back=True, backend="prefect1").step is Step.RELEASE
    assert decided(Exit(code=1), StateType.RUNNING, comes_back=True, backend="prefect1").kind is StateType.FAILED


@pytest.mark.parametrize("kind", [StateType.PENDING, StateType.RUNNING])
def test_exit_0_without_an_end_is_looked_at_twice(kind):
    assert decided(Exit(code=0), kind).step is Step.LOOK_AGAIN
    decision = decided(Exit(code=0), kind, looked=True)
    assert decision.kind is StateType.CRASHED
    assert decision.message == "The flow run's process exited 0 without reporting an end."


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Exit(code=3), "exited with code 3"),
        (Exit(signal=9), "was killed by SIGKILL"),
        (Exit(signal=15, stopped_by="term"), "process was stopped by the worker (SIGTERM)."),
        (
            Exit(signal=15, stopped_by="term", stop_reason="worker-stopped", stop_worker="w@h"),
            "process was stopped with its worker w@h (SIGTERM).",
        ),
        (
            Exit(code=0, stopped_by="term", stop_reason="worker-stopped", stop_worker="w@h"),
            "w@h and exited with code 0.",
        ),
        (Exit(signal=15, stopped_by="term", stop_reason="run-timeout"), "since it took longer than --run-timeout"),
        (Exit(signal=15, stopped_by="term", stop_reason="of-a-later-version"), "was stopped by the worker (SIGTERM)"),
        (Exit(unknown=True, stopped_by="kill", stop_reason="fenced"), "not its worker's any more, exit unknown"),
        (Exit(signal=9, oom=True), "ran out of memory"),
        (Exit(unknown=True), "exit unknown"),
        (Exit(error="there is no program 'x'"), "could not be started: there is no program 'x'"),
        (Exit(code=1, last_lines=("one", "the reason", " ")), "Its last output was: the reason"),
    ],
)
def test_each_other_end_is_told_in_its_own_sentence(end, words):
    decision = decided(end, StateType.RUNNING, looked=True)
    assert decision.step is Step.TELL
    assert decision.kind is StateType.CRASHED
    assert words in decision.message
    assert decided(end, StateType.RUNNING, looked=True, backend="prefect1").kind is StateType.FAILED


def test_what_the_user_s_own_code_has_raised_is_told_as_it_is():
    decision = decided(Exit(error="X happened", own_words=True), StateType.PENDING, backend="prefect1")
    assert (decision.kind, decision.message) == (StateType.FAILED, "X happened")


@pytest.mark.parametrize("ahead", [0, 370])
def test_what_a_run_printed_last_is_told_without_the_login_of_an_address(ahead):
    line = "x" * ahead + " Forbidden for url: http://ann:pass%2Fof%40ann@h:4200/"
    message = decided(Exit(code=1, last_lines=(line,)), StateType.RUNNING).message
    assert "http://" in message  # the sentence is cut behind it
    assert "pass" not in message


@pytest.mark.parametrize(
    ("kind", "facts", "then"),
    [
        (StateType.RUNNING, {}, StateType.SCHEDULED),
        (StateType.PENDING, {}, StateType.SCHEDULED),
        (StateType.CANCELLING, {}, StateType.CANCELLED),
        (StateType.SCHEDULED, {"held": True}, StateType.SCHEDULED),
        (StateType.PAUSED, {"held": True}, StateType.SCHEDULED),
        (StateType.SCHEDULED, {}, None),
        (StateType.PAUSED, {}, None),
        (StateType.COMPLETED, {}, None),
        (StateType.CRASHED, {}, None),
    ],
)
def test_a_run_that_may_be_started_again_goes_back_unless_it_has_an_end_or_goes_on_by_itself(kind, facts, then):
    end = Exit(signal=9, stopped_by="kill", stop_reason="worker-stopped", stop_worker="w@h")
    decision = decide(end, state(kind, **facts), traits=traits.of("prefect3"), looked_before=False, again=True)
    assert decision.kind is then
    if then is StateType.SCHEDULED:
        assert "was stopped with its worker w@h (SIGKILL), and the run is started again." in decision.message


ASKED = CancelAsked(how=CancelHow.ASKED, why="Ann: the wrong day")


@pytest.mark.parametrize("end", [Exit(code=0), Exit(code=3), Exit(signal=9), Exit(unknown=True)])
def test_a_run_that_is_being_cancelled_is_told_as_cancelled_at_once_however_it_has_ended(end):
    for cancel in (None, ASKED):
        decision = decided(end, StateType.CANCELLING, cancel=cancel)
        assert (decision.step, decision.kind, decision.cancelling_first) == (Step.TELL, StateType.CANCELLED, False)
    assert decision.message == f"Cancelled: Ann: the wrong day. The flow run's process {end}."


@pytest.mark.parametrize(
    ("why", "begins"),
    [
        ("by u@h: wrong input", "Cancelled by u@h: wrong input. The flow"),
        ("Cancelled by u@h", "Cancelled by u@h. The flow"),
        ("at the Prefect API", "Cancelled at the Prefect API. The flow"),
        ("", "Cancelled. The flow"),
    ],
)
def test_who_asked_for_a_cancel_stands_in_one_sentence_whoever_has_told_it(why, begins):
    cancel = CancelAsked(how=CancelHow.ASKED, why=why)
    assert decided(Exit(code=0), StateType.CANCELLING, cancel=cancel).message.startswith(begins)


def test_a_cancelled_run_that_the_api_does_not_show_so_is_cancelling_there_first():
    for kind in (StateType.RUNNING, StateType.PENDING):
        decision = decided(Exit(signal=9), kind, cancel=ASKED)
        assert (decision.kind, decision.cancelling_first) == (StateType.CANCELLED, True)
    assert decided(Exit(code=0), StateType.RUNNING, cancel=ASKED).step is Step.LOOK_AGAIN
    assert decided(Exit(code=0), StateType.RUNNING, cancel=ASKED, looked=True).kind is StateType.CANCELLED
    assert decided(Exit(signal=9), StateType.PAUSED, held=True, cancel=ASKED).kind is StateType.CANCELLED


@pytest.mark.parametrize("kind", [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED])
def test_a_cancelled_run_that_has_an_end_keeps_it(kind):
    assert decided(Exit(code=0), kind, cancel=ASKED).step is Step.RELEASE


def test_who_asked_for_a_cancel_is_told_without_secrets():
    cancel = CancelAsked(how=CancelHow.ASKED, why="by http://ann:pass@h:4200/.")
    message = decided(Exit(signal=9), StateType.CANCELLING, cancel=cancel).message
    assert message.startswith("Cancelled by http://")
    assert "pass" not in message
