"""Fence table: what becomes of a living run whose claim the ledger does not confirm, by what the API says of the run.

| the ledger | the API | the process |
|---|---|---|
| claim given up by `worker forget` | not asked | KILL |
| refused, or not answering | Cancelled, or the run is gone | KILL |
| refused | another end | is left; its true exit becomes a line on the run's log page |
| has another claim of the run, or another owner | no end | is stopped |
| refused | Scheduled, and not by a retry within the process | is stopped |
| refused | is being cancelled | KILL |
| not answering | is being cancelled | ends as a cancelled one |
| refused, or not answering | claimed by somebody else since | is stopped |
| refused, or not answering | anything else | goes on, and the next look asks again |
"""

from collections.abc import Callable
from enum import StrEnum

from flowfleet.api.client import RunState, StateType
from flowfleet.ledger.claims import Refusal


class Fate(StrEnum):
    """The fate of a run's process."""

    KILL = "kill"
    STOP = "stop"  # the run is somebody else's now
    LEAVE = "leave"  # it goes on to its end, which is not reported any more
    CANCEL = "cancel"  # somebody wants it cancelled, and the ledger cannot tell us so
    KEEP = "keep"  # nothing is decided: ask again


def decide(  # noqa: PLR0911 - a row of the table each
    refusal: Refusal | None, state: RunState | None, *, claimed_since: Callable[[], bool]
) -> Fate:
    """Look up the fate of a run; `refusal` is the ledger's last word about its claim, None = the ledger is away.

    `state` None means that the API does not know the run any more. `claimed_since` asks the API whether somebody else
    has claimed it since.
    """
    if refusal is Refusal.FORGOTTEN or state is None or state.kind is StateType.CANCELLED:
        return Fate.KILL
    if state.kind.terminal:
        return Fate.KEEP if refusal is None else Fate.LEAVE
    if refusal in (Refusal.OTHER_CLAIM, Refusal.OWNER):
        return Fate.STOP
    if state.kind is StateType.SCHEDULED and not state.held:
        # while the ledger is away nobody has it yet, and its own process may have put it off: it is just about to end
        return Fate.KEEP if refusal is None else Fate.STOP
    if claimed_since():
        return Fate.STOP
    if state.kind is StateType.CANCELLING:
        return Fate.CANCEL if refusal is None else Fate.KILL
    return Fate.KEEP
