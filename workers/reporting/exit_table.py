"""Exit table: what the API is told of an ended run, by how the run ended and what the API says of it."""

from dataclasses import dataclass, replace
from enum import StrEnum

from flowfleet import certificate, logs
from flowfleet.api.client import RunState, StateType
from flowfleet.api.traits import Traits
from flowfleet.ledger.claims import CancelAsked, CancelHow
from workers.deployment import Exit

#: the last state of an engine that exits 0 may still be on its way: the API is looked at again after this time
SECOND_LOOK_SECONDS = 5.0
#: a server without its data, or another one behind its address, knows no run at all: a run counts as deleted when it is
#: not there after this time either
GONE_LOOK_SECONDS = 30.0

SILENT_END = "exited 0 without reporting an end"
#: how our own words on who wants a cancel begin, after "Cancelled"; other people's sentences come after a colon
_PHRASES = ("by ", "at ")


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
    #: the API does not show yet that the run is being cancelled: that is told first
    cancelling_first: bool = False


def decide(  # noqa: PLR0911 - a row of the table each
    exit_: Exit,
    state: RunState | None,
    *,
    traits: Traits,
    looked_before: bool,
    again: bool = False,
    cancel: CancelAsked | None = None,
) -> Decision:
    """Look up in the exit table what to do about a run that ended this way while the API shows this state.

    `state` None means that the API does not know the run any more; `looked_before` that this is the second look;
    `again` that the run may be started once more, since nobody has ended it but the stop of its worker; `cancel` is
    what the claim says about a cancel.
    """
    if state is None:
        return Decision(step=Step.RELEASE, outcome="gone")
    if state.kind.terminal:
        return Decision(step=Step.RELEASE, outcome=state.kind.value.lower())
    if state.waits or (exit_.ok and state.comes_back):
        # however the process ended: an end written now would take the run's next attempt away
        return Decision(step=Step.RELEASE, outcome=(state.name or state.kind.value).lower())
    if state.kind is StateType.CANCELLING:
        # an engine that was told of it writes nothing more, and no other end would be taken
        return _cancelled(exit_, cancel or CancelAsked(how=CancelHow.ASKED, why=state.message))
    if exit_.ok and not looked_before:
        return Decision(step=Step.LOOK_AGAIN)
    if cancel is not None:
        return replace(_cancelled(exit_, cancel), cancelling_first=True)
    if again and state.needs_process:
        kind, message = StateType.SCHEDULED, f"The flow run's process {exit_}, and the run is started again."
        return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=message)
    kind = StateType.CRASHED if traits.has_crashed else StateType.FAILED
    return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=_message(exit_))


def _message(exit_: Exit) -> str:
    if exit_.own_words and exit_.error:
        return exit_.error  # as Prefect 1's own agent tells what a `deploy_flow` has raised
    silent = exit_.ok and exit_.stopped_by is None
    words = SILENT_END if silent else str(exit_)
    return f"The flow run's process {words}.{last_words(exit_)}"


def last_words(exit_: Exit, *, limit: int = 400) -> str:
    """What the run took and the last line that it has printed, as further sentences; empty where neither is known."""
    if exit_.error:
        return ""
    took, line = certificate.usage(exit_.certificate()), exit_.last_line(limit=limit)
    return f"{f' {took}' if took else ''}{f' Its last output was: {line}' if line else ''}"


def _cancelled(exit_: Exit, cancel: CancelAsked) -> Decision:
    kind = StateType.CANCELLED
    message = cancelled_message(cancel.why, f"The flow run's process {exit_}.{last_words(exit_)}")
    return Decision(step=Step.TELL, outcome=kind.value.lower(), kind=kind, message=message)


def cancelled_message(why: str, how: str) -> str:
    """The message of a cancelled run: who has asked for it and why, as far as that is known, and how the run ended."""
    # Prefect 3's state Cancelling has the whole sentence of `flowfleet cancel` as its message
    asked = logs.redact(why).strip().rstrip(".").removeprefix("Cancelled ")
    if not asked:
        return f"Cancelled. {how}"
    return f"Cancelled{' ' if asked.startswith(_PHRASES) else ': '}{asked}. {how}"
