"""Listing: what the API says is due, what of it can be claimed now, and when the next run falls due."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from flowfleet.api import traits
from flowfleet.api.backlog import DueRuns, UnfitRun
from flowfleet.flow_run import NOTHING_HELD, FlowRun, Held, Offer, Route
from flowfleet.ledger.roster import RouteDue

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The two clocks of the poller: one for durations, one for the time of day."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


class Listing:
    """The due runs that the API listed last, less those that have been claimed since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: float | None = None
        self._listed: tuple[DueRuns, ...] = ()
        self._most = 0
        self._counted: tuple[DueRuns, ...] = ()
        self._counted_at = float("-inf")
        #: the time of the API that the counts are of
        self._counted_until = float("inf")
        #: how often in a row the API could not be asked for counts
        self._uncounted = 0
        #: whose routes the listing knows, and whose it knew at the count
        self._served: tuple[Offer, ...] = ()
        self._served_then: frozenset[Offer] = frozenset()
        self._gone: set[str] = set()
        #: claimed since the count of what it has counted, by route
        self._taken: Counter[Route] = Counter()
        #: a listed run has vanished since the count without a claim of ours
        self._vanished = False
        self._shunned: dict[str, float] = {}

    @property
    def age_seconds(self) -> float:
        """Age of the listing; infinite when there is none."""
        return float("inf") if self._at is None else self._clock.monotonic() - self._at

    @property
    def quiet(self) -> bool:
        """Whether nothing was due, coming or counted when the API was asked last."""
        return self._at is not None and not self._counted and not any(each.runs or each.due for each in self._listed)

    @property
    def full(self) -> bool:
        """Whether the API has listed no more than it does at most, so that more may wait."""
        return any(each.at_least for each in self._listed)

    @property
    def doubtful(self) -> bool:
        """Whether a run has vanished without a claim of ours: somebody else has it, or something holds it back."""
        return self._vanished

    @property
    def uncounted(self) -> int:
        """How often in a row the API could not be asked for counts; the last ones stand."""
        return self._uncounted

    @property
    def counts_fit(self) -> bool:
        """Whether workers offer now what they did when the counts came."""
        return self._served_then == frozenset(self._served)

    @property
    def hides(self) -> bool:
        """Whether the last count has seen what no listing shows: runs that are held back, or that nobody takes."""
        return any(
            each.held != NOTHING_HELD or not any(offer.serves(each.route) for offer in self._served)
            for each in self._counted
        )

    def renew(self, found: Iterable[DueRuns], at: float, most: int = 0, served: Sequence[Offer] = ()) -> None:
        """Replace the listing; `at` is when it arrived: a slow API must not make each listing too old to act on.

        That its content may be older is no danger: the claim names the state that it expects. `most` is how many runs
        one answer lists (0: not known). Of a route that is `served` the listing knows what the API hands out, and the
        count what it holds back.
        """
        before = {run.run_id for each in self._listed for run in each.runs} - self._gone
        self._listed, self._most, self._served = tuple(found), most, tuple(served)
        self._at = at
        self._gone.clear()
        self._vanished |= not before.issubset(run.run_id for each in self._listed for run in each.runs)

    @property
    def count_age_seconds(self) -> float:
        """Seconds since the API was asked for counts; infinite when it never was."""
        return self._clock.monotonic() - self._counted_at

    def tally(self, found: Iterable[DueRuns], at: float | None = None, until: float = float("inf")) -> None:
        """Replace the counts of what waits; `at` is when they came, None = not asked for.

        `until` is the time of the API, in seconds since 1970, by which the counted runs were due.
        """
        self._counted, self._served_then = tuple(found), frozenset(self._served)
        self._counted_at = self._counted_at if at is None else at
        self._counted_until, self._uncounted = until, 0
        self._taken.clear()
        self._vanished = self._vanished and at is None

    def miscounted(self, at: float) -> None:
        """Note that the API could not be asked for counts."""
        self._counted_at = at
        self._uncounted += 1

    def forget(self) -> None:
        """Forget the listing and the counts."""
        self._at, self._counted_at, self._uncounted = None, float("-inf"), 0
        self._listed = self._counted = ()
        self._vanished = False

    def gone(self, run_ids: Collection[str]) -> None:
        """Note that these runs are no longer due: they are claimed, or somebody else's."""
        new = set(run_ids) - self._gone
        listed = {run.run_id: run for each in self._listed for run in each.runs if run.run_id in new}
        self._taken.update(run.route for run in listed.values() if run.due.timestamp() <= self._counted_until)
        self._gone |= new

    def take_out(self, run_ids: Collection[str]) -> list[FlowRun]:
        """Return those of these runs that are listed, and count them as gone from now on."""
        found = {run.run_id: run for due in self._listed for run in due.runs if run.run_id in run_ids}
        self.gone(found)
        return list(found.values())

    def unfit(self) -> list[UnfitRun]:
        """The listed runs that nobody here can take."""
        return [each for due in self._listed for each in due.unfit]

    def put_off(self, run_ids: Collection[str], seconds: float) -> None:
        """Do not propose these runs for so many seconds: they were refused just now."""
        now = self._clock.monotonic()
        self._shunned = {run_id: until for run_id, until in self._shunned.items() if until > now}
        self._shunned.update(dict.fromkeys(run_ids, now + seconds))

    def runs(self) -> Sequence[FlowRun]:
        """All listed runs that are neither gone nor shunned, each once, in the server's order within its route."""
        now = self._clock.monotonic()
        runs: dict[str, FlowRun] = {}
        for due in self._listed:
            for run in due.runs:
                if run.run_id not in self._gone and self._shunned.get(run.run_id, 0.0) <= now:
                    runs.setdefault(run.run_id, run)
        return list(runs.values())

    def claimable(self, server_now: float, lead_seconds: float) -> list[FlowRun]:
        """The runs that are due, then those that will be within the lead; pools take turns by the age of their heads.

        Within a pool (at Prefect 1: a label set) the order is the server's. That the listing has one pool before
        another says nothing, and a worker that serves both would come to the second only when the first is empty.
        """
        near = [run for run in self.runs() if run.due.timestamp() <= server_now + lead_seconds]
        near.sort(key=lambda run: run.due.timestamp() > server_now)
        reached: dict[str | Route, tuple[bool, datetime]] = {}
        turns: list[tuple[tuple[bool, datetime], FlowRun]] = []
        for run in near:
            own = (run.due.timestamp() > server_now, run.due)
            # a run never comes before one that stands in front of it in its own pool
            pool = run.route if traits.of(run.route.backend).by_labels else run.route.scope
            turn = reached[pool] = max(own, reached.get(pool, own))
            turns.append((turn, run))
        return [run for _, run in sorted(turns, key=lambda item: item[0])]

    def rooms(self) -> dict[str, int]:
        """How many runs may still be claimed, by id of the pool or tenant; one that names no limit is left out."""
        rooms = {found.route.scope: found.room for found in self._listed if found.room is not None}
        claimed = {run.run_id: run.route.scope for found in self._listed for run in found.runs} if rooms else {}
        for run_id in self._gone:
            if claimed.get(run_id) in rooms:
                rooms[claimed[run_id]] -= 1
        return rooms

    def next_due(self, server_now: float, lead_seconds: float) -> float | None:
        """Seconds until the next run comes within the lead; None when no listed run is still to come."""
        waits = [wait for run in self.runs() if (wait := run.due.timestamp() - lead_seconds - server_now) > 0]
        return min(waits, default=None)

    def due(self, server_now: float) -> list[RouteDue]:
        """The rows for the ledger: what waits at the API, per route."""
        rows = {found.route: self._as_listed(found, server_now) for found in self._listed}
        for counted in self._counted:
            rows[counted.route] = self._as_counted(counted, rows.get(counted.route), server_now)
        return list(rows.values())

    def _as_listed(self, found: DueRuns, server_now: float) -> RouteDue:
        claimed = [run for run in found.runs if run.run_id in self._gone and run.due.timestamp() <= server_now]
        left = [run.due for run in found.runs if run.run_id not in self._gone and run.due.timestamp() <= server_now]
        due = max(len(left), found.due - len(claimed))
        return RouteDue(
            route=found.route,
            due=due,
            at_least=found.at_least,
            oldest=_unix(min(left, default=found.oldest if not claimed else None)),
            at=server_now,
            held=Held(unserved=min(due, len(found.unfit))),
        )

    def _as_counted(self, counted: DueRuns, listed: RouteDue | None, server_now: float) -> RouteDue:
        """The row of a route that was counted: as it is where nobody takes it, else beside what was listed there."""
        route, total = counted.route, max(0, counted.due - self._taken[counted.route])
        alone = RouteDue(
            route=route,
            due=total,
            at_least=counted.at_least,
            oldest=_unix(counted.oldest),
            at=server_now,
            held=counted.held,
        )
        if not any(offer.serves(route) for offer in self._served):
            return alone
        listed = listed or replace(alone, due=0, at_least=False, oldest=None, held=NOTHING_HELD)
        more = max(0, total - listed.due)
        paused = 0 if listed.due else counted.held.paused  # what is listed again is paused no longer
        held = replace(counted.held, paused=paused, unserved=listed.held.unserved)
        full = self._full(route.scope)
        if counted.limited and not full:
            # the API lists what pool and queue have room for, and the rest waits for their limits
            return replace(listed, at_least=counted.at_least, held=replace(held, limit=held.limit + more))
        if listed.at_least or full:
            return replace(listed, due=listed.due + more, at_least=counted.at_least, held=held)
        return replace(listed, held=held)

    def _full(self, scope: str) -> bool:
        """Whether the API listed no more of a pool than one answer holds."""
        return 0 < self._most <= sum(len(each.runs) for each in self._listed if each.route.scope == scope)


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.astimezone(UTC).timestamp()
