"""Schema: the tables of the local Prefect 1 API, their columns, and how they hang together."""

from dataclasses import dataclass

_COMMON = "id:uuid tenant_id:uuid created:time updated:time "

_STATE = (
    "version:int state:text state_id:uuid state_timestamp:time state_start_time:time state_message:text "
    "state_result:json serialized_state:json start_time:time end_time:time heartbeat:time name:text "
)

_HISTORY = "version:int timestamp:time state:text message:text result:json start_time:time serialized_state:json "

_TABLES = {
    "tenant": "id:uuid created:time updated:time name:text slug:text settings:json",
    "project": _COMMON + "name:text description:text",
    "flow_group": _COMMON
    + "project_id:uuid name:text settings:json labels:json run_config:json default_parameters:json",
    "flow": _COMMON
    + "flow_group_id:uuid project_id:uuid name:text version:int version_group_id:text archived:bool "
    + "core_version:text description:text environment:json parameters:json run_config:json schedule:json "
    + "is_schedule_active:bool serialized_flow:json storage:json settings:json idempotency_key:text",
    "task": _COMMON
    + "flow_id:uuid name:text slug:text type:text mapped:bool max_retries:int retry_delay:int cache_key:text "
    + "trigger:text tags:json auto_generated:bool is_reference_task:bool is_root_task:bool is_terminal_task:bool",
    "edge": _COMMON + "flow_id:uuid upstream_task_id:uuid downstream_task_id:uuid key:text mapped:bool",
    "flow_run": _COMMON
    + _STATE
    + "flow_id:uuid agent_id:uuid auto_scheduled:bool parameters:json context:json labels:json run_config:json "
    + "scheduled_start_time:time idempotency_key:text times_resurrected:int",
    "flow_run_state": _COMMON + _HISTORY + "flow_run_id:uuid",
    "task_run": _COMMON + _STATE + "flow_run_id:uuid task_id:uuid map_index:int cache_key:text run_count:int",
    "task_run_state": _COMMON + _HISTORY + "task_run_id:uuid",
    "log": _COMMON + "flow_run_id:uuid task_run_id:uuid timestamp:time name:text level:text message:text info:json",
    "agent": _COMMON + "agent_config_id:uuid type:text name:text labels:json core_version:text last_queried:time",
    "agent_config": _COMMON + "name:text settings:json",
}

#: table -> column -> kind (uuid, text, int, bool, time, json)
TABLES: dict[str, dict[str, str]] = {
    table: dict(column.split(":") for column in text.split())
    for table, text in _TABLES.items()  # type: ignore[misc]
}


@dataclass(frozen=True)
class Relation:
    """Rows of `table` whose `remote` column is our `local` one."""

    table: str
    local: str
    remote: str
    many: bool


def _one(table: str, local: str) -> Relation:
    return Relation(table, local, "id", many=False)


def _many(table: str, remote: str) -> Relation:
    return Relation(table, "id", remote, many=True)


RELATIONS: dict[str, dict[str, Relation]] = {
    "tenant": {"projects": _many("project", "tenant_id"), "flows": _many("flow", "tenant_id")},
    "project": {"tenant": _one("tenant", "tenant_id"), "flows": _many("flow", "project_id")},
    "flow_group": {"flows": _many("flow", "flow_group_id"), "tenant": _one("tenant", "tenant_id")},
    "flow": {
        "flow_group": _one("flow_group", "flow_group_id"),
        "project": _one("project", "project_id"),
        "tenant": _one("tenant", "tenant_id"),
        "tasks": _many("task", "flow_id"),
        "edges": _many("edge", "flow_id"),
        "flow_runs": _many("flow_run", "flow_id"),
    },
    "task": {"flow": _one("flow", "flow_id"), "task_runs": _many("task_run", "task_id")},
    "edge": {
        "flow": _one("flow", "flow_id"),
        "upstream_task": _one("task", "upstream_task_id"),
        "downstream_task": _one("task", "downstream_task_id"),
    },
    "flow_run": {
        "flow": _one("flow", "flow_id"),
        "tenant": _one("tenant", "tenant_id"),
        "agent": _one("agent", "agent_id"),
        "task_runs": _many("task_run", "flow_run_id"),
        "states": _many("flow_run_state", "flow_run_id"),
        "logs": _many("log", "flow_run_id"),
    },
    "flow_run_state": {"flow_run": _one("flow_run", "flow_run_id")},
    "task_run": {
        "task": _one("task", "task_id"),
        "flow_run": _one("flow_run", "flow_run_id"),
        "states": _many("task_run_state", "task_run_id"),
        "logs": _many("log", "task_run_id"),
    },
    "task_run_state": {"task_run": _one("task_run", "task_run_id")},
    "log": {"flow_run": _one("flow_run", "flow_run_id"), "task_run": _one("task_run", "task_run_id")},
    "agent": {"agent_config": _one("agent_config", "agent_config_id"), "flow_runs": _many("flow_run", "agent_id")},
    "agent_config": {"agents": _many("agent", "agent_config_id")},
}

#: what is looked up often
INDEXES = (
    ("flow_run", "state"),
    ("flow_run_state", "flow_run_id"),
    ("task_run", "flow_run_id"),
    ("task_run_state", "task_run_id"),
    ("log", "flow_run_id"),
    ("task", "flow_id"),
    ("edge", "flow_id"),
)
