"""Jobs: what a Prefect 1 run asks to be started (source: prefect 1.4.1, measured)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.api.client import Job
from flowfleet.api.container_ask import ContainerAsk
from flowfleet.api.prefect1 import containers
from flowfleet.api.prefect1.engine import EngineSettings
from flowfleet.api.prefect1.graphql import GraphQL
from flowfleet.api.prefect1.states import Run
from flowfleet.api.prefect1.writes import Writes
from flowfleet.api.transport.reading import reading
from flowfleet.errors import UnsupportedRun

#: the fields of a run that tell what to start
JOB_FIELDS = "run_config flow { id name core_version storage }"
#: what each kind of worker can start: the types of run_config, and the storages that it cannot load from
_CAN = {
    "process": (frozenset({None, "LocalRun", "UniversalRun"}), frozenset({"Docker"})),
    "docker": (frozenset({None, "DockerRun", "UniversalRun"}), frozenset()),
}
#: an older prefect has another name for the engine's command
_FLOW_RUN_SINCE = (0, 13)


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The reader of jobs for one worker."""

    graphql: GraphQL
    writes: Writes
    engine: EngineSettings
    #: how the worker starts runs
    deploy: str

    def job(self, run_id: str) -> Job:
        run = self.writes.read(run_id, JOB_FIELDS)
        with reading("for what a run is"):
            job = job_of(run, self.deploy)
        self.writes.note([run])
        return self.equip(job)

    def equip(self, job: Job) -> Job:
        return self.engine.equip(job, url=self.graphql.engine_url, key=self.graphql.key, tenant=self.graphql.tenant)

    def hooks_command(self, python: str, job: Job, hooks: str, starters: Path | None) -> tuple[str, ...] | None:
        # state handlers are called by the engine alone
        del python, job, hooks, starters
        return None

    def container(self, job: Job, extra: Mapping[str, str | None], marks: Mapping[str, str]) -> ContainerAsk:
        env = containers.environment(job, extra, cloud_logs=self.engine.cloud_logs)
        # the program, as Prefect 1's own agent starts it: not every image has a `python` with prefect on its PATH
        command = ("prefect", *self.engine_command("python", job, "")[3:])
        return containers.ask(job, command, {**env, **marks})

    def engine_command(self, python: str, job: Job, prefect: str, starters: Path | None = None) -> tuple[str, ...]:
        del starters
        # A prefect before 0.13 knows the command as `cloud-flow`. The version in the interpreter counts, whatever the
        # flow was registered with: 1.4.1 has no `cloud-flow` any more. Where nobody has asked the interpreter (an
        # image), the version of the flow counts, as with Prefect 1's own agent.
        version = prefect or str(job.variables.get("core_version") or "")
        numbers = tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())
        old = len(numbers) > 1 and numbers < _FLOW_RUN_SINCE
        return (python, "-m", "prefect", "execute", "cloud-flow" if old else "flow-run")


def _type(value: Any) -> str | None:
    return str(value["type"]) if isinstance(value, Mapping) and value.get("type") else None


def unfit(row: Mapping[str, Any], deploy: str) -> str | None:
    """Why a worker of this kind cannot start the run, as one sentence; None when it can.

    For a plugged-in deployer only a missing storage counts: the deployer itself knows what it can do, and tells when
    it is to start the run.
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
