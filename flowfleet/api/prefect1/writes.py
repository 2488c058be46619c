"""Writes: each state that flowfleet writes at a Prefect 1 API, and the proof that the state stands there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict, unguarded
from flowfleet.api.prefect1.answers import (
    answer_of_mutation,
    answer_of_run,
    answer_without_write,
    refused,
    refused_since,
)
from flowfleet.api.prefect1.changes import Change, claiming, ends_of_tasks, of_run, of_task
from flowfleet.api.prefect1.fence import Fence
from flowfleet.api.prefect1.runs import Runs
from flowfleet.api.prefect1.states import (
    CANCELS,
    PUT_OFF,
    SUBMITTED,
    THEIRS,
    WAITING,
    Run,
    Stamp,
    before_submitted,
    claimed_since,
    kind_of,
    plain,
    scheduled_again,
    stamp_of,
    written,
)
from flowfleet.errors import ApiError
from flowfleet.flow_run import FlowRun, again_id, report_id

#: the most runs that one claim may carry
CLAIM_LIMIT = 10
#: a row this old is read again before it is written over: a cancel may have come
_FRESH_SECONDS = 1.0
#: a state that was read so recently need not be read again before a run is launched
_JUST_READ_SECONDS = 2.0
_ENDS = (StateType.CRASHED, StateType.FAILED, StateType.CANCELLED)

Answers = dict[str, Answer]


@dataclass
class Writes:
    """The writer of states: claim, hand back, report an end, reinstate."""

    runs: Runs
    fence: Fence
    #: the id of the agent that signs claims
    signer: Callable[[], str | None]
    clock: Callable[[], float]
    #: the server's time
    now: Callable[[], datetime]
    #: hit between reading a run and writing its end or its way back
    between: Callable[[], object] = unguarded
    #: the rows that were read lately and when, by run id
    _seen: dict[str, tuple[float, Run]] = field(default_factory=dict, init=False)

    def note(self, runs: Sequence[Run]) -> None:
        """Remember these rows, which were read just now."""
        now = self.clock()
        if len(self._seen) > 1000:
            self._seen = {key: value for key, value in self._seen.items() if now - value[0] < _JUST_READ_SECONDS}
        self._seen.update((run.run_id, (now, run)) for run in runs)

    def _lately(self, run_id: str, seconds: float) -> Run | None:
        at, run = self._seen.pop(run_id, (float("-inf"), None))
        return run if self.clock() - at < seconds else None

    def read(self, run_id: str, extra: str = "") -> Run:
        """Read a run. A state of somebody else that our claim has covered is put back first. Raises `RunGone`."""
        return self.fence.read(run_id, extra)

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        return {run_id: run.to_state() for run_id, run in self.runs.many(run_ids).items()}

    # claiming

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> Answers:
        # of a run that is due for a late retry, its task runs are moved
        if len(runs) > CLAIM_LIMIT:
            raise ValueError(f"at most {CLAIM_LIMIT} runs in one claim, not {len(runs)}")
        if not runs:
            return {}
        try:
            rows, now = self._rows(runs), self.now()
            answers = {
                run.run_id: answer for run in runs if (answer := answer_without_write(rows.get(run.run_id), call, now))
            }
            changes = {
                run.run_id: claiming(rows[run.run_id], number, stamp_of(mark, call, rows[run.run_id]), now)
                for number, run in enumerate(runs)
                if run.run_id not in answers
            }
            if changes:
                reply = self.fence.send([each for own in changes.values() for each in own], agent=self.signer())
                answers |= {run_id: answer_of_mutation(own, reply) for run_id, own in changes.items()}
            return answers | self._read_refused(answers, call)
        except ApiError as error:
            return {run.run_id: Answer.to_error(error) for run in runs}

    def _rows(self, runs: Sequence[FlowRun]) -> dict[str, Run]:
        rows = {run.run_id: row for run in runs if (row := self._lately(run.run_id, _FRESH_SECONDS)) is not None}
        # a listing has only the tasks that are late, but for a late retry the other tasks count too
        rows = {run_id: row for run_id, row in rows.items() if row.state == "Scheduled"}
        missing = [run.run_id for run in runs if run.run_id not in rows]
        if missing:
            rows |= self.runs.many(missing)
        return rows

    def _read_refused(self, answers: Mapping[str, Answer], call: str) -> Answers:
        """Read the runs whose claim was refused: the refusal may be of the repeat of a write that was carried out."""
        unsure = [run_id for run_id, answer in answers.items() if answer.verdict is Verdict.UNSURE]
        if not unsure:
            return {}
        there = self.runs.many(unsure)
        return {run_id: answer_of_run(run_id, there.get(run_id), call, answers[run_id].reason) for run_id in unsure}

    def settle(self, run_id: str, call: str) -> Answer:
        return self._claimed(run_id, call)

    def _claimed(self, run_id: str, call: str, just_read: Run | None = None) -> Answer:
        try:
            return answer_of_run(run_id, just_read or self.read(run_id), call)
        except ApiError as error:
            return Answer.to_error(error)

    # launching and handing back

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        # there is no Launching, so nothing is written and it is only asked whether the run is still Submitted by our
        # call: what the engine is to find is Submitted, and a second Submitted would be refused
        del claim, mark
        return self._claimed(run_id, call, self._lately(run_id, _JUST_READ_SECONDS))

    def started(self, run_id: str, mark: Mark, process: int | str) -> None:
        # nothing to do: only the line on the run's log page tells, and the worker writes that
        pass

    def started_line(self, mark: Mark, process: int | str) -> str:
        # the words of Prefect 1's own agents
        del mark
        kind = "PID" if isinstance(process, int) else "Container ID"
        return f"Submitted for execution: {kind}: {process}"

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        # there is no Launching: a run that its engine has begun is Running and stays; the task runs of a late retry go
        # back to what they were
        del never_began
        done = str(uuid.uuid5(uuid.UUID(call), f"{run_id} handed back"))

        def changes(run: Run) -> Answer | list[Change]:
            stamp = Stamp.read(run.serialized)
            if stamp is not None and stamp.done == done:
                return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
            if not run.claimed_by(call):
                return refused(run, f"the run is {run.state}, not ours")
            back = [
                of_task(task, before, f"t{number}")
                for number, task in enumerate(run.tasks)
                if task.stamp is not None and task.stamp.call == call and (before := before_submitted(task.serialized))
            ]
            if run.state == SUBMITTED:
                again = Stamp(fleet=mark.fleet, call=call, version=run.version, done=done)
                back.append(of_run(run, scheduled_again(run, due, again, reason)))
            return back

        return self.fence.write(run_id, changes, kinds=THEIRS, before=self.between)

    def claimed_since(self, run_id: str, claim: str) -> bool:
        return claimed_since(self.runs.versions(run_id, 0), claim)

    def _overtaken(self, run: Run, claim: str | None) -> Answer | None:
        """The refusal of a write over another attempt's state; None when what stands there is of this claim."""
        return refused_since(run) if claim is not None and self.claimed_since(run.run_id, claim) else None

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
        # also for its tasks that were under way
        if kind not in _ENDS:
            raise ValueError(f"{kind} is no end that flowfleet reports")
        told = report_id(claim, kind) if claim else _told(run_id, kind, message)

        def changes(run: Run) -> Answer | list[Change]:
            stamp = Stamp.read(run.serialized)
            state = run.to_state()
            if state.kind.terminal:
                ours = stamp is not None and stamp.done == told
                verdict = Verdict.ACCEPTED if ours else Verdict.REFUSED
                return Answer(verdict=verdict, reason=f"the run is {run.state} already", state=state)
            if run.state in WAITING:
                return refused(run, f"the run is {run.state}, it goes on")
            if overtaken := self._overtaken(run, claim):
                return overtaken
            # a cancel that came after the process was looked at ends as Cancelled too, whatever the process died of
            name = (
                "Cancelled"
                if StateType.CANCELLED in (kind, state.kind) or state.kind is StateType.CANCELLING
                else "Failed"
            )
            end = written(
                name, message, Stamp(fleet=mark.fleet, call=told, claim=claim or "", version=run.version, done=told)
            )
            # the flow run first: a task that ends under a run that goes on would look as if it had ended by itself
            return [of_run(run, end), *ends_of_tasks(run.tasks, written(name, message))]

        def before() -> None:
            self.between()
            still()

        answer = self.fence.write(run_id, changes, kinds=PUT_OFF, before=before)
        if answer.verdict is Verdict.REFUSED and answer.being_cancelled:
            # the cancel that came meanwhile was put back and waits for its end, so the end is reported once more
            return replace(answer, verdict=Verdict.UNSURE)
        return answer

    def fail_waiting(self, run_id: str, message: str, mark: Mark) -> Answer:
        """Write Failed to a run that waits for its start time and that nobody has taken, as an agent by hand may."""
        told = _told(run_id, StateType.FAILED, message)

        def changes(run: Run) -> Answer | list[Change]:
            stamp = Stamp.read(run.serialized)
            if run.state == "Failed" and stamp is not None and stamp.done == told:
                return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
            if run.state not in WAITING:
                return refused(run, f"the run is {run.state} meanwhile")
            end = Stamp(fleet=mark.fleet, call=told, version=run.version, done=told)
            return [of_run(run, written("Failed", message, end))]

        return self.fence.write(run_id, changes, kinds=THEIRS)

    def run_again(self, run_id: str, claim: str, message: str, mark: Mark) -> Answer:
        again = again_id(claim, run_id)

        def changes(run: Run) -> Answer | list[Change]:
            stamp = Stamp.read(run.serialized)
            if stamp is not None and stamp.done == again:
                return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
            if run.kind not in (StateType.RUNNING, StateType.PENDING):
                return refused(run, f"the run is {run.state}")
            if overtaken := self._overtaken(run, claim):
                return overtaken
            done = Stamp(fleet=mark.fleet, call=again, version=run.version, done=again)
            due = written("Scheduled", message, done, start_time=self.now().isoformat())
            # the tasks first: an engine that comes at once must find none of them under way
            return [*ends_of_tasks(run.tasks, written("Pending", message)), of_run(run, due)]

        return self.fence.write(run_id, changes, kinds=THEIRS, before=self.between)

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        def changes(run: Run) -> Answer | list[Change]:
            stamp = Stamp.read(run.serialized)
            if run.state != "Scheduled" and stamp is not None and stamp.done == claim:
                return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
            if run.state != "Scheduled" or (stamp is not None and stamp.done):
                return refused(run, f"the run is {run.state}")
            versions = self.runs.versions(run_id, 0)
            stood_before = [str(row.get("state")) for row in versions if row.get("state") != "Scheduled"]
            if stood_before and kind_of(stood_before[-1]).terminal:
                return refused(run, f"the run was restarted after it was {stood_before[-1]}")
            before = [row for row in versions if row.get("state") in ("Running", "Cancelling")]
            stood = dict(before[-1]["serialized_state"]) if before else written("Running", "Running flow.")
            back = Stamp(fleet=mark.fleet, call=claim, claim=claim, version=run.version, done=claim)
            return [of_run(run, {**stood, "context": {**(stood.get("context") or {}), **back.to_context()}})]

        return self.fence.write(run_id, changes, kinds=CANCELS)


def _told(run_id: str, kind: StateType, message: str) -> str:
    """The id of a reported end, by which its repeat is recognised."""
    return str(uuid.uuid5(uuid.UUID(run_id), plain(f"{kind} {message}")))
