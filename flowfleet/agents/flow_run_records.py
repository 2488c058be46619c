"""Flow run records: flow runs as the methods of an agent get them, read by attribute or by item."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from flowfleet.api.client import ApiClient
from flowfleet.errors import ApiRejected, RunGone

#: a due retry is first left to the run's own process for so long
_OWN_PROCESS_SECONDS = 3
#: a run that is late by more is due by any clock
_LARGEST_SKEW = timedelta(minutes=10)
#: the API tells whole seconds, so a smaller skew says nothing
_SKEW_NOISE_SECONDS = 1.5
_FIELDS = (
    "id version state serialized_state parameters scheduled_start_time run_config name "
    "flow { id name environment storage version core_version } "
    "task_runs(where: {state_start_time: {_lte: %s}}) { id version task_id serialized_state }"
)


class FlowRunRecord(dict[str, Any]):
    """A JSON object whose keys are attributes too; the objects inside it are records as well."""

    @classmethod
    def of(cls, value: Any) -> Any:
        """A copy of a JSON value in which every object is a record."""
        if isinstance(value, Mapping):
            return cls({name: cls.of(item) for name, item in value.items()})
        if isinstance(value, list | tuple):
            return [cls.of(item) for item in value]
        return value

    def copy(self) -> "FlowRunRecord":
        """A shallow copy, which is a record too."""
        return type(self)(self)

    def to_dict(self) -> dict[str, Any]:
        """A copy of plain dicts."""
        plain: dict[str, Any] = json.loads(json.dumps(self))
        return plain

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this record has no {name!r}; it has {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"this record has no {name!r}") from None


class GraphQLQueries(Protocol):
    """The part of the GraphQL client that this file needs."""

    @property
    def key(self) -> str | None:
        """The key that is sent now; a secret. None where there is none."""

    def ask(self, document: str) -> Any:
        """Send a document; `.data` of the reply has the answers by root field."""


def graphql_of(client: ApiClient) -> GraphQLQueries:
    """The GraphQL client in this client: only that of Prefect 1 has one, and only Prefect 1 has agents."""
    found: GraphQLQueries = client.graphql  # type: ignore[attr-defined]
    return found


def fetch(graphql: GraphQLQueries, run_ids: Iterable[str]) -> list[FlowRunRecord]:
    """These flow runs with all that the methods of an agent may look at, by the time that their states name.

    One without a time is due now, so it comes after all late ones.
    """
    ids, now = list(run_ids), datetime.now(UTC)
    if not ids:
        return []
    until = now - timedelta(seconds=_OWN_PROCESS_SECONDS)
    fields = _FIELDS % json.dumps(until.isoformat())
    reply = graphql.ask(f"query {{ flow_run(where: {{id: {{_in: {json.dumps(ids)}}}}}) {{ {fields} }} }}")
    rows = reply.data.get("flow_run")
    if rows is None:
        raise ApiRejected(f"the API did not tell of the flow runs {', '.join(ids)}")
    return sorted(FlowRunRecord.of(rows), key=lambda row: due_of(row) or now)


def fetch_one(graphql: GraphQLQueries, run_id: str) -> FlowRunRecord:
    """One flow run; raises `RunGone` when it does not exist any more."""
    found = fetch(graphql, [run_id])
    if not found:
        raise RunGone(f"the flow run {run_id} does not exist any more")
    return found[0]


def due_of(row: Mapping[str, Any]) -> datetime | None:
    """The time when a run is to start, as its state says; None where the state has no time that can be read."""
    state = row.get("serialized_state") or {}
    text = state.get("start_time") if isinstance(state, Mapping) else None
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def seconds_until_due(row: Mapping[str, Any], skew: Callable[[], float]) -> float:
    """How long it is until a run is due by the server's clock; `skew` tells that clock's difference to ours."""
    due = due_of(row)
    if due is None or due < datetime.now(UTC) - _LARGEST_SKEW:
        return 0.0
    seconds = skew()
    return (due - datetime.now(UTC)).total_seconds() - (seconds if abs(seconds) > _SKEW_NOISE_SECONDS else 0.0)
