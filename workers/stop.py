"""Stop: why and how a worker ends a run, from whoever asks for it to the run's folder and its shim."""

from dataclasses import dataclass

from workers.exit import StopReason

#: how long the hooks of a run have
HOOK_SECONDS = 60.0
#: the server calls a run Cancelled after so long in Cancelling, whatever its worker does (source: prefect 3.9.1)
FORCED_SECONDS = 300.0
#: the grace of a cancelled run leaves its hooks their time; a run that asks for more has that for all other stops
MOST_GRACE_SECONDS = FORCED_SECONDS - HOOK_SECONDS


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
    #: the run's own grace between TERM and KILL is cut to so many seconds; 0 = it is not
    most_grace: float = 0.0
    #: who has asked for a cancel, and why
    why: str = ""
