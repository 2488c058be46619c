"""Reports: the exit table, from how a deployment ended and what the API says to what the API is to be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from flowfleet import logs
from flowfleet.api.client import RunState, StateType
from workers.deployment import Exit

#: an engine that exits 0 may have its last state still on the way: one more look after this time
SECOND_LOOK_SECONDS = 5.0

SILENT_END = "exited 0 without reporting an end"


class Step(StrEnum):
    """What to do about an ended run."""

    RELEASE = "release"  # nothing to tell: the API has its end, or it comes back by itself
    LOOK_AGAIN = "look-again"
    TELL = "tell"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and with which words."""

    step: Step
    #: goes to the ledger's record of the claim
    outcome: str = ""
    kind: StateType | None = None
    message: str = ""


def decide(exit_: Exit, state: RunState | None, *, backend: str, looked_before: bool) -> Decision:
    """The exit table of the design; `state` None means that the API does not know the run any more."""
    if state is None:
        return Decision(step=Step.RELEASE, outcome="gone")
    if state.kind.terminal:
        return Decision(step=Step.RELEASE, outcome=state.kind.value.lower())
    comes_back = (state.kind in (StateType.PAUSED, StateType.SCHEDULED) and not state.held) or (
        exit_.ok and state.comes_back
    )
    if comes_back:
        # whatever the process said at last: an end written now would take the run's next attempt away
        return Decision(step=Step.RELEASE, outcome=(state.name or state.kind.value).lower())
    if exit_.ok and not looked_before:
        return Decision(step=Step.LOOK_AGAIN)
    words = SILENT_END + "." if exit_.ok else f"{exit_}.{last_words(exit_)}"
    return _tell(f"The flow run's process {words}", state.kind, backend)


def _tell(message: str, stands: StateType, backend: str) -> Decision:
    kind = StateType.FAILED if backend == "prefect1" else StateType.CRASHED  # Prefect 1 has no Crashed state
    if stands is StateType.CANCELLING:
        kind = StateType.CANCELLED
    return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=message)


def last_words(exit_: Exit, *, limit: int = 400) -> str:
    """The last line that the run has printed, as a further sentence; empty if there is none.

    It goes to whoever may read the run's states, and the run knows our key and address.
    """
    lines = [line.strip() for line in exit_.last_lines if line.strip()]
    if not lines or exit_.error:
        return ""
    # before it is cut, since half an address is not known as one
    return f" Its last output was: {logs.redact(lines[-1])[:limit]}"


def for_cancelled(decision: Decision) -> Decision:
    """A run that we ended because somebody cancelled it has not crashed."""
    if decision.step is not Step.TELL:
        return decision
    return Decision(
        step=Step.TELL,
        outcome=StateType.CANCELLED.value.lower(),
        kind=StateType.CANCELLED,
        message="Cancelled: the flow run's process was stopped.",
    )
