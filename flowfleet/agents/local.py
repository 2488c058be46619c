"""Local agent: the class of Prefect 1's agent that runs flow runs as processes of its own host."""

import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Self

from flowfleet.agents.agent import Agent
from flowfleet.agents.flow_run_records import FlowRunRecord
from flowfleet.api.client import Job, RunState, StateType
from flowfleet.commands import units
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings

#: the name that Docker Desktop gives to every host, so it identifies none
_DOCKER_DESKTOP = "docker-desktop"


class LocalAgent(Agent):
    """Runs flow runs on this host, through a Redis: the given one, or an embedded Valkey (`flowfleet[embedded]`).

    `LocalAgent(labels=["x"], env_vars={"A": "b"}, max_polls=3).start()`
    """

    def __init__(
        self,
        name: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str] | None = None,
        import_paths: Iterable[str] | None = None,
        show_flow_logs: bool = False,
        hostname_label: bool = True,
        max_polls: int | None = None,
        agent_address: str | None = None,
        no_cloud_logs: bool | None = None,
        *,
        storage_labels: bool | None = None,
        agent_config_id: str | None = None,
        **options: Any,
    ) -> None:
        del storage_labels  # an argument of 0.14, where it had no effect any more
        super().__init__(
            name, labels, env_vars, max_polls, agent_address, no_cloud_logs, agent_config_id=agent_config_id, **options
        )
        self.import_paths = list(import_paths or ())
        self.show_flow_logs = show_flow_logs
        host = _host()
        if hostname_label and host not in self.labels:
            self.labels.append(host)

    @classmethod
    def from_flow(cls, flow: Any, **arguments: Any) -> Self:
        """An agent for this flow, like the one that `flow.run_agent()` started.

        Your program calls this method, and then `start`. The agent's labels are those of the flow's run_config
        (before 0.14: environment) and storage, else the flow's own slug.
        """
        sources = (getattr(flow, name, None) for name in ("run_config", "environment", "storage"))
        labels = {label for source in sources for label in getattr(source, "labels", None) or ()}
        arguments.setdefault("labels", sorted(labels) or [_slug(str(flow.name))])
        arguments.setdefault("hostname_label", False)
        return cls(**arguments)

    @property
    def deploy_kind(self) -> str:
        """How this agent starts runs: as processes, unless the user has overridden `deploy_flow`."""
        return "process" if type(self).deploy_flow is LocalAgent.deploy_flow else "external"

    @property
    def own_variables(self) -> bool:
        """Whether the user has overridden `populate_env_vars`."""
        return type(self).populate_env_vars is not LocalAgent.populate_env_vars

    def given(self) -> dict[str, Any]:
        """The options that this agent gives to its worker and poller, by option key."""
        return {**super().given(), "import-path": self.import_paths, "show-flow-logs": self.show_flow_logs}

    def deploy_flow(self, flow_run: FlowRunRecord) -> str:
        """Start a flow run as a process of this host, and return `PID: n`.

        Flowfleet calls this method; your program and an override of the method may call it too. While `start` runs,
        the process is one of the worker's: watched, adopted, reported. After a call by hand nobody looks after the
        process, as with Prefect 1's own agent. Raises `UnsupportedRun` (a ValueError) where no process can run it.
        """
        from flowfleet.agents import start  # noqa: PLC0415 - Celery is heavy, and only the start of a run needs it

        return start.deploy(self, flow_run)

    def populate_env_vars(self, flow_run: Mapping[str, Any]) -> dict[str, str]:
        """The variables that the engine gets for this flow run, `env_vars` among them.

        Your program may call or override this method. Flowfleet calls an override only; without one the worker makes
        the same variables by itself.
        """
        config, flow = flow_run.get("run_config") or {}, flow_run.get("flow") or {}
        run_id, name = str(flow_run["id"]), str(flow_run.get("name") or "")
        state = RunState(run_id=run_id, run_name=name, kind=StateType.PENDING, name="Submitted")
        job = self.client.jobs.equip(Job(state=state, flow_id=flow.get("id"), flow_name=flow.get("name")))
        own = {str(key): str(value) for key, value in (config.get("env") or {}).items() if value is not None}
        ours = {key: str(value) for key, value in self.env_vars.items() if value is not None}
        env = {**job.engine_defaults, **ours, **own, **job.engine_env}
        return {key: value for key, value in env.items() if value is not None}

    @staticmethod
    def generate_supervisor_conf(
        token: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str] | None = None,
        import_paths: Iterable[str] | None = None,
        show_flow_logs: bool = False,
        key: str | None = None,
        tenant_id: str | None = None,
        agent_config_id: str | None = None,
    ) -> str:
        """A supervisord.conf that keeps a worker with these options and a poller running.

        Your program calls this method; flowfleet does not. Key, token and variables do not stand in the text; its
        first lines say how to make the file that they belong in.
        """
        common = {
            "backend": "prefect1",
            "token": token,
            "key": key,
            "tenant-id": tenant_id,
            "agent-config-id": agent_config_id,
        }
        of_worker = {
            "label": tuple(labels or ()),
            "env": tuple(f"{name}={value}" for name, value in (env_vars or {}).items()),
            "import-path": tuple(import_paths or ()),
            "show-flow-logs": show_flow_logs or None,
        }
        worker = _supervisor_conf("worker", WorkerSettings, {**common, **of_worker})
        # the whole text for a worker, followed by the poller's program: the two are one agent at Prefect 1
        head, _, program = _supervisor_conf("poller", PollerSettings, common).partition("\n[program:")
        secrets = [line for line in head.splitlines() if "Secrets" in line or "--secrets" in line]
        return "\n".join([worker.rstrip(), "", *secrets, f"[program:{program}"])


def _supervisor_conf(part: str, cls: type[CommonSettings], flags: Mapping[str, Any]) -> str:
    program = units.program_path(part)
    return units.supervisor(units.Unit(part=part, cls=cls, flags=flags, program=program, **units.here()))


def _host() -> str:
    name = socket.gethostname()
    return socket.gethostbyname(name) if name == _DOCKER_DESKTOP else name


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "flow"
