"""Docker agent: the class of Prefect 1's agent that starts containers, with its documented arguments."""

from collections.abc import Iterable, Mapping
from typing import Any

from flowfleet.agents.agent import Agent
from flowfleet.errors import UnsupportedRun

_LATER = "DockerAgent cannot start containers yet: that comes with a later version, use LocalAgent until then."


class DockerAgent(Agent):
    """Deploys flow runs as containers of this host's Docker. The class takes its arguments, but cannot start yet."""

    def __init__(
        self,
        name: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str] | None = None,
        max_polls: int | None = None,
        agent_address: str | None = None,
        no_cloud_logs: bool | None = None,
        base_url: str | None = None,
        no_pull: bool | None = None,
        volumes: Iterable[str] | None = None,
        show_flow_logs: bool = False,
        network: str | None = None,
        docker_interface: bool | None = None,
        *,
        networks: Iterable[str] | None = None,
        reg_allow_list: Iterable[str] | None = None,
        docker_client_timeout: int | None = None,
        agent_config_id: str | None = None,
        **options: Any,
    ) -> None:
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
        """How this agent will start runs: as containers."""
        return "docker"

    def start(self, _loop_intervals: dict[int, float] | None = None) -> None:
        """Raise `UnsupportedRun`, which says that containers come later. Your program calls this method."""
        del _loop_intervals
        raise UnsupportedRun(_LATER)

    def deploy_flow(self, flow_run: Any) -> str:
        """Raise `UnsupportedRun`, which says that containers come later.

        Your program may call this method. Flowfleet does not yet, since `start` does not go so far.
        """
        del flow_run
        raise UnsupportedRun(_LATER)
