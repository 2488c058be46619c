"""Backlog: the runs that wait at a Prefect API: what is due, where it waits, and who else would take it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flowfleet.flow_run import NOTHING_HELD, FlowRun, Held, Offer, Route


@dataclass(frozen=True, kw_only=True)
class UnfitRun:
    """A due run that no worker here can start. Others may be able to, so the run stays Scheduled."""

    run_id: str
    name: str
    #: one sentence for the run's log page: what the run asks for, and who could run it
    reason: str


@dataclass(frozen=True, kw_only=True)
class DueRuns:
    """The runs that wait at the API for one route."""

    route: Route
    runs: tuple[FlowRun, ...]  # claimable now or within the asked time, in the server's order
    due: int  # how many are due now
    at_least: bool = False  # True when more may be due than `due` says, since the API lists no more
    oldest: datetime | None = None  # since when the oldest of them is due
    #: how many runs of the route's pool, from whichever queue, the API has room for (None = all that are listed)
    room: int | None = None
    #: runs that are counted in `due` but ask for what no offer here can do (Prefect 1: storage, run_config)
    unfit: tuple[UnfitRun, ...] = ()
    #: runs whose time has come and that are not in `due`, since the API hands them to nobody now (only counted ones)
    held: Held = NOTHING_HELD
    #: whether pool or queue have a limit: what is counted as due and not listed is held back by it
    limited: bool = False


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another executor at the API that takes the same runs: an agent with our labels, a worker of our pool."""

    name: str
    type: str
    labels: tuple[str, ...] = ()
    #: the pool's name; empty at Prefect 1, where only labels count
    pool: str = ""
    #: when it was last heard of: an agent as it asked for runs
    seen: datetime | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place at the API where a run waits, and what holds it back there, for `explain`."""

    route: Route
    #: the pool's name; empty at Prefect 1, where only labels count
    pool: str
    #: what is paused: "pool", "queue" or None
    paused: str | None = None
    #: the limit that leaves no room now, in words
    limit: str | None = None


class BacklogApi(Protocol):
    """The part of a client that tells what waits at the API."""

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        """List the runs that are due now or within the given seconds and that these offers may run.

        The server's limits, pauses and priorities are observed. One request lists at most `limit` runs.
        """

    def count_due(self, offers: Sequence[Offer], *, within_seconds: float = 0.0) -> list[DueRuns]:
        """Only count what waits, also what the API hands to nobody now: in all queues of the offers' pools, or labels.

        Listing runs that no live worker takes would make them look served: their pools READY, or their agent alive.
        A route on which nothing waits, and nothing falls due within the given seconds, is left out.
        """

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        """Due runs that no agent known to the API could take, of this fleet or not (Prefect 1: because of labels)."""

    def rivals(self, offers: Sequence[Offer]) -> list[Rival]:
        """Executors that take the runs of these offers too.

        Prefect 1: agents but for those of our own name. Prefect 3: workers that are online in the pools, the fleet's
        own among them (`is_of_fleet`).
        """

    def place(self, run_id: str) -> Place | None:
        """Where a run waits and what holds it back there, for `explain`; None when the run waits in no such place."""
