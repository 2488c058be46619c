"""Receipts: an engine's own word for the end that it has written, and how far this worker believes it.

Its shim gets it once the API has taken its state (`workers/shim/control_session.py`). So an end with the
receipt of a terminal state needs no question at the API, and is settled while the API is away. One end in twenty is
asked for all the same. Code of the run could forge a receipt, which is no worse than to write the state at the API.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.api.client import RunState, StateType
from workers.deployment import Exit, StopReason
from workers.state.attempts import Attempt

logger = logging.getLogger(__name__)

#: the share of ends that are asked for though they have a receipt
SAMPLE = 0.05
#: an engine ends 0.3 to 1.2 s after its receipt (prefect 3.9.1). A flow that is called while the run's own one is
#: imported uses up the session of the process: its receipt comes before the run has begun, and says nothing of it
MOST_AGE_SECONDS = 20.0


@dataclass(kw_only=True)
class Receipts:
    """The trust of one worker in receipts; the first wrong one ends it."""

    #: chooses the sample
    choice: random.Random = field(default_factory=random.Random)
    #: called with what has become of each receipt: "believed", "right" or "wrong"
    count: Callable[[str], None] = lambda _result: None
    _believed: bool = field(default=True, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def end_of(self, attempt: Attempt) -> StateType | None:
        """The end that stands at the API by the engine's word; None = the API has to be asked.

        It is asked always about a run that somebody cancels: its state is not the engine's alone.
        """
        kind = terminal_kind(attempt)
        if kind is None or not self._believed or _is_cancelled(attempt) or not _is_whole(attempt.exit):
            return None
        with self._lock:
            if self.choice.random() < SAMPLE:
                return None
        self.count("believed")
        return kind

    def compare(self, attempt: Attempt, state: RunState | None) -> None:
        """Compare what the API says of a run with its receipt; another end than that is the last one believed.

        Of a run that is cancelled or does not exist any more nothing can be said.
        """
        kind = terminal_kind(attempt)
        if kind is None or state is None or _is_cancelled(attempt):
            return
        if state.kind is kind:
            self.count("right")
            return
        self.count("wrong")
        self._believed = False
        logger.warning(
            "the engine's receipt differs from the API: from now on the API is asked for the end of every run",
            extra={**attempt.fields, "receipt": str(kind), "state": state.name},
        )


def terminal_kind(attempt: Attempt) -> StateType | None:
    """The terminal state of the attempt's receipt; None when it has none, or one from which the run goes on."""
    receipt = (attempt.exit.receipt if attempt.exit is not None else None) or {}
    try:
        kind = StateType(receipt.get("state_type", ""))
    except ValueError:  # of an engine of another version
        return None
    return kind if kind.terminal and receipt.get("disposition") == "STATE_REPORTED" else None


def _is_whole(end: Exit | None) -> bool:
    # an engine that has written its end exits 0, whatever that end is
    return end is not None and end.ok and end.receipt_age is not None and end.receipt_age <= MOST_AGE_SECONDS


def _is_cancelled(attempt: Attempt) -> bool:
    end = attempt.exit
    return attempt.cancelled or (end is not None and (end.intent is not None or end.stop_reason == StopReason.CANCEL))
