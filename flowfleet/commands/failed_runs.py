"""Failed runs: those of a route or of a worker that came to no good end within the last day."""

from collections.abc import Iterable, Mapping
from typing import Any

from flowfleet.api.client import EndApi, StateType
from flowfleet.commands import batch
from flowfleet.commands.batch import RouteOrWorker
from flowfleet.commands.chosen_run import ChosenRun, NoSuchRun
from flowfleet.flow_run import Route
from flowfleet.ledger.claim import read_routes

#: the ends that are no good ones, and that nobody has asked for
FAILED = frozenset({StateType.FAILED, StateType.CRASHED})
#: how long a claim that is gone counts; where little happens the ledger clears its record away later
_DAY_SECONDS = 24 * 3600.0


def failed_runs(
    chosen: RouteOrWorker, records: Iterable[Mapping[str, Any]], now: float, ends: EndApi
) -> list[ChosenRun]:
    """The runs whose last record is of this route or worker and that the API shows as Failed or Crashed now.

    `records` are the claims that are gone, newest first; the runs come in the order in which they ended. Raises
    `NoSuchRun` when there is none.
    """
    last: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if now - record["gone_at"] <= _DAY_SECONDS:
            last.setdefault(record["run_id"], record)
    theirs = [run_id for run_id, record in last.items() if chosen.has(*_route_and_worker(record))]
    if not theirs:
        others = chosen.others(map(_route_and_worker, last.values()))
        known = f"it knows runs of {others}" if others else "it knows no run at all"
        raise NoSuchRun(f"The fleet knows no run of {chosen.given!r} that has ended within the last day: {known}.")
    states = ends.states(theirs)
    found = [states[run_id] for run_id in reversed(theirs) if run_id in states and states[run_id].kind in FAILED]
    if not found:
        raise NoSuchRun(
            f"There is nothing to start again: {batch.counted(len(theirs))} of {chosen.given} ended within the last "
            "day, and the API shows none as Failed or Crashed."
        )
    return [ChosenRun.of(state.run_id, state.run_name) for state in found]


def _route_and_worker(record: Mapping[str, Any]) -> tuple[Route | None, str | None]:
    routes = read_routes([str(record.get("route"))])
    return routes[0] if routes else None, record.get("worker") or None
