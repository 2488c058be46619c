"""Changes: the states to be written at a Prefect 1 API, and the one mutation that writes many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowfleet.api.prefect1.states import SUBMITTED, Run, Stamp, Task, before_submitted, submitted


@dataclass(frozen=True, kw_only=True)
class Change:
    """One state to be written, under an alias of its own: a list of states fails as a whole and applies the rest."""

    alias: str
    target: str  # flow_run_id | task_run_id
    item: str  # the id of that flow run or task run
    version: int | None
    state: Mapping[str, Any]

    @property
    def field(self) -> str:
        """The root field of GraphQL that writes this state."""
        return "set_flow_run_states" if self.target == "flow_run_id" else "set_task_run_states"


def mutation(changes: Sequence[Change]) -> tuple[str, dict[str, Any]]:
    """The GraphQL document that writes these changes, and its variables."""
    head = ", ".join(f"${change.alias}: {change.field}_input!" for change in changes)
    body = " ".join(
        f"{change.alias}: {change.field}(input: ${change.alias}) {{ states {{ id status message }} }}"
        for change in changes
    )
    inputs = {
        change.alias: {"states": [{change.target: change.item, "version": change.version, "state": dict(change.state)}]}
        for change in changes
    }
    return f"mutation({head}) {{ {body} }}", inputs


def of_run(run: Run, state: Mapping[str, Any], alias: str = "r0") -> Change:
    """The change that writes a state of the flow run itself."""
    return Change(alias=alias, target="flow_run_id", item=run.run_id, version=run.version, state=state)


def of_task(task: Task, state: Mapping[str, Any], alias: str) -> Change:
    """The change that writes a state of one of its task runs."""
    return Change(alias=alias, target="task_run_id", item=task.task_run_id, version=task.version, state=state)


def claiming(run: Run, number: int, stamp: Stamp, now: datetime) -> list[Change]:
    """The changes that claim a run: Submitted for the run itself, if it is Scheduled, and for its due tasks."""
    changes = []
    if run.state == "Scheduled":
        changes.append(of_run(run, submitted(run.serialized, stamp), alias=f"r{number}"))
    changes += [
        of_task(task, submitted(before, stamp, task=True), f"r{number}t{place}")
        for place, task in enumerate(run.tasks)
        if (before := _claimable(task, stamp, now)) is not None
    ]
    return changes


def _claimable(task: Task, stamp: Stamp, now: datetime) -> Mapping[str, Any] | None:
    """The state that Submitted is written over, None for a task that is not to be claimed.

    It is that of a task that is due, or the one before an earlier claim of this fleet: the ledger has granted the run
    to this claim, so the earlier one is dead.
    """
    if task.due(now):
        return task.serialized
    if task.stamp is not None and task.stamp.fleet == stamp.fleet and task.stamp.call != stamp.call:
        return before_submitted(task.serialized)
    return None


def ends_of_tasks(tasks: Sequence[Task], state: Mapping[str, Any]) -> list[Change]:
    """The changes that write this end to the tasks that are under way."""
    # left Running they would keep a restart from running them again
    return [
        of_task(task, state, f"t{number}") for number, task in enumerate(tasks) if task.state in ("Running", SUBMITTED)
    ]
