"""Variables: the environment that an agent's methods make for a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowfleet.agents import overrides
from flowfleet.agents.flow_run_records import FlowRunRecord
from flowfleet.agents.starts import StartUnderWay
from flowfleet.api.client import Job, JobApi, RunState, StateType
from workers.environment import EnvironmentLayers, layers_of, worker_layer

if TYPE_CHECKING:
    from flowfleet.agents.agent import Agent
    from flowfleet.agents.docker_agent import DockerAgent
    from flowfleet.agents.local import LocalAgent

#: the variables by which a worker finds the processes of a run, so no user code can do without them
MARKS = ("FLOWFLEET_RUN_ID", "FLOWFLEET_CLAIM")


class AgentVariables(Mapping[str, str | None]):
    """The `env_vars` of an agent as they are when they are read: None takes a variable away, other values are text.

    A program may change them at any time, a heartbeat that renews a token among others.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]]) -> None:
        self._read = read

    def __getitem__(self, name: str) -> str | None:
        value = self._read().get(name)
        return None if value is None else str(value)

    def __iter__(self) -> Iterator[str]:
        return iter([str(name) for name in list(self._read())])

    def __len__(self) -> int:
        return len(self._read())


def layers_here(agent: LocalAgent) -> EnvironmentLayers:
    """The layers of an agent whose program calls its methods by hand, before anything is started."""
    settings = agent.worker_settings()
    base = worker_layer(os.environ, python=settings.python, own_prefix=Path(sys.prefix))
    return with_variables_of(agent, layers_of(settings, base, agent.client.traits))


def with_variables_of(agent: Agent, layers: EnvironmentLayers) -> EnvironmentLayers:
    """The layers with the agent's own variables in the place of `--env`."""
    return replace(layers, extra=AgentVariables(lambda: agent.env_vars))


def run_config_of(flow_run: Mapping[str, Any], start: StartUnderWay | None = None) -> FlowRunRecord:
    """The run_config of a flow run, with the fields that Prefect 1's own agent hands to `populate_env_vars`.

    What the user has changed in it counts; a flow run that has none at all has that of its `start`.
    """
    empty: dict[str, Any] = {"type": "LocalRun", "env": None, "working_dir": None, "labels": []}
    known = start.spec.variables.get("run_config") if start is not None else None
    record: FlowRunRecord = FlowRunRecord.of({**empty, **(flow_run.get("run_config", known) or {})})
    return record


def job_of(jobs: JobApi, flow_run: Mapping[str, Any], run_config: Any) -> Job:
    """The job that stands for a flow run with this run_config."""
    env = dict(_part(run_config, "env") or {})
    flow = flow_run.get("flow") or {}
    run_id, name = str(flow_run["id"]), str(flow_run.get("name") or "")
    working_dir = _part(run_config, "working_dir")
    job = Job(
        state=RunState(run_id=run_id, run_name=name, kind=StateType.PENDING, name="Submitted"),
        env={str(key): None if value is None else str(value) for key, value in env.items()},
        working_dir=str(working_dir) if working_dir else None,
        flow_id=flow.get("id"),
        flow_name=flow.get("name"),
    )
    return jobs.equip(job)


def asked_of(
    agent: LocalAgent | DockerAgent, flow_run: Mapping[str, Any], run_config: FlowRunRecord, *, image: str | None = None
) -> dict[str, str]:
    """The whole environment of a run, as `populate_env_vars` of this agent makes it; `image` is that of its container.

    Raises `TypeError` where the user's own one returns no mapping.
    """
    method: Any = agent.populate_env_vars
    known = {"run_config": run_config, **({"image": image} if image is not None else {})}
    given = {name: value for name, value in known.items() if overrides.takes(method, name)}
    answer: Any = method(flow_run, **given)
    if not isinstance(answer, Mapping):
        raise TypeError(
            f"populate_env_vars of {type(agent).__name__} returned a value of type {type(answer).__name__}; "
            "it must return the dict of the run's variables"
        )
    return {str(name): str(value) for name, value in answer.items() if value is not None}


def _part(run_config: Any, name: str) -> Any:
    # a record of ours, or the object of prefect's own class that an override has made
    return run_config.get(name) if isinstance(run_config, Mapping) else getattr(run_config, name, None)
