"""Docker agent: the class of Prefect 1's agent that starts containers, with its documented arguments."""

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from flowfleet.agents import argument_kinds, overrides, variables
from flowfleet.agents.agent import Agent
from flowfleet.agents.flow_run_records import FlowRunRecord
from flowfleet.api.prefect1 import containers


class DockerAgent(Agent):
    """Runs flow runs as containers of this host's Docker, through a Redis: the given one, or an embedded Valkey.

    `DockerAgent(labels=["x"], volumes=["/data:/data"]).start()` needs `flowfleet[docker]`.
    """

    def __init__(
        self,
        name: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str | None] | None = None,
        max_polls: int | None = None,
        agent_address: str | None = None,
        no_cloud_logs: bool | None = None,
        base_url: str | None = None,
        no_pull: bool | None = None,
        volumes: Iterable[str] | None = None,
        show_flow_logs: bool = False,
        network: str | None = None,
        docker_interface: bool | None = None,
        *more: Any,
        networks: Iterable[str] | None = None,
        reg_allow_list: Iterable[str] | None = None,
        docker_client_timeout: int | None = None,
        agent_config_id: str | None = None,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {"name": name, "labels": labels, "env_vars": env_vars, "max_polls": max_polls}
        given |= {"agent_address": agent_address, "no_cloud_logs": no_cloud_logs, "base_url": base_url}
        given |= {"no_pull": no_pull, "volumes": volumes, "show_flow_logs": show_flow_logs, "network": network}
        others: dict[str, Any] = {
            "networks": networks,
            "reg_allow_list": reg_allow_list,
            "agent_config_id": agent_config_id,
        }
        others |= {"docker_client_timeout": docker_client_timeout}
        argument_kinds.check(
            f"{type(self).__name__}()", {**given, "docker_interface": docker_interface}, more, **others
        )
        super().__init__(
            name, labels, env_vars, max_polls, agent_address, no_cloud_logs, agent_config_id=agent_config_id, **options
        )
        self.base_url = base_url
        self.no_pull = bool(no_pull)
        self.volumes = list(volumes or ())
        self.show_flow_logs = show_flow_logs
        # one network in 2020, several in 2021
        self.networks = [*([network] if network else []), *(networks or ())]
        self.docker_interface = docker_interface
        self.reg_allow_list = list(reg_allow_list or ())
        self.docker_client_timeout = docker_client_timeout or 60

    @property
    def deploy_kind(self) -> str:
        """How this agent starts runs: as containers, unless the user has overridden `deploy_flow`."""
        return "external" if overrides.deploys(self) else "docker"

    def given(self) -> dict[str, Any]:
        """The options that this agent gives to its worker and poller, by option key."""
        options: dict[str, Any] = {
            "base-url": self.base_url,
            "no-pull": self.no_pull or None,
            "volume": self.volumes,
            "network": self.networks,
            "allow-image": self.reg_allow_list,
            "docker-client-timeout": self.docker_client_timeout,
            "show-flow-logs": self.show_flow_logs,
            # Prefect 1's own agent raises at its start where its daemon does not answer
            "require-engine": self.deploy_kind == "docker" or None,
        }
        return {**super().given(), **{name: value for name, value in options.items() if value is not None}}

    def deploy_flow(self, flow_run: FlowRunRecord) -> str:
        """Start a flow run as a container, and return `Container ID: x`.

        Flowfleet calls this method; your program and an override of the method may call it too. While `start` runs,
        the container is one of the worker's: watched, adopted, reported. After a call by hand nobody looks after it,
        and it takes itself away at its end. Raises `UnsupportedRun` (a ValueError) where no container can run it.
        """
        from flowfleet.agents import deploying  # noqa: PLC0415 - its parts are heavy, and only the start of a run needs them

        return deploying.deploy(self, flow_run)

    def populate_env_vars(
        self, flow_run: Mapping[str, Any], image: str | None = None, run_config: Any = None
    ) -> dict[str, str]:
        """The variables that this flow run's container gets: of its engine, `env_vars`, and its own; none of this host.

        Your program may call or override this method; your own `deploy_flow` is the only one that needs it. A
        `localhost` in the API's address becomes the host's name as containers know it, unless `env_vars` or the run
        name an address.
        """
        start = self.starts_under_way.of(str(flow_run["id"]))
        run_config = variables.run_config_of(flow_run, start) if run_config is None else run_config
        job = variables.job_of(self.client.jobs, flow_run, run_config)
        extra = variables.AgentVariables(lambda: self.env_vars)
        env = containers.environment(job, extra, cloud_logs=self.log_to_cloud, networks=self.networks)
        return {**env, "PREFECT__CONTEXT__IMAGE": image} if image else env

    def stream_flow_logs(self, container_id: str) -> None:
        """Print what this container prints, until it ends. Your program may call this method."""
        import docker  # noqa: PLC0415 - only agents of containers need the SDK

        how = {"timeout": self.docker_client_timeout}
        client = docker.DockerClient(base_url=self.base_url, **how) if self.base_url else docker.from_env(**how)
        with contextlib.closing(client):
            for line in client.containers.get(container_id).logs(stream=True, follow=True):
                sys.stdout.write(f"{str(line, 'utf-8', 'replace').rstrip()}\n")

    def stream_container_logs(self, container_id: str) -> None:
        """`stream_flow_logs` by its name of 2020. Your program may call this method."""
        self.stream_flow_logs(container_id)
