"""Mutations: what a client may change, with the inputs and outputs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.prefect1_api.documents import Field
from tests.prefect1_api.errors import Invalid, Refusal
from tests.prefect1_api.filters import listed
from tests.prefect1_api.flows import unpacked
from tests.prefect1_api.store import Row

if TYPE_CHECKING:
    from tests.prefect1_api.api import Prefect1Api


Given = Mapping[str, Any]
#: whatever the case of their names
Headers = Mapping[str, str]
#: answers all outputs, or the only one; nothing means that it was done
Action = Callable[["Prefect1Api", Given, Headers], Any]


@dataclass(frozen=True)
class Mutation:
    """Inputs (True: must be given), outputs, and what it does."""

    inputs: dict[str, bool]
    #: of each thing in the one list among the inputs
    each: dict[str, bool]
    outputs: dict[str, frozenset[str]]
    action: Action

    def done(self, api: Prefect1Api, field: Field, headers: Headers) -> dict[str, Any]:
        """Do it, and answer what was asked of its outputs."""
        payload = self.action(api, field.arguments["input"], headers)
        if len(self.outputs) == 1:
            payload = dict.fromkeys(self.outputs, True if payload is None else payload)
        answer = {}
        for each in field.selection:
            value = payload[each.name]
            if each.selection:
                value = [{inner.alias: row.get(inner.name) for inner in each.selection} for row in value]
            answer[each.alias] = value
        return answer


def checked(field: Field) -> Mutation:
    """The mutation of this field, if its input and selection are in the schema."""
    found = MUTATIONS.get(field.name)
    if found is None:
        raise Invalid(f'Cannot query field "{field.name}" on type "Mutation".')
    if set(field.arguments) != {"input"} or not isinstance(field.arguments["input"], Mapping):
        raise Invalid(f'Field "{field.name}" takes one argument, input.')
    if (declared := field.declared.get("input")) and declared.rstrip("!") != f"{field.name}_input":
        raise Invalid(f'Variable of type "{declared}" where "{field.name}_input!" is expected.')
    given = field.arguments["input"]
    _check_input(f"{field.name}_input", given, found.inputs)
    if found.each:
        for each in listed(next(iter(given.values()))):
            _check_input(f"each of {field.name}_input", each, found.each)
    if not field.selection:
        raise Invalid(f'Field "{field.name}" must have a selection of subfields.')
    for each in field.selection:
        inner = {name.name for name in each.selection}
        if each.name not in found.outputs or inner - found.outputs[each.name]:
            raise Invalid(f'Cannot query field "{each.name}" ({", ".join(sorted(inner))}) on {field.name}_payload.')
        if bool(found.outputs[each.name]) != bool(inner):
            raise Invalid(f'Field "{each.name}" of {field.name}_payload: subfields?')
    return found


def _check_input(what: str, given: Any, known: Mapping[str, bool]) -> None:
    if not isinstance(given, Mapping):
        raise Invalid(f"{what} is an object, not {given!r:.100}")
    if unknown := set(given) - set(known):
        raise Invalid(f"{what} has no {', '.join(sorted(unknown))}")
    if absent := {name for name, must in known.items() if must and given.get(name) is None}:
        raise Invalid(f"{what} needs {', '.join(sorted(absent))}")


# what is done


def _create_flow(api: Prefect1Api, given: Given, headers: Headers) -> str:
    flow = given["serialized_flow"]
    return api.flows.create(given["project_id"], unpacked(flow) if isinstance(flow, str) else flow, given)


def _set_schedule_active(api: Prefect1Api, given: Given, headers: Headers) -> None:
    api.flows.get(given["flow_id"])
    api.store.update("flow", given["flow_id"], is_schedule_active=True)


def _register_agent(api: Prefect1Api, given: Given, headers: Headers) -> str:
    """The same tenant, name, type, core version and labels are the same agent [srv]."""
    facts = {name: given.get(name) for name in ("tenant_id", "name", "type", "agent_config_id")}
    facts |= {
        "core_version": headers.get("X-PREFECT-CORE-VERSION"),
        "labels": sorted(listed(given.get("labels") or [])),
    }
    known = api.store.where("agent", **facts)
    return str(known[0]["id"]) if known else api.store.insert("agent", **facts)


def _get_runs_in_queue(api: Prefect1Api, given: Given, headers: Headers) -> list[str]:
    if agent_id := headers.get("X-PREFECT-AGENT-ID"):
        api.store.update("agent", agent_id, last_queried=api.clock())
    labels = listed(given.get("labels") or [])
    return api.runs.queue(given["tenant_id"], labels, given.get("before") or api.clock())


def _create_flow_run(api: Prefect1Api, given: Given, headers: Headers) -> str:
    return api.runs.create(given.get("flow_id") or api.flows.newest(given.get("version_group_id") or ""), given)


def _set_states(api: Prefect1Api, given: Given, headers: Headers) -> list[dict[str, Any]]:
    """All of them are tried; one that is refused takes the whole answer with it, and the others stay done [srv]."""
    answers, refused = [], []
    for each in listed(given["states"]):
        try:
            if "flow_run_id" in each:
                agent_id = headers.get("X-PREFECT-AGENT-ID")
                run = api.writer.write_flow(each["flow_run_id"], each["state"], each.get("version"), agent_id)
            else:
                run = api.writer.write_task(each["task_run_id"], each["state"], each.get("version"))
        except Refusal as error:
            refused.append(error)
        else:
            answers.append({"id": run["id"], "status": "SUCCESS", "message": None})
    if refused:
        raise refused[0]
    return answers


def _task_run(api: Prefect1Api, given: Given, headers: Headers) -> Row:
    index = given.get("map_index")
    return api.runs.task_run_of(given["flow_run_id"], given["task_id"], -1 if index is None else index)


def _write_run_logs(api: Prefect1Api, given: Given, headers: Headers) -> None:
    """A list, or the one object that `prefect execute flow-run` sends when it cannot load a flow [run]."""
    for each in listed(given["logs"]):
        run = api.runs.get(each.get("flow_run_id"))
        entry = {name: each.get(name) for name in _LOG.split()} | {"tenant_id": run["tenant_id"]}
        api.store.insert("log", **entry | {"timestamp": each.get("timestamp") or api.clock()})


# the schema


def _mutation(inputs: str, outputs: str, action: Action, *, each: str = "") -> Mutation:
    """`name!` must be given, outputs are `a b` or `list{a b}`."""
    names, _, inner = outputs.partition("{")
    shape = {name: frozenset(inner.rstrip("}").split()) for name in names.split()}
    return Mutation(_wanted(inputs), _wanted(each), shape, action)


def _wanted(names: str) -> dict[str, bool]:
    return {name.removesuffix("!"): name.endswith("!") for name in names.split()}


def _rename(table: str) -> Action:
    """The name of the row that `TABLE_id` names."""
    return lambda api, given, _: api.store.update(table, given[f"{table}_id"], name=given["name"])


_FLOW = "serialized_flow! project_id! version_group_id set_schedule_active description idempotency_key"
_RUN = (
    "flow_id version_group_id flow_run_name parameters context run_config labels scheduled_start_time idempotency_key"
)
_LOG = "flow_run_id task_run_id timestamp name level message info"
_STATUS = "states{id status message}"

MUTATIONS = {
    # registration
    "create_tenant": _mutation(
        "name! slug", "id", lambda api, given, _: api.add_tenant(given["name"], given.get("slug") or "")
    ),
    "create_project": _mutation(
        "name! tenant_id! description",
        "id",
        lambda api, given, _: api.flows.create_project(given["name"], given["tenant_id"], given.get("description")),
    ),
    "create_flow": _mutation(_FLOW, "id", _create_flow),
    "create_flow_from_compressed_string": _mutation(_FLOW, "id", _create_flow),
    "register_tasks": _mutation(
        "flow_id! serialized_tasks!",
        "success",
        lambda api, given, _: api.flows.add_tasks(given["flow_id"], listed(given["serialized_tasks"])),
    ),
    "register_edges": _mutation(
        "flow_id! serialized_edges!",
        "success",
        lambda api, given, _: api.flows.add_edges(given["flow_id"], listed(given["serialized_edges"])),
    ),
    "set_schedule_active": _mutation("flow_id!", "success", _set_schedule_active),
    # agents
    "register_agent": _mutation("type! name labels tenant_id! agent_config_id", "id", _register_agent),
    "get_runs_in_queue": _mutation("before labels tenant_id!", "flow_run_ids", _get_runs_in_queue),
    # runs
    "create_flow_run": _mutation(_RUN, "id", _create_flow_run),
    "cancel_flow_run": _mutation("flow_run_id!", "state", lambda api, given, _: api.runs.cancel(given["flow_run_id"])),
    "set_flow_run_states": _mutation("states!", _STATUS, _set_states, each="flow_run_id! version state!"),
    "set_task_run_states": _mutation("states!", _STATUS, _set_states, each="task_run_id! version state!"),
    "get_or_create_task_run_info": _mutation(
        "flow_run_id! task_id! map_index", "id version serialized_state", _task_run
    ),
    "set_task_run_name": _mutation("task_run_id! name!", "success", _rename("task_run")),
    "set_flow_run_name": _mutation("flow_run_id! name!", "success", _rename("flow_run")),
    "update_flow_run_heartbeat": _mutation(
        "flow_run_id!", "success", lambda api, given, _: api.heartbeat(given["flow_run_id"])
    ),
    "write_run_logs": _mutation("logs!", "success", _write_run_logs, each=_LOG),
}
