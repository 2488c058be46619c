"""Orders: what people want of single runs at a Prefect 1 API."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from flowfleet.api.client import Answer, Mark, RunState, StateType, Verdict
from flowfleet.api.found import FoundRuns, namesakes, with_part
from flowfleet.api.prefect1.answers import refused
from flowfleet.api.prefect1.changes import Change, of_run, of_task
from flowfleet.api.prefect1.runs import Runs, literal
from flowfleet.api.prefect1.states import SUBMITTED, THEIRS, UNFINISHED, WAITING, Run, Stamp, Task, written
from flowfleet.api.prefect1.tenants import Tenants
from flowfleet.api.prefect1.writes import Writes
from flowfleet.api.transport.reading import reading, rows
from flowfleet.api.transport.session import ASKED_TRIES
from flowfleet.errors import ApiError
from flowfleet.flow_run import ID_PART, UUID, Route

_PAGE = 200
_MOST_TASKS = 500
#: states in which a task run keeps a restarted flow run from running it again
_UNDONE = ("Failed", "TriggerFailed", "TimedOut", "ValidationFailed", "Cancelled", "Running", SUBMITTED)


@dataclass(frozen=True)
class Orders:
    """The orders of people. Thread-safe, since it keeps nothing."""

    runs: Runs
    writes: Writes
    tenants: Tenants

    def under_cancel(self, runs: Mapping[str, Route]) -> dict[str, RunState]:
        ids = sorted(runs)
        found: dict[str, RunState] = {}
        for start in range(0, len(ids), _PAGE):
            where = {"id": {"_in": ids[start : start + _PAGE]}, "state": {"_in": ["Cancelling", "Cancelled"]}}
            found |= {run.run_id: run.to_state() for run in self.runs.where(where, "")}
        return found

    def cancel(self, run_id: str, message: str) -> Answer:
        # the server's own order: Cancelling while its engine runs, else Cancelled at once; it takes no message
        del message
        try:
            run = self.runs.one(run_id)
            if run.kind.terminal and run.kind is not StateType.CANCELLED:
                return refused(run, f"the run is {run.state} already")
            if run.kind not in (StateType.CANCELLING, StateType.CANCELLED):
                order = literal({"flow_run_id": run_id})
                self.runs.ask(f"mutation {{ cancel_flow_run(input: {order}) {{ state }} }}", "cancel_flow_run")
                run = self.runs.one(run_id)
        except ApiError as error:
            return Answer.to_error(error)
        if run.kind in (StateType.CANCELLING, StateType.CANCELLED):
            return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
        return refused(run, f"the run is {run.state} meanwhile")

    def restart(self, run_id: str, message: str, mark: Mark, only: Collection[StateType] = ()) -> Answer:
        # an engine runs again only those tasks that have no end, so what has failed begins anew, as by the server's
        # own Restart
        again, before = str(uuid.uuid4()), list[Run]()

        def changes(run: Run) -> Answer | list[Change]:
            # once written it may be claimed, and even begin, before it is read again
            if before and not run.kind.terminal and (run.version or 0) > (before[0].version or 0):
                return Answer(verdict=Verdict.ACCEPTED, state=run.to_state())
            if (not run.kind.terminal and run.state not in WAITING) or (only and run.kind not in only):
                return refused(run, f"the run is {run.state}")
            before.append(run)
            done = Stamp(fleet=mark.fleet, call=again, version=run.version, done=again)
            due = written("Scheduled", message, done, start_time=self.writes.now().isoformat())
            pending = written("Pending", message)
            undone = [of_task(task, pending, f"t{number}") for number, task in enumerate(self._undone(run))]
            return [*undone, of_run(run, due)]

        return self.writes.fence.write(run_id, changes, kinds=THEIRS)

    def _undone(self, run: Run) -> list[Task]:
        """The task runs of a run that has ended which are to run again; none of one that only waits."""
        if not run.kind.terminal:
            return []
        where = literal({"state": {"_in": list(_UNDONE)}})
        fields = f"id task_runs(where: {where}, limit: {_MOST_TASKS}) {{ id version state serialized_state }}"
        answer = self.runs.select("flow_run", {"id": {"_eq": run.run_id}}, fields)
        with reading("for the tasks of a run"):
            return [Task.read(task) for row in answer for task in row["task_runs"]]

    def find(self, text: str) -> FoundRuns:
        part = text.lower()
        if UUID.fullmatch(part):
            return FoundRuns(self._names({"id": {"_eq": part}}))
        found = namesakes(lambda limit: self._names({"name": {"_eq": text}}, "{scheduled_start_time: desc}", limit))
        if found.names or not ID_PART.fullmatch(part):
            return found
        return with_part(part, self._unfinished)

    def _unfinished(self, but: Collection[str], limit: int) -> dict[str, str]:
        # those that are due first
        others: dict[str, Any] = {"id": {"_nin": list(but)}} if but else {}
        return self._names({"state": {"_in": sorted(UNFINISHED)}, **others}, "{scheduled_start_time: asc}", limit)

    def _names(self, where: Mapping[str, Any], order: str = "", limit: int | None = None) -> dict[str, str]:
        ours = {"tenant_id": {"_in": self.tenants.all()}, **where}
        answer = self.runs.select("flow_run", ours, "id name", order=order, limit=limit, tries=ASKED_TRIES)
        with reading("for runs"):
            return {str(run["id"]): str(run["name"] or "") for run in rows(answer)}
