"""Writes: each state that flowfleet writes at a Prefect 3 API, fenced by the state that it expects there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict, unguarded
from flowfleet.api.prefect3.fence import Fence, Write, answers_of
from flowfleet.api.prefect3.states import claimed_since, retries_inside, state_of
from flowfleet.api.transport.reading import Json, iso, reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiError, RunGone
from flowfleet.flow_run import FlowRun, again_id, claim_id, report_id

#: the most runs that one bulk call may carry
CLAIM_LIMIT = 10
_PAGE = 200
#: what the message of Launching says before the worker's identity
LAUNCHING_ON = "launching on "
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
    fence: Fence
    #: hit between reading a run and writing its end or its way back
    between: Callable[[], object] = unguarded

    def read(self, run_id: str) -> Json:
        """Read the run's JSON; raises `RunGone`."""
        return self.fence.read(run_id)

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
        state = new_state(
            StateType.PENDING, "Submitted", call, mark_message(mark, f"claimed by {mark.worker or 'its poller'}")
        )
        try:
            results = self.fence.bulk([run.run_id for run in runs], expected, state)
        except ApiError as error:
            return {run.run_id: Answer.to_error(error) for run in runs}
        answers = {run.run_id: answers_of(run.run_id, run.name, results, call) for run in runs if run.run_id in results}
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
        def decide(stands: RunState) -> Answer | Write:
            if stands.call == claim and stands.name == "Launching":
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.call != call or stands.name != "Submitted":
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not ours", state=stands)
            message = mark_message(mark, f"{LAUNCHING_ON}{mark.worker or 'a worker'}")
            state = new_state(StateType.PENDING, "Launching", claim, message)
            return Write({"name": {"any_": ["Submitted"]}}, state)

        return self.fence.write(run_id, decide, just_read=self.fence.just_read(run_id))

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        back = str(uuid.uuid5(uuid.UUID(call), f"{run_id} handed back"))
        ours = {call, claim_id(call, run_id)}
        names = ["Submitted", "Launching"] if never_began else ["Submitted"]

        def decide(stands: RunState) -> Answer | Write:
            if stands.call == back:
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if stands.call not in ours or stands.kind is not StateType.PENDING:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not ours", state=stands)
            if stands.name not in names:
                # the ledger has lost how far the run was: only the host knows whether user code began
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, it may begin", state=stands)
            # before the state: a Scheduled run with an infrastructure mark would hang in Cancelling when cancelled
            if (stands.infrastructure or "").startswith(mark_prefix(mark)):
                self.set_infrastructure(run_id, None)
            state = new_state(StateType.SCHEDULED, "Scheduled", back, mark_message(mark, f"handed back: {reason}"))
            # after a reschedule only the state knows the run's time; a run that never had one keeps the caller's
            state["state_details"]["scheduled_time"] = iso(stands.scheduled or due)
            return Write({"name": {"any_": names}}, state)

        return self.fence.write(run_id, decide, before=self.between)

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        # nothing at Prefect 3 puts a running run back
        del run_id, claim, mark
        return Answer(verdict=Verdict.REFUSED, reason="Prefect 3 puts no run back that has a process")

    def claimed_since(self, run_id: str, claim: str) -> bool:
        states = self.session.get(f"/flow_run_states/?flow_run_id={run_id}")
        with reading("for the history of a run"):
            return claimed_since(rows(states), run_id, claim)

    def _overtaken(self, stands: RunState, claim: str | None) -> Answer | None:
        """The refusal of a write over another attempt's state; None when what stands there is of this claim."""
        if claim is None or not self.claimed_since(stands.run_id, claim):
            return None
        reason = f"the run is {stands.name}, claimed by somebody else since"
        return Answer(verdict=Verdict.REFUSED, reason=reason, state=stands, claimed_since=True)

    def report(
        self,
        run_id: str,
        kind: StateType,
        message: str,
        mark: Mark,
        *,
        claim: str | None = None,
        still: Callable[[], object] = unguarded,
    ) -> Answer:
        # the sentence stands alone, without our mark, since people read it in the UI
        del mark
        if kind not in _ENDS:
            raise ValueError(f"{kind} is no end that flowfleet reports")
        told = report_id(claim, kind) if claim else str(uuid.uuid5(uuid.UUID(run_id), f"{kind} {message}"))

        def decide(stands: RunState) -> Answer | Write:
            if stands.kind.terminal:
                verdict = Verdict.ACCEPTED if stands.call == told else Verdict.REFUSED
                return Answer(verdict=verdict, reason=f"the run is {stands.name} already", state=stands)
            if stands.waits:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, it goes on", state=stands)
            if overtaken := self._overtaken(stands, claim):
                return overtaken
            # only over the state that was read: a run that ends or is handed out anew meanwhile stays as it is
            expected = {"operator": "and_", "type": {"any_": [stands.kind.value]}, "name": {"any_": [stands.name]}}
            return Write(expected, new_state(kind, kind.value.title(), told, message))

        def before() -> None:
            self.between()
            still()

        return self.fence.write(run_id, decide, before=before)

    def run_again(self, run_id: str, claim: str, message: str, mark: Mark) -> Answer:
        again = again_id(claim, run_id)

        def decide(stands: RunState) -> Answer | Write:
            if stands.call == again:
                return Answer(verdict=Verdict.ACCEPTED, state=stands)
            if not stands.needs_process:
                return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}", state=stands)
            if overtaken := self._overtaken(stands, claim):
                return overtaken
            # before the state: a Scheduled run with an infrastructure mark would hang in Cancelling when cancelled
            if (stands.infrastructure or "").startswith(mark_prefix(mark)):
                self.set_infrastructure(run_id, None)
            state = new_state(StateType.SCHEDULED, "Scheduled", again, mark_message(mark, message))
            state["state_details"]["scheduled_time"] = iso(datetime.now(UTC))
            expected = {"operator": "and_", "type": {"any_": [stands.kind.value]}, "name": {"any_": [stands.name]}}
            inside = retries_inside(stands.retry_policy)
            return Write(expected, state, first=partial(self._end_retries_inside, stands) if inside else None)

        return self.fence.write(run_id, decide, before=self.between)

    def _end_retries_inside(self, stands: RunState, fresh_until: float) -> None:
        """Take from the run that its own process tries it again: with that, no server hands it out any more.

        Before the state: a crash in between leaves a Running run, which is looked at again. The other way round it
        would leave a Scheduled one that nobody gets.
        """
        policy = {**stands.retry_policy, "retry_type": None}
        self._change(stands.run_id, {"empirical_policy": policy}, fresh_until)

    def started(self, run_id: str, mark: Mark, process: int | str) -> None:
        worker = quote(mark.worker or "", safe="@")
        self.set_infrastructure(run_id, f"{mark_prefix(mark)}{worker}:{process}")

    def started_line(self, mark: Mark, process: int | str) -> str:
        kind = "PID" if isinstance(process, int) else "container"
        return f"Submitted for execution by {mark.worker}: {kind} {process}."

    def set_infrastructure(self, run_id: str, text: str | None) -> None:
        """Write the infrastructure mark, or clear it with None; raises `RunGone`."""
        self._change(run_id, {"infrastructure_pid": text})

    def _change(self, run_id: str, change: Json, fresh_until: float | None = None) -> None:
        try:
            self.session.call("PATCH", f"/flow_runs/{run_id}", change, fresh_until=fresh_until)
        except NotFound as error:
            raise RunGone(f"the run {run_id} does not exist any more") from error


def new_state(kind: StateType, name: str, transition: str, message: str) -> dict[str, Any]:
    """The JSON of a state that is to be written; its transition id tells whether it stands there."""
    return {"type": kind.value, "name": name, "message": message, "state_details": {"transition_id": transition}}


def _whose(run_id: str, there: Json | None, call: str) -> Answer:
    if there is None:
        return Answer(verdict=Verdict.REFUSED, reason=f"the run {run_id} does not exist any more", gone=True)
    stands = state_of(there)
    if stands.call in (call, claim_id(call, run_id)) and stands.kind is StateType.PENDING:
        return Answer(verdict=Verdict.ACCEPTED, state=stands)
    return Answer(verdict=Verdict.REFUSED, reason=f"the run is {stands.name}, not claimed by this call", state=stands)
