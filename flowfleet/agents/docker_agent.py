"""Docker agent: the class of Prefect 1's agent that starts containers, with its documented arguments."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from flowfleet.agents import argument_kinds, overrides, variables
from flowfleet.agents.agent import Agent
from flowfleet.api.prefect1 import containers
from flowfleet.errors import UnsupportedRun

_LATER = "DockerAgent cannot start containers yet: that comes with a later version, use LocalAgent until then."


class DockerAgent(Agent):
    """Deploys flow runs as containers of this host's Docker.

    The class takes its arguments, but can start only runs for which you have overridden `deploy_flow`.
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
        """How this agent will start runs: as containers, unless the user has overridden `deploy_flow`."""
        return "external" if overrides.deploys(self) else "docker"

    def start(self, _loop_intervals: dict[int, float] | None = None) -> None:
        """Run flow runs by your own `deploy_flow`; without one, raise `UnsupportedRun`: containers come later.

        Your program calls this method.
        """
        if not overrides.deploys(self):
            raise UnsupportedRun(_LATER)
        super().start(_loop_intervals)

    def deploy_flow(self, flow_run: Any) -> str:
        """Raise `UnsupportedRun`, which says that containers come later.

        Your program may call this method. Flowfleet calls an override.
        """
        del flow_run
        raise UnsupportedRun(_LATER)

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

    def stream_flow_logs(self, container_id: str) -> NoReturn:
        """Raise `UnsupportedRun`, which says that containers come later. Your program may call this method."""
        del container_id
        raise UnsupportedRun(_LATER)

    def stream_container_logs(self, container_id: str) -> NoReturn:
        """`stream_flow_logs` by its name of 2020. Your program may call this method."""
        self.stream_flow_logs(container_id)
