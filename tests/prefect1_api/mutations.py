"""Mutations: what a client may change, with the inputs and outputs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.prefect1_api.documents import Field
from tests.prefect1_api.errors import Invalid, Refusal
from tests.prefect1_api.filters import listed
from tests.prefect1_api.flows import unpacked

if TYPE_CHECKING:
    from tests.prefect1_api.api import Prefect1Api


@dataclass(frozen=True)
class Caller:
    """Who asks, by the headers."""

    agent_id: str | None
    core_version: str | None


Action = Callable[["Prefect1Api", Mapping[str, Any], Caller], dict[str, Any]]


@dataclass(frozen=True)
class Mutation:
    """Inputs (True: must be given), outputs, and what it does."""

    inputs: dict[str, bool]
    #: of each thing in the one list among the inputs
    each: dict[str, bool]
    outputs: dict[str, frozenset[str]]
    action: Action


MUTATIONS: dict[str, Mutation] = {}


def _wanted(names: str) -> dict[str, bool]:
    return {name.removesuffix("!"): name.endswith("!") for name in names.split()}


def mutation(inputs: str, outputs: str, each: str = "") -> Callable[[Action], Action]:
    """Register by the function's name; `name!` must be given, outputs are `a b` or `list{a b}`."""
    head, _, inner = outputs.partition("{")
    shape = {name: frozenset(inner.rstrip("}").split()) for name in head.split()}

    def register(action: Action) -> Action:
        MUTATIONS[action.__name__] = Mutation(_wanted(inputs), _wanted(each), shape, action)
        return action

    return register


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


def selected(field: Field, payload: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the payload."""
    answer = {}
    for each in field.selection:
        value = payload[each.name]
        if each.selection:
            value = [{inner.alias: row.get(inner.name) for inner in each.selection} for row in value]
        answer[each.alias] = value
    return answer


# registration


@mutation("name! slug", "id")
def create_tenant(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"id": api.store.insert("tenant", name=given["name"], slug=given.get("slug") or given["name"], settings={})}


@mutation("name! tenant_id! description", "id")
def create_project(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"id": api.flows.create_project(given["name"], given["tenant_id"], given.get("description"))}


def _create_flow(api: Prefect1Api, given: Mapping[str, Any], flow: Mapping[str, Any]) -> dict[str, Any]:
    made = api.flows.create(
        given["project_id"],
        flow,
        version_group_id=given.get("version_group_id"),
        idempotency_key=given.get("idempotency_key"),
        active=bool(given.get("set_schedule_active", True)),
        description=given.get("description"),
    )
    return {"id": made}


_FLOW = "serialized_flow! project_id! version_group_id set_schedule_active description idempotency_key"


@mutation(_FLOW, "id")
def create_flow(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return _create_flow(api, given, given["serialized_flow"])


@mutation(_FLOW, "id")
def create_flow_from_compressed_string(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return _create_flow(api, given, unpacked(given["serialized_flow"]))


@mutation("flow_id! serialized_tasks!", "success")
def register_tasks(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.flows.add_tasks(given["flow_id"], listed(given["serialized_tasks"]))
    return {"success": True}


@mutation("flow_id! serialized_edges!", "success")
def register_edges(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.flows.add_edges(given["flow_id"], listed(given["serialized_edges"]))
    return {"success": True}


@mutation("flow_id!", "success")
def set_schedule_active(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.flows.get(given["flow_id"])
    api.store.update("flow", given["flow_id"], is_schedule_active=True)
    return {"success": True}


# agents


@mutation("type! name labels tenant_id! agent_config_id", "id")
def register_agent(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """The same tenant, name, type, core version and labels are the same agent [srv]."""
    facts: dict[str, Any] = {
        "tenant_id": given["tenant_id"],
        "name": given.get("name"),
        "type": given["type"],
        "core_version": caller.core_version,
        "labels": sorted(listed(given.get("labels") or [])),
        "agent_config_id": given.get("agent_config_id"),
    }
    known = api.store.where("agent", **facts)
    return {"id": known[0]["id"] if known else api.store.insert("agent", **facts)}


@mutation("agent_id!", "success")
def delete_agent(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"success": api.store.delete("agent", given["agent_id"])}


@mutation("before labels tenant_id!", "flow_run_ids")
def get_runs_in_queue(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    if caller.agent_id:
        api.store.update("agent", caller.agent_id, last_queried=api.clock())
    labels = listed(given.get("labels") or [])
    return {"flow_run_ids": api.runs.queue(given["tenant_id"], labels, given.get("before") or api.clock())}


# runs


@mutation(
    "flow_id version_group_id flow_run_name parameters context run_config labels scheduled_start_time idempotency_key",
    "id",
)
def create_flow_run(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    flow_id = given.get("flow_id") or api.flows.newest(given.get("version_group_id") or "")
    return {"id": api.runs.create(flow_id, given)}


@mutation("flow_run_id!", "state")
def cancel_flow_run(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"state": api.runs.cancel(given["flow_run_id"])}


_STATUS = "states{id status message}"


def _each_state(given: Mapping[str, Any], write: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
    """All of them are tried; one that is refused takes the whole answer with it, and the others stay done [srv]."""
    answers, refused = [], []
    for each in listed(given["states"]):
        try:
            run = write(each)
        except Refusal as error:
            refused.append(error)
        else:
            answers.append({"id": run["id"], "status": "SUCCESS", "message": None})
    if refused:
        raise refused[0]
    return {"states": answers}


@mutation("states!", _STATUS, each="flow_run_id! version state!")
def set_flow_run_states(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    def write(each: Mapping[str, Any]) -> Mapping[str, Any]:
        return api.writer.write_flow(each["flow_run_id"], each["state"], each.get("version"), caller.agent_id)

    return _each_state(given, write)


@mutation("states!", _STATUS, each="task_run_id! version state!")
def set_task_run_states(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    def write(each: Mapping[str, Any]) -> Mapping[str, Any]:
        return api.writer.write_task(each["task_run_id"], each["state"], each.get("version"))

    return _each_state(given, write)


@mutation("flow_run_id! task_id! map_index", "id version serialized_state")
def get_or_create_task_run_info(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    index = given.get("map_index")
    return api.runs.task_run_of(given["flow_run_id"], given["task_id"], -1 if index is None else index)


@mutation("task_run_id! name!", "success")
def set_task_run_name(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.store.update("task_run", given["task_run_id"], name=given["name"])
    return {"success": True}


@mutation("flow_run_id! name!", "success")
def set_flow_run_name(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.store.update("flow_run", given["flow_run_id"], name=given["name"])
    return {"success": True}


@mutation("flow_run_id!", "success")
def update_flow_run_heartbeat(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    api.store.update("flow_run", given["flow_run_id"], heartbeat=api.clock())
    return {"success": True}


_LOG = "flow_run_id task_run_id timestamp name level message info"


@mutation("logs!", "success", each=_LOG)
def write_run_logs(api: Prefect1Api, given: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """A list, or the one object that `prefect execute flow-run` sends when it cannot load a flow [run]."""
    for each in listed(given["logs"]):
        run = api.runs.get(each.get("flow_run_id"))
        entry = {name: each.get(name) for name in _LOG.split()} | {"tenant_id": run["tenant_id"]}
        api.store.insert("log", **entry | {"timestamp": each.get("timestamp") or api.clock()})
    return {"success": True}
