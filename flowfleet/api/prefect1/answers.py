"""Answers: what the rows and replies of a Prefect 1 API say of a state that flowfleet writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from flowfleet.api.client import Answer, Verdict
from flowfleet.api.prefect1.changes import Change
from flowfleet.api.prefect1.states import Run

if TYPE_CHECKING:
    from flowfleet.api.prefect1.graphql import Reply

#: how far our estimate of the server's time may differ from the poller's
_CLOCKS = timedelta(seconds=3)


def refused(run: Run, reason: str) -> Answer:
    """REFUSED, with the run as it stands."""
    return Answer(verdict=Verdict.REFUSED, reason=reason, state=run.to_state())


def refused_since(run: Run) -> Answer:
    """REFUSED, since what stands there is the attempt of a later claim."""
    return replace(refused(run, f"the run is {run.state}, claimed by somebody else since"), claimed_since=True)


def answer_without_write(run: Run | None, call: str, now: datetime) -> Answer | None:
    """The answer for a run that needs no write: gone, ours already, or not to be had; None for a run to be claimed."""
    if run is None:
        return Answer(verdict=Verdict.REFUSED, reason="the run does not exist any more", gone=True)
    if run.claimed_by(call):
        return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
    late = run.state == "Running" and any(task.due(now) for task in run.tasks)
    if late and any(task.state == "Running" for task in run.tasks):
        return refused(run, "another task of the run is Running: its process is left alone")
    if run.state != "Scheduled" and not late:
        return refused(run, f"the run is {run.state}, not to be claimed")
    if not late and run.start_time is not None and run.start_time > now + _CLOCKS:
        return refused(run, "the run has been put off")
    return None


def answer_of_mutation(changes: Sequence[Change], reply: Reply) -> Answer:
    """ACCEPTED, or UNSURE with the reason, since only the run itself can tell what a refusal means.

    For a run that was Scheduled the write of its own state decides; for a late retry one accepted task is enough.
    """
    deciding = [change for change in changes if change.target == "flow_run_id"] or list(changes)
    reasons = []
    for change in deciding:
        error = reply.error_of(change.alias)
        result = reply.data.get(change.alias)
        states = result.get("states") if isinstance(result, Mapping) else None
        status = states[0].get("status") if isinstance(states, list) and states else None
        if error is None and status == "SUCCESS":
            return Answer(verdict=Verdict.ACCEPTED)
        reasons.append(error.message if error is not None else f"the API answers {status}")
    return Answer(verdict=Verdict.UNSURE, reason="; ".join(reasons)[:300])


def answer_of_run(run_id: str, run: Run | None, call: str, reason: str = "") -> Answer:
    """Whether this call has the run, by its row; `reason` is what the API said of the write, if it refused one."""
    if run is None:
        return Answer(verdict=Verdict.REFUSED, reason=f"the run {run_id} does not exist any more", gone=True)
    if run.claimed_by(call):
        return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
    return refused(run, reason or f"the run is {run.state}, not claimed by this call")
