"""Overrides: which methods of an agent its user has written, and which of these flowfleet never calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_OURS = "flowfleet.agents."
#: methods by which an agent starts runs in a way of its own
_DEPLOYING = ("deploy_flow", "deploy_flows", "deploy_and_update_flow_run")
#: methods that are asked for each run that is started as a process, if the user has written them
_ASKED = ("populate_env_vars", "update_state", "mark_failed")
#: methods of Prefect 1's own agents (0.6 to 1.4.1) that its loop calls and the poller and worker do without
_NEVER_CALLED = (
    *("agent_process", "query_flow_runs", "query_tenant_id", "update_states", "run_heartbeat_thread"),
    *("stream_flow_logs", "stream_container_logs"),
    *("_get_ready_flow_runs", "_get_flow_run_metadata", "_submit_deploy_flow_run_jobs", "_deploy_flow_run"),
    *("_deploy_flow_run_completed_callback", "_mark_flow_as_submitted", "_mark_flow_as_failed"),
    *("_safe_write_run_log", "_register_agent", "_retrieve_agent_config", "_setup_api_connection"),
    *("_enter_work_polling_loop", "_show_startup_display"),
)


def is_overridden(agent: object, name: str) -> bool:
    """Whether the user has written this method: in a class, or by an assignment to the agent."""
    if name in vars(agent):
        return True
    owner = next((cls for cls in type(agent).__mro__ if name in vars(cls)), object)
    return owner is not object and not f"{owner.__module__}.".startswith(_OURS)


def deploys(agent: object) -> bool:
    """Whether the user has written how runs are deployed."""
    return any(is_overridden(agent, name) for name in _DEPLOYING)


def asked(agent: object) -> bool:
    """Whether the user has written anything that is asked for each run, so that no worker can start runs alone."""
    return deploys(agent) or any(is_overridden(agent, name) for name in _ASKED)


def never_called(agent: object) -> list[str]:
    """The methods that the user has written and that flowfleet does not call."""
    return [name for name in _NEVER_CALLED if is_overridden(agent, name)]


def takes(method: Callable[..., Any], name: str) -> bool:
    """Whether a method takes an argument of this name: which ones an override has depends on the year of its model."""
    parameters = inspect.signature(method).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
