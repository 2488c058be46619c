"""Deploying: how a run is started through an agent's methods, by its worker or by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import uuid
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flowfleet.agents import variables
from flowfleet.agents.flow_run_records import fetch_one, graphql_of
from flowfleet.agents.starts import StartUnderWay
from flowfleet.errors import ApiError
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import Claim, State
from workers.deployers.external import InDoubt, NotAsked
from workers.deployers.process import ProcessDeployer
from workers.deployers.registry import container_deployer
from workers.deployment import CONTAINERS, Deployer, StartedRun, StartSpec
from workers.host import Abilities, Host
from workers.interpreter import interpreter_of
from workers.runs.start_spec import StartSpecBuilder
from workers.state.run_folders import RunFolders
from workers.state.state_folder import state_root

if TYPE_CHECKING:
    from flowfleet.agents.agent import Agent
    from flowfleet.agents.docker_agent import DockerAgent
    from flowfleet.agents.flow_run_records import FlowRunRecord
    from flowfleet.agents.local import LocalAgent

logger = logging.getLogger(__name__)


def below(agent: Agent) -> str:
    """What this agent's own class starts, for a user's `deploy_flow` that calls it."""
    from flowfleet.agents.docker_agent import DockerAgent  # noqa: PLC0415 - it imports us

    # without the SDK nothing calls it
    return CONTAINERS if isinstance(agent, DockerAgent) and importlib.util.find_spec("docker") else "process"


def by_method(agent: Agent, start: StartUnderWay) -> StartedRun | InDoubt | str:
    """Start a claimed run through the agent's methods: the started run, or the text of `deploy_flow`.

    Raises `NotAsked`, and what the user's code raises.
    """
    run_id = start.spec.run_id
    agent.submitting_flow_runs.add(run_id)
    try:
        flow_run = fetch_one(graphql_of(agent.client), run_id)
    except ApiError as exc:
        raise NotAsked from exc
    with agent.starts_under_way.hold(start):
        try:
            agent.deploy_and_update_flow_run(flow_run)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - guards the worker from the user's code
            start.errors.append(exc)
    if start.started:
        # the run's process is started: what an override meant to do after that must not fail the run
        for error in start.errors[-1:]:
            fields = {"run_id": run_id}
            logger.error("deployment failed after its process was started", extra=fields, exc_info=error)
        return start.started[-1]
    if start.of_another:
        return InDoubt(why="the agent's own code said that its state could not be updated")
    if start.errors:
        raise start.errors[-1]
    return start.texts[-1] if start.texts else InDoubt(why="the agent's own code has not called deploy_flow")


def deploy(agent: LocalAgent | DockerAgent, flow_run: FlowRunRecord) -> str:
    """Start a flow run as this agent does: by the worker that is starting this run, or else by hand."""
    start = agent.starts_under_way.of(str(flow_run["id"]))
    if start is None:
        return _by_hand(agent, flow_run)
    spec = dataclasses.replace(_as_asked(agent, start, flow_run), not_after=start.not_after())
    start.started.append(start.below(spec))
    return _told(start.started[-1])


def _as_asked(agent: LocalAgent | DockerAgent, start: StartUnderWay, flow_run: FlowRunRecord) -> StartSpec:
    """The spec with the variables and the folder that the agent's methods and this flow run ask for."""
    spec, run_config = start.spec, variables.run_config_of(flow_run, start)
    ask = spec.container
    env = variables.asked_of(agent, flow_run, run_config, image=ask.image if ask is not None else None)
    marks = {name: spec.env[name] for name in variables.MARKS}
    if ask is not None:
        return dataclasses.replace(spec, container=dataclasses.replace(ask, env={**env, **marks}))
    return dataclasses.replace(spec, env={**env, **marks}, cwd=run_config["working_dir"] or start.layers.home)


def _by_hand(agent: LocalAgent | DockerAgent, flow_run: FlowRunRecord) -> str:
    run_id = str(flow_run["id"])
    settings, environ = agent.worker_settings(), dict(os.environ)
    host, abilities = Host.probe(environ), Abilities.probe(environ)
    layers, interpreter = interpreter_of(settings, environ, agent.client.traits)
    layers = variables.with_variables_of(agent, layers)
    client = agent.client
    in_containers = below(agent) == CONTAINERS
    specs = StartSpecBuilder(
        settings,
        client.traits,
        api=client.jobs,
        layers=layers,
        interpreter=interpreter,
        in_containers=in_containers,
    )
    path = state_root(settings, environ) / "by-hand"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim = str(uuid.uuid4())
    folder = RunFolders(path).create(run_id, claim, {})
    assert folder is not None
    job = agent.client.jobs.job(run_id)
    held = Claim(
        run_id=run_id,
        claim=claim,
        call=claim,
        route=Route("prefect1", "", ""),
        name=job.state.run_name,
        due=datetime.now(UTC),
        state=State.STARTING,
        attempt=1,
        policy="report",
        handle=None,
        exit=None,
    )
    own: Deployer = ProcessDeployer(host=host, abilities=abilities)
    if in_containers:
        own = container_deployer(settings, host, abilities, environ, Failpoints(), watched=False)
    with closing(own) as deployer:
        start = StartUnderWay(spec=specs.make(held, job, folder, not_after=None), layers=layers, below=deployer.start)
        with agent.starts_under_way.hold(start):
            spec = _as_asked(agent, start, flow_run)
        started_run = deployer.start(spec)
        started_run.close()
        return _told(started_run)


def _told(started_run: StartedRun) -> str:
    handle = started_run.handle
    if handle.get("kind") == CONTAINERS:
        return f"Container ID: {handle['id']}"
    return f"PID: {handle.get('command_pid') or handle.get('pid')}"
