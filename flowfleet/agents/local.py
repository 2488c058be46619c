"""Local agent: the class of Prefect 1's agent that runs flow runs as processes of its own host."""

import os
import re
import socket
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any, Self

from flowfleet.agents import argument_kinds, overrides, variables
from flowfleet.agents.agent import Agent
from flowfleet.agents.flow_run_records import FlowRunRecord
from flowfleet.commands import unit_supervisor, units
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.host_label import label_of_host


class LocalAgent(Agent):
    """Runs flow runs on this host, through a Redis: the given one, or an embedded Valkey (`flowfleet[embedded]`).

    `LocalAgent(labels=["x"], env_vars={"A": "b"}, max_polls=3).start()`
    """

    def __init__(
        self,
        name: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str | None] | None = None,
        import_paths: Iterable[str | os.PathLike[str]] | None = None,
        show_flow_logs: bool = False,
        hostname_label: bool = True,
        max_polls: int | None = None,
        agent_address: str | None = None,
        no_cloud_logs: bool | None = None,
        *more: Any,
        storage_labels: bool | None = None,
        agent_config_id: str | None = None,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {"name": name, "labels": labels, "env_vars": env_vars, "import_paths": import_paths}
        given |= {"show_flow_logs": show_flow_logs, "hostname_label": hostname_label, "max_polls": max_polls}
        given |= {"agent_address": agent_address, "no_cloud_logs": no_cloud_logs}
        others = {"agent_config_id": agent_config_id, "storage_labels": storage_labels}
        argument_kinds.check(f"{type(self).__name__}()", given, more, **others)
        del storage_labels  # an argument of 0.14, where it had no effect any more
        super().__init__(
            name, labels, env_vars, max_polls, agent_address, no_cloud_logs, agent_config_id=agent_config_id, **options
        )
        self.import_paths = [os.fspath(path) for path in import_paths or ()]
        self.show_flow_logs = bool(show_flow_logs)
        #: processes that an own `deploy_flow` has added; `heartbeat` looks after them, as in the reference
        self.processes: set[subprocess.Popen[Any]] = set()
        host = label_of_host(socket.gethostname())
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
        return "external" if overrides.deploys(self) else "process"

    def given(self) -> dict[str, Any]:
        """The options that this agent gives to its worker and poller, by option key."""
        return {**super().given(), "import-path": self.import_paths, "show-flow-logs": self.show_flow_logs}

    def heartbeat(self) -> None:
        """Take off `processes` what has ended; a hook for you to override.

        Flowfleet calls it at once, and then every `heartbeat_period` seconds (60). `processes` has only what your own
        `deploy_flow` adds: the worker looks after its runs by other means.
        """
        for process in list(self.processes):
            if process.poll() is not None:
                self.processes.discard(process)
                if process.returncode:
                    fields = {"pid": process.pid, "code": process.returncode}
                    self.logger.info("process returned a non-zero exit code", extra=fields)

    def deploy_flow(self, flow_run: FlowRunRecord) -> str:
        """Start a flow run as a process of this host, and return `PID: n`.

        Flowfleet calls this method; your program and an override of the method may call it too. While `start` runs,
        the process is one of the worker's: watched, adopted, reported. After a call by hand nobody looks after the
        process, as with Prefect 1's own agent. Raises `UnsupportedRun` (a ValueError) where no process can run it.
        """
        from flowfleet.agents import deploying  # noqa: PLC0415 - its parts are heavy, and only the start of a run needs them

        return deploying.deploy(self, flow_run)

    def populate_env_vars(self, flow_run: Mapping[str, Any], run_config: Any = None) -> dict[str, str]:
        """The whole environment that this flow run gets: of host and engine, `env_vars`, and its own variables.

        Your program may call or override this method. Flowfleet calls an override, and the run gets just what that
        returns, with FLOWFLEET_RUN_ID and FLOWFLEET_CLAIM; without one the worker makes the same variables by itself.
        FLOWFLEET_* of this host are left out, since some are secret. `run_config` stands for that of the flow run.
        """
        under_way = self.starts_under_way.of(str(flow_run["id"]))
        run_config = variables.run_config_of(flow_run, under_way) if run_config is None else run_config
        job = variables.job_of(self.client.jobs, flow_run, run_config)
        if under_way is not None:
            return under_way.layers.build(job, claim=under_way.spec.claim)
        env = variables.layers_here(self).build(job, claim="")
        return {name: value for name, value in env.items() if name not in variables.MARKS}

    @staticmethod
    def generate_supervisor_conf(
        token: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Any = None,
        import_paths: Any = None,
        show_flow_logs: bool = False,
        key: str | None = None,
        tenant_id: str | None = None,
        agent_config_id: str | None = None,
    ) -> str:
        """A supervisord.conf that keeps a worker with these options and a poller running.

        Your program calls this method; flowfleet does not. Key, token and variables do not stand in the text; its
        first lines say how to make the file that they belong in. The order of 2020, which had no `env_vars`, is taken
        too. Raises `ValueError` for a token and a key together.
        """
        if _are_paths(env_vars) and (import_paths is None or isinstance(import_paths, bool)):
            env_vars, import_paths, show_flow_logs = None, env_vars, show_flow_logs or bool(import_paths)
        given = {"token": token, "labels": labels, "env_vars": env_vars, "import_paths": import_paths}
        given |= {"show_flow_logs": show_flow_logs, "key": key, "tenant_id": tenant_id}
        argument_kinds.check("generate_supervisor_conf()", {**given, "agent_config_id": agent_config_id})
        if token and key:
            raise ValueError("generate_supervisor_conf() got a token and a key, which are one thing: give the key only")
        if None in (env_vars or {}).values():
            raise ValueError("generate_supervisor_conf() got env_vars with None, and a unit can take no variable away")
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
            "import-path": tuple(os.fspath(path) for path in import_paths or ()),
            "show-flow-logs": show_flow_logs or None,
        }
        worker = _supervisor_conf("worker", WorkerSettings, {**common, **of_worker})
        # the whole text for a worker, followed by the poller's program: the two are one agent at Prefect 1
        head, _, program = _supervisor_conf("poller", PollerSettings, common).partition("\n[program:")
        secrets = [line for line in head.splitlines() if "Secrets" in line or "--secrets" in line]
        return "\n".join([worker.rstrip(), "", *secrets, f"[program:{program}"])


def _supervisor_conf(part: str, cls: type[CommonSettings], flags: Mapping[str, Any]) -> str:
    program = units.program_path(part)
    return unit_supervisor.unit_text(units.Unit(part=part, cls=cls, flags=flags, program=program, user=units.me()))


def _are_paths(value: Any) -> bool:
    # a list of NAME=VALUE is meant as variables, and is no dict of them
    return isinstance(value, list | tuple) and not any("=" in str(each) for each in value)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "flow"
