"""Job: what a Prefect 1 run asks to be started, and the environment of its engine (source: prefect 1.4.1, measured)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowfleet.api.client import Job
from flowfleet.api.prefect1_states import Run
from flowfleet.errors import UnsupportedRun

#: what a run needs beyond its state
JOB_FIELDS = "run_config flow { id name core_version storage }"
#: what each kind of worker can start: the types of run_config, and the storages that it cannot load from
_CAN = {
    "process": (frozenset({None, "LocalRun", "UniversalRun"}), frozenset({"Docker"})),
    "docker": (frozenset({None, "DockerRun", "UniversalRun"}), frozenset()),
}
#: a prefect of before calls the engine by its older name
_FLOW_RUN_SINCE = (0, 13)


def _type(value: Any) -> str | None:
    return str(value["type"]) if isinstance(value, Mapping) and value.get("type") else None


def unfit(row: Mapping[str, Any], deploy: str) -> str | None:
    """Why a worker of this kind cannot start the run, as one sentence; None when it can.

    A plugged-in deployer is asked when it comes to it: only itself knows what it can do.
    """
    flow = row.get("flow") or {}
    storage, config = _type(flow.get("storage")), _type(row.get("run_config"))
    if storage is None:
        return f"The flow {flow.get('name')!r} has no storage, so no worker can load it: register it again"
    if deploy not in _CAN:
        return None
    configs, not_from = _CAN[deploy]
    if config not in configs:
        wanted = " or ".join(sorted(filter(None, configs)))
        return f"The run has a run_config of type {config}, and workers here start {wanted}"
    if storage in not_from:
        return f"The flow {flow.get('name')!r} is in {storage} storage, and workers here start plain processes"
    return None


def job_of(run: Run, deploy: str) -> Job:
    """The job of one run; raises `UnsupportedRun`."""
    why = unfit(run.row, deploy)
    if why is not None:
        raise UnsupportedRun(why)
    flow = run.row["flow"]
    config = run.row.get("run_config") or {}
    env = config.get("env") or {}
    if not isinstance(env, Mapping):
        raise UnsupportedRun(f"env of the run_config must be a table of names and values, not {type(env).__name__}")
    return Job(
        state=run.to_state(),
        env={str(name): None if value is None else str(value) for name, value in env.items()},
        working_dir=str(config["working_dir"]) if config.get("working_dir") else None,
        flow_id=str(flow["id"]),
        flow_name=flow.get("name"),
        variables={"run_config": dict(config), "core_version": flow.get("core_version"), "storage": flow["storage"]},
    )


def engine_command(python: str, job: Job, prefect: str) -> tuple[str, ...]:
    """`prefect execute flow-run`, which a prefect of before 0.13 knows as `cloud-flow`.

    That of the interpreter counts, whatever the flow was registered with: 1.4.1 has no `cloud-flow` any more. Where
    nobody has asked the interpreter (an image), it is that of the flow, as in the reference.
    """
    version = prefect or str(job.variables.get("core_version") or "")
    numbers = tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())
    old = len(numbers) > 1 and numbers < _FLOW_RUN_SINCE
    return (python, "-m", "prefect", "execute", "cloud-flow" if old else "flow-run")


@dataclass(frozen=True, kw_only=True)
class Child:
    """What all engines of one worker get."""

    server_backend: str  # server | cloud
    labels: Sequence[str]
    log_level: str
    cloud_logs: bool

    def defaults(self) -> dict[str, str]:
        """What holds where neither worker nor run says anything.

        Heartbeats from a thread of the engine save the second process that sends them, half a CPU-second and 55 MiB a
        run, and which a killed engine leaves behind (measured).
        """
        logs = {"PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "true"} if self.cloud_logs else {}
        return {"PREFECT__LOGGING__LEVEL": self.log_level, "PREFECT__CLOUD__HEARTBEAT_MODE": "thread", **logs}

    def forced(self, run_id: str, job: Job, *, url: str, key: str | None, tenant: str | None) -> dict[str, str | None]:
        """What nobody else may say; None takes a variable away that the worker's own environment has."""
        # a run may switch its logs off, and never on
        logs = {} if self.cloud_logs else {"PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "false"}
        return {
            **logs,
            "PREFECT__BACKEND": self.server_backend,
            "PREFECT__CLOUD__API": url,
            "PREFECT__CLOUD__API_KEY": key,
            "PREFECT__CLOUD__TENANT_ID": tenant if key else None,
            "PREFECT__CLOUD__AGENT__LABELS": repr(list(self.labels)),
            "PREFECT__CONTEXT__FLOW_RUN_ID": run_id,
            "PREFECT__CONTEXT__FLOW_ID": job.flow_id,
            "PREFECT__CLOUD__USE_LOCAL_SECRETS": "false",
            "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS": "prefect.engine.cloud.CloudFlowRunner",
        }
