"""Runs: reading flow runs, their tasks and their histories from a Prefect 1 API."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flowfleet.api.prefect1.graphql import GraphQL, QueryRejected
from flowfleet.api.prefect1.states import SUBMITTED, WAITING, Run
from flowfleet.api.transport.reading import Json, reading, rows
from flowfleet.api.transport.session import ASKED_TRIES, TRIES
from flowfleet.errors import ApiRejected, ApiUnavailable, RunGone

_FIELDS = "id tenant_id name version state serialized_state state_timestamp scheduled_start_time labels heartbeat"
_TASK_FIELDS = "id version state serialized_state"
_STATE_FIELDS = "version state serialized_state"
#: states of open tasks: these tell whether a run comes back by itself, and what a dead process has left behind
_OPEN = (*sorted(WAITING), SUBMITTED, "Running")
#: the most tasks that are read of one run, and the most runs in one request
_MOST_TASKS = 500
_PAGE = 100


def literal(value: Any) -> str:
    """A JSON value as GraphQL writes it in a query: keys without quotation marks.

    Where-clauses are written into the query, as the 1.x client does: their variables would need the names that the
    server's database gives to its types.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    if isinstance(value, datetime):
        return json.dumps(value.isoformat())
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Runs:
    """The reader of runs. Thread-safe, since it keeps nothing."""

    graphql: GraphQL

    def one(self, run_id: str, extra: str = "") -> Run:
        """A run with its open tasks; raises `RunGone`."""
        found = self.many([run_id], extra)
        if run_id not in found:
            raise RunGone(f"the run {run_id} does not exist any more")
        return found[run_id]

    def many(self, run_ids: Iterable[str], extra: str = "") -> dict[str, Run]:
        """Runs by their ids; one that is left out does not exist."""
        ids = list(dict.fromkeys(run_ids))
        found: dict[str, Run] = {}
        for start in range(0, len(ids), _PAGE):
            where = {"id": {"_in": ids[start : start + _PAGE]}}
            found |= {run.run_id: run for run in self.where(where, _open_tasks() + extra)}
        return found

    def where(self, where: Mapping[str, Any], extra: str, *, order: str = "", limit: int | None = None) -> list[Run]:
        """Runs by any condition; `extra` are more fields to read of each run."""
        answer = self.select("flow_run", where, f"{_FIELDS} {extra}", order=order, limit=limit)
        with reading("for runs"):
            return [Run.read(row) for row in rows(answer)]

    def versions(self, run_id: str, after: int) -> Sequence[Json]:
        """The states of a run that were written after a version of it, the oldest first."""
        since = literal({"version": {"_gt": after}})
        states = f"states(where: {since}, order_by: {{version: asc}}) {{ {_STATE_FIELDS} }}"
        answer = self.select("flow_run", {"id": {"_eq": run_id}}, f"id {states}")
        with reading("for the history of a run"):
            found: list[Json] = [state for row in rows(answer) for state in rows(row["states"])]
        return found

    def select(
        self,
        table: str,
        where: Mapping[str, Any],
        fields: str,
        *,
        order: str = "",
        limit: int | None = None,
        tries: int = TRIES,
    ) -> Any:
        """The rows of a table by any condition; errors are those of `ask`."""
        arguments = {"where": literal(where), "order_by": order, "limit": limit}
        given = ", ".join(f"{name}: {value}" for name, value in arguments.items() if value)
        return self.ask(f"query {{ {table}({given}) {{ {fields} }} }}", table, tries=tries)

    def ask(self, query: str, field: str, *, tries: int = TRIES) -> Any:
        """The answer for one root field of a query; raises `ApiRejected` when the API refuses to tell it."""
        reply = self.graphql.ask(query, tries=tries)
        error = reply.error_of(field)
        if error is not None:
            raise ApiRejected(f"{self.graphql.session.address.api} refuses to tell {field}: {error.message}")
        if field not in reply.data:
            # neither told nor refused, which GraphQL does not have: something on the way broke, and that is no "no"
            raise ApiUnavailable(f"{self.graphql.session.address.api} gives half an answer, {field} is not in it")
        return reply.data[field]

    def ask_first(self, document: str, field: str) -> Any:
        """The answer to a question at the start; an error in it may pass, so it raises `ApiUnavailable`: ask again."""
        try:
            reply = self.graphql.ask(document, tries=ASKED_TRIES)
        except QueryRejected as rejected:
            raise ApiUnavailable(str(rejected), answered=True) from rejected
        error = reply.error_of(field)
        if error is not None or field not in reply.data:
            why = error.message if error else "nothing"
            raise ApiUnavailable(f"{self.graphql.session.address.api} answers {field} with: {why}", answered=True)
        return reply.data[field]


def _open_tasks() -> str:
    where = literal({"state": {"_in": list(_OPEN)}})
    return f"task_runs(where: {where}, limit: {_MOST_TASKS}) {{ {_TASK_FIELDS} }} "


def states_since(version: int | None) -> str:
    """The query's part for the states of a run that were written after a version of it; empty for None."""
    if version is None:
        return ""
    return f"states(where: {literal({'version': {'_gt': version}})}) {{ {_STATE_FIELDS} }} "


def last_states(number: int) -> str:
    """The query's part for the newest states of a run, to be read with the run itself."""
    return f"states(order_by: {{version: desc}}, limit: {number}) {{ {_STATE_FIELDS} }} "


def late_tasks(before: datetime) -> str:
    """The query's part for the tasks of a run that are due: `get_runs_in_queue` hands out a run for these, too."""
    where = literal({"state_start_time": {"_lte": before}})
    return f"task_runs(where: {where}, limit: {_MOST_TASKS}) {{ {_TASK_FIELDS} }} "


def claimable(run_ids: Collection[str], before: datetime) -> dict[str, Any]:
    """The condition for runs that an agent may take: those that are Scheduled, and Running ones with a due task.

    Any other run is somebody's already; the server lists it all the same (source: prefect 1.4.1 and Prefect Server).
    """
    late = {"state": {"_eq": "Running"}, "task_runs": {"state_start_time": {"_lte": before}}}
    return {"id": {"_in": sorted(run_ids)}, "_or": [{"state": {"_eq": "Scheduled"}}, late]}
