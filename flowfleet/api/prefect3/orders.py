"""Orders: what people want of single runs at a Prefect 3 API."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.api.found import FoundRuns, namesakes, with_part
from flowfleet.api.prefect3.fence import Write
from flowfleet.api.prefect3.states import state_of
from flowfleet.api.prefect3.writes import Writes, mark_message, new_state
from flowfleet.api.transport.reading import iso, reading, rows
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.flow_run import ID_PART, UUID, Route

_PAGE = 200
_UNDER_WAY = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)


def _nothing_runs(stands: RunState) -> Mapping[str, Any] | None:
    """The filter for a run that the server would make Cancelled at once, as nothing of it can run; None for any other.

    The server puts a Cancelled of its own there, without a word on who asked and why; so ours is written instead.
    """
    there = {"type": {"any_": [stands.kind.value]}}
    if stands.kind is StateType.SCHEDULED:
        return None if stands.infrastructure else there
    if stands.kind is StateType.PAUSED and not stands.held:
        return {"operator": "and_", **there, "name": {"any_": [stands.name]}}
    return None


@dataclass(frozen=True)
class Orders:
    """The orders of people. Thread-safe, since it keeps nothing."""

    session: Session
    writes: Writes

    def under_cancel(self, runs: Mapping[str, Route]) -> dict[str, RunState]:
        # of few runs by their ids, of many by their pools: one request each time, while few are being cancelled
        cancelling: dict[str, Any] = {"state": {"type": {"any_": [StateType.CANCELLING.value]}}}
        if len(runs) <= _PAGE:
            return self._page({**cancelling, "id": {"any_": sorted(runs)}})
        pools = {"work_pools": {"id": {"any_": sorted({route.scope for route in runs.values()})}}}
        found: dict[str, RunState] = {}
        while True:
            # by the ids that were seen, not by an offset, which a run that ends meanwhile would shift
            page = self._page({**cancelling, **({"id": {"not_any_": sorted(found)}} if found else {})}, pools)
            found |= page
            if len(page) < _PAGE:
                return {run_id: state for run_id, state in found.items() if run_id in runs}

    def _page(self, flow_runs: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, RunState]:
        answer = self.session.post("/flow_runs/filter", {"flow_runs": flow_runs, "limit": _PAGE, **(more or {})})
        with reading("for runs"):
            return {state.run_id: state for state in map(state_of, rows(answer))}

    def cancel(self, run_id: str, message: str) -> Answer:
        answer = self._cancel(run_id, message, at_once=True)
        if answer.verdict is Verdict.UNSURE and answer.silence is None:
            # it may have been claimed or resumed meanwhile: once more, whatever it is now
            answer = self._cancel(run_id, message, at_once=False)
        return answer

    def _cancel(self, run_id: str, message: str, *, at_once: bool) -> Answer:
        transition = str(uuid.uuid4())

        def decide(stands: RunState) -> Answer | Write:
            if stands.kind in (StateType.CANCELLING, StateType.CANCELLED):
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.kind.terminal:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name} already", state=stands)
            if at_once and (there := _nothing_runs(stands)) is not None:
                return Write(there, new_state(StateType.CANCELLED, "Cancelled", transition, message))
            # never over an end that comes meanwhile
            expected = {"type": {"any_": [kind.value for kind in StateType if not kind.terminal]}}
            return Write(expected, new_state(StateType.CANCELLING, "Cancelling", transition, message))

        answer = self.writes.fence.write(run_id, decide)
        if answer.state is not None and answer.state.kind is StateType.CANCELLED:
            # told as a refusal of Cancelling where the server has put its own Cancelled in its place
            return Answer(verdict=Verdict.ACCEPTED, reason=answer.reason, state=answer.state)
        return answer

    def restart(self, run_id: str, message: str, mark: Mark, only: Collection[StateType] = ()) -> Answer:
        transition = str(uuid.uuid4())

        def decide(stands: RunState) -> Answer | Write:
            if stands.call == transition:
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.kind in _UNDER_WAY or stands.held or (only and stands.kind not in only):
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}", state=stands)
            # before the state: a Scheduled run with an infrastructure mark would hang in Cancelling when cancelled
            if stands.infrastructure:
                self.writes.set_infrastructure(run_id, None)
            state = new_state(StateType.SCHEDULED, "Scheduled", transition, mark_message(mark, message))
            state["state_details"]["scheduled_time"] = iso(datetime.now(UTC))
            expected = {"operator": "and_", "type": {"any_": [stands.kind.value]}, "name": {"any_": [stands.name]}}
            return Write(expected, state)

        return self.writes.fence.write(run_id, decide)

    def find(self, text: str) -> FoundRuns:
        part = text.lower()
        if UUID.fullmatch(part):
            return FoundRuns(self._names({"id": {"any_": [part]}}, "ID_DESC", 1))
        found = namesakes(lambda limit: self._names({"name": {"any_": [text]}}, "EXPECTED_START_TIME_DESC", limit))
        if found.names or not ID_PART.fullmatch(part):
            return found
        return with_part(part, self._unfinished)

    def _unfinished(self, but: Collection[str], limit: int) -> dict[str, str]:
        # those that are due first
        kinds = [kind.value for kind in StateType if not kind.terminal]
        others: dict[str, Any] = {"id": {"not_any_": list(but)}} if but else {}
        return self._names({"state": {"type": {"any_": kinds}}, **others}, "EXPECTED_START_TIME_ASC", limit)

    def _names(self, flow_runs: Mapping[str, Any], sort: str, limit: int) -> dict[str, str]:
        wanted = {"flow_runs": flow_runs, "sort": sort, "limit": limit}
        answer = self.session.post("/flow_runs/filter", wanted, tries=ASKED_TRIES)
        with reading("for runs"):
            return {str(run["id"]): str(run.get("name") or "") for run in rows(answer)}
