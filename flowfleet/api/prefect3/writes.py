"""Writes: each state that flowfleet writes at a Prefect 3 API, fenced by the state that it expects there."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.api.prefect3.states import answer_of, state_of
from flowfleet.api.transport.reading import Json, iso, reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiError, ApiUnavailable, RunGone
from flowfleet.flow_run import FlowRun, claim_id

#: the most runs that one bulk call may carry
CLAIM_LIMIT = 10
#: a state that was read so recently need not be read again before the next write, which is fenced itself
_JUST_READ_SECONDS = 5.0
_PAGE = 200
_ENDS = (StateType.CRASHED, StateType.FAILED, StateType.CANCELLED)


def mark_message(mark: Mark, words: str) -> str:
    """The message of a state: `flowfleet FLEET …`, by which a sweep recognises our states."""
    return f"flowfleet {quote(mark.fleet, safe='')} {words}"


def mark_prefix(mark: Mark) -> str:
    """The beginning of this fleet's infrastructure marks."""
    return f"flowfleet:{quote(mark.fleet, safe='')}:"


@dataclass
class Writes:
    """The writer of states: claim, launch, hand back, report an end.

    Every write goes by `bulk_set_state`, whose filter says what must stand there: plain `set_state` takes Launching on
    a Crashed run and Scheduled on a finished one. Every write has a transition id that its repeat has too.
    """

    session: Session
    clock: Callable[[], float]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _seen: dict[str, tuple[float, RunState]] = field(default_factory=dict, init=False)

    def read(self, run_id: str) -> Json:
        """Read the run's JSON; raises `RunGone`."""
        try:
            run: Json = self.session.get(f"/flow_runs/{run_id}")
        except NotFound as error:
            raise RunGone(f"the run {run_id} does not exist any more") from error
        with reading("for a run"):
            self._remember(state_of(run))
        return run

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        return {run_id: state_of(run) for run_id, run in self._read_many(run_ids).items()}

    def _read_many(self, run_ids: Sequence[str]) -> dict[str, Json]:
        """Read the JSON of many runs, 200 in a request; a run that is left out does not exist."""
        found: dict[str, Json] = {}
        for start in range(0, len(run_ids), _PAGE):
            part = list(run_ids[start : start + _PAGE])
            body = {"flow_runs": {"id": {"any_": part}}, "limit": _PAGE}
            page = self.session.post("/flow_runs/filter", body)
            with reading("for runs"):
                found |= {state_of(run).run_id: run for run in rows(page)}
        return found

    def _remember(self, state: RunState) -> None:
        now = self.clock()
        with self._lock:
            if len(self._seen) > 500:
                self._seen = {k: v for k, v in self._seen.items() if now - v[0] < _JUST_READ_SECONDS}
            self._seen[state.run_id] = (now, state)

    def _just_read(self, run_id: str) -> RunState | None:
        with self._lock:
            at, state = self._seen.pop(run_id, (0.0, None))
        return state if state is not None and self.clock() - at < _JUST_READ_SECONDS else None

    # claiming

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> dict[str, Answer]:
        if len(runs) > CLAIM_LIMIT:
            raise ValueError(f"at most {CLAIM_LIMIT} runs in one claim, not {len(runs)}")
        if not runs:
            return {}
        expected = {
            "state": {"type": {"any_": [StateType.SCHEDULED.value]}},
            "next_scheduled_start_time": {"before_": iso(max(run.due for run in runs))},
        }
        state = _state(
            StateType.PENDING, "Submitted", call, mark_message(mark, f"claimed by {mark.worker or 'its poller'}")
        )
        try:
            results = self._bulk([run.run_id for run in runs], expected, state)
        except ApiError as error:
            return {run.run_id: Answer.to_error(error) for run in runs}
        answers = {
            run.run_id: _answers_of(run.run_id, run.name, results, call) for run in runs if run.run_id in results
        }
        open_ids = [
            run.run_id for run in runs if run.run_id not in answers or answers[run.run_id].verdict is Verdict.UNSURE
        ]
        if open_ids:
            answers |= self._settle_answered(open_ids, call)
        return answers

    def _settle_answered(self, run_ids: Sequence[str], call: str) -> dict[str, Answer]:
        """Read the runs about which an answered call said nothing; the call is over, so their states are definite."""
        try:
            there = self._read_many(run_ids)
        except ApiError as error:
            return {run_id: Answer.to_error(error) for run_id in run_ids}
        return {run_id: _whose(run_id, there.get(run_id), call) for run_id in run_ids}

    def settle(self, run_id: str, call: str) -> Answer:
        # the launch that followed the call counts, too
        try:
            return _whose(run_id, self.read(run_id), call)
        except ApiError as error:
            return Answer.to_error(error)

    # launching and handing back

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        # the claim id is the transition id, so a repeat is seen to be ours
        def decide(stands: RunState) -> Answer | _Write:
            if stands.call == claim and stands.name == "Launching":
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.call != call or stands.name != "Submitted":
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not ours", state=stands)
            message = mark_message(mark, f"launching on {mark.worker or 'a worker'}")
            state = _state(StateType.PENDING, "Launching", claim, message)
            return _Write({"name": {"any_": ["Submitted"]}}, state)

        return self._fenced(run_id, decide, just_read=self._just_read(run_id))

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        back = str(uuid.uuid5(uuid.UUID(call), f"{run_id} handed back"))
        ours = {call, claim_id(call, run_id)}
        names = ["Submitted", "Launching"] if never_began else ["Submitted"]

        def decide(stands: RunState) -> Answer | _Write:
            if stands.call == back:
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.call not in ours or stands.kind is not StateType.PENDING:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not ours", state=stands)
            if stands.name not in names:
                # the ledger has lost how far the run was: only the host knows whether user code began
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, it may begin", state=stands)
            # before the state: a Scheduled run with an infrastructure mark would hang in Cancelling when cancelled
            if (stands.infrastructure or "").startswith(mark_prefix(mark)):
                self._set_infrastructure(run_id, None)
            state = _state(StateType.SCHEDULED, "Scheduled", back, mark_message(mark, f"handed back: {reason}"))
            # after a reschedule only the state knows the run's time; a run that never had one keeps the caller's
            state["state_details"]["scheduled_time"] = iso(stands.scheduled or due)
            return _Write({"name": {"any_": names}}, state)

        return self._fenced(run_id, decide)

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        # nothing at Prefect 3 puts a running run back
        del run_id, claim, mark
        return Answer(verdict=Verdict.REFUSED, reason="Prefect 3 puts no run back that has a process")

    def report(self, run_id: str, kind: StateType, message: str, mark: Mark) -> Answer:
        # the sentence stands alone, without our mark, since people read it in the UI
        del mark
        if kind not in _ENDS:
            raise ValueError(f"{kind} is no end that flowfleet reports")
        told = str(uuid.uuid5(uuid.UUID(run_id), f"{kind} {message}"))

        def decide(stands: RunState) -> Answer | _Write:
            if stands.kind.terminal:
                verdict = Verdict.ACCEPTED if stands.call == told else Verdict.REFUSED
                return Answer(verdict=verdict, reason=f"the run is {stands.name} already", state=stands)
            if stands.kind in (StateType.SCHEDULED, StateType.PAUSED) and not stands.held:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, it goes on", state=stands)
            # only over the state that was read: a run that ends or is handed out anew meanwhile stays as it is
            expected = {"operator": "and_", "type": {"any_": [stands.kind.value]}, "name": {"any_": [stands.name]}}
            return _Write(expected, _state(kind, kind.value.title(), told, message))

        return self._fenced(run_id, decide)

    def run_again(self, run_id: str, claim: str, message: str, mark: Mark) -> Answer:
        again = str(uuid.uuid5(uuid.UUID(claim), f"{run_id} runs again"))

        def decide(stands: RunState) -> Answer | _Write:
            if stands.call == again:
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.kind not in (StateType.RUNNING, StateType.PENDING):
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}", state=stands)
            # before the state: a Scheduled run with an infrastructure mark would hang in Cancelling when cancelled
            if (stands.infrastructure or "").startswith(mark_prefix(mark)):
                self._set_infrastructure(run_id, None)
            state = _state(StateType.SCHEDULED, "Scheduled", again, mark_message(mark, message))
            state["state_details"]["scheduled_time"] = iso(datetime.now(UTC))
            expected = {"operator": "and_", "type": {"any_": [stands.kind.value]}, "name": {"any_": [stands.name]}}
            return _Write(expected, state)

        return self._fenced(run_id, decide)

    def started(self, run_id: str, mark: Mark, pid: int) -> None:
        worker = quote(mark.worker or "", safe="@")
        self._set_infrastructure(run_id, f"{mark_prefix(mark)}{worker}:{pid}")

    def started_line(self, mark: Mark, pid: int) -> str:
        return f"Submitted for execution by {mark.worker}: PID {pid}."

    def _set_infrastructure(self, run_id: str, text: str | None) -> None:
        """Write the infrastructure mark, or clear it with None; raises `RunGone`."""
        try:
            self.session.call("PATCH", f"/flow_runs/{run_id}", {"infrastructure_pid": text})
        except NotFound as error:
            raise RunGone(f"the run {run_id} does not exist any more") from error

    # the one way of writing

    def _fenced(
        self, run_id: str, decide: Callable[[RunState], Answer | _Write], just_read: RunState | None = None
    ) -> Answer:
        """Read, decide, write with the expected state as filter; after a write that missed, read again."""
        stands = None
        try:
            stands = just_read or state_of(self.read(run_id))
            write = decide(stands)
            if isinstance(write, Answer):
                return write
            results = self._bulk([run_id], {"state": write.expected}, write.state)
            if run_id in results:
                transition = str(write.state["state_details"]["transition_id"])
                answer = _answers_of(run_id, stands.run_name, results, transition)
                if answer.verdict is not Verdict.UNSURE:
                    return answer
            stands = state_of(self.read(run_id))
            again = decide(stands)
            if isinstance(again, Answer):
                return again
            return Answer(verdict=Verdict.UNSURE, reason="the server gave no definite answer", state=stands)
        except ApiError as error:
            return Answer.to_error(error, stands)

    def _bulk(
        self, run_ids: Sequence[str], expected: Mapping[str, Any], state: Mapping[str, Any]
    ) -> dict[str, Mapping[str, Any]]:
        body = {"flow_runs": {"id": {"any_": list(run_ids)}, **expected}, "state": state, "force": False}
        answer = self.session.post("/flow_runs/bulk_set_state", body, seconds=self.session.bulk_seconds)
        with reading("for a state"):
            return {str(result["flow_run_id"]): result for result in rows(answer["results"])}


@dataclass(frozen=True)
class _Write:
    """One write: the filter that says what must stand there, and the state."""

    expected: Mapping[str, Any]
    state: Mapping[str, Any]


def _state(kind: StateType, name: str, transition: str, message: str) -> dict[str, Any]:
    return {"type": kind.value, "name": name, "message": message, "state_details": {"transition_id": transition}}


def _answers_of(run_id: str, name: str, results: Mapping[str, Json], transition: str) -> Answer:
    """The answer for one run of a bulk call; a result that cannot be read is UNSURE, as one without a state is."""
    try:
        with reading("for a state"):
            return answer_of({"id": run_id, "name": name}, results[run_id], transition)
    except ApiUnavailable as error:
        return Answer.to_error(error)


def _whose(run_id: str, there: Json | None, call: str) -> Answer:
    if there is None:
        return Answer(verdict=Verdict.REFUSED, reason=f"the run {run_id} does not exist any more", gone=True)
    stands = state_of(there)
    if stands.call in (call, claim_id(call, run_id)) and stands.kind is StateType.PENDING:
        return Answer(verdict=Verdict.ACCEPTED, state=stands)
    return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not claimed by this call", state=stands)
