"""Stop: why and how a worker ends a run, from whoever asks for it to the run's folder and its shim."""

from dataclasses import dataclass

from workers.exit import StopReason


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One order to end a run: TERM, its grace, then KILL, unless the fields say otherwise."""

    reason: StopReason
    #: no TERM: KILL at once
    kill: bool = False
    #: the engine is told of the cancel over its control session before the TERM
    intent: bool = False
    #: seconds that a command which cancels itself has before the TERM; a TERM at the same time would make it lose that
    patience: float = 0.0
    #: who has asked for a cancel, and why
    why: str = ""
