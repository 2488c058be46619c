"""Exit table: what the API is told of an ended run, by how the run ended and what the API says of it."""

from dataclasses import dataclass, replace
from enum import StrEnum

from flowfleet import logs
from flowfleet.api.client import RunState, StateType
from flowfleet.api.traits import Traits
from workers.deployment import Exit

#: the last state of an engine that exits 0 may still be on its way: the API is looked at again after this time
SECOND_LOOK_SECONDS = 5.0

SILENT_END = "exited 0 without reporting an end"
#: the message of a run that somebody cancels and whose process we have ended
CANCELLED = "Cancelled: the flow run's process was stopped."


class Step(StrEnum):
    """The next step for an ended run."""

    RELEASE = "release"  # nothing to tell: the API has the run's end, or the run comes back by itself
    LOOK_AGAIN = "look-again"
    TELL = "tell"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision about an ended run: the next step, and what the ledger and the API are told."""

    step: Step
    #: how the run ended, for the ledger's record of the claim
    outcome: str = ""
    #: the state to report; None unless `step` is TELL
    kind: StateType | None = None
    message: str = ""


def decide(
    exit_: Exit, state: RunState | None, *, traits: Traits, looked_before: bool, again: bool = False
) -> Decision:
    """Look up in the exit table what to do about a run that ended this way while the API shows this state.

    `state` None means that the API does not know the run any more; `looked_before` that this is the second look;
    `again` that the run may be started once more, since nobody has ended it but the stop of its worker.
    """
    if state is None:
        return Decision(step=Step.RELEASE, outcome="gone")
    if state.kind.terminal:
        return Decision(step=Step.RELEASE, outcome=state.kind.value.lower())
    comes_back = (state.kind in (StateType.PAUSED, StateType.SCHEDULED) and not state.held) or (
        exit_.ok and state.comes_back
    )
    if comes_back:
        # however the process ended: an end written now would take the run's next attempt away
        return Decision(step=Step.RELEASE, outcome=(state.name or state.kind.value).lower())
    if exit_.ok and not looked_before:
        return Decision(step=Step.LOOK_AGAIN)
    if again and state.kind in (StateType.RUNNING, StateType.PENDING):
        kind, message = StateType.SCHEDULED, f"The flow run's process {exit_}, and the run is started again."
        return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=message)
    kind = StateType.CRASHED if traits.has_crashed else StateType.FAILED
    if state.kind is StateType.CANCELLING:
        kind = StateType.CANCELLED
    return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=_message(exit_))


def _message(exit_: Exit) -> str:
    if exit_.own_words and exit_.error:
        return exit_.error  # as Prefect 1's own agent tells what a `deploy_flow` has raised
    silent = exit_.ok and exit_.stopped_by is None
    words = SILENT_END + "." if silent else f"{exit_}.{last_words(exit_)}"
    return f"The flow run's process {words}"


def last_words(exit_: Exit, *, limit: int = 400) -> str:
    """The last line that the run has printed, as a further sentence; empty if there is none.

    The line is redacted: all who may read the run's states see it, and the run knows our key and address.
    """
    lines = [line.strip() for line in exit_.last_lines if line.strip()]
    if not lines or exit_.error:
        return ""
    # redacted before it is cut, since half an address would not be recognised
    return f" Its last output was: {logs.redact(lines[-1])[:limit]}"


def for_cancelled(decision: Decision) -> Decision:
    """The decision for a run that we ended because somebody cancelled it: Cancelled instead of a crash."""
    if decision.step is not Step.TELL:
        return decision
    kind = StateType.CANCELLED
    return replace(decision, outcome=kind.value.lower(), kind=kind, message=CANCELLED)
