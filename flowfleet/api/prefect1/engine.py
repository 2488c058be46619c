"""Engine: the environment of a Prefect 1 engine (source: prefect 1.4.1, measured)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowfleet.api.client import Job


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings that all engines of one worker get."""

    server_backend: str  # server | cloud
    labels: Sequence[str]
    log_level: str
    cloud_logs: bool

    def _defaults(self) -> dict[str, str]:
        """Variables that hold where neither worker nor run sets them.

        Heartbeats from a thread of the engine save the second process that sends them, half a CPU-second and 55 MiB a
        run, and which a killed engine leaves behind (measured).
        """
        logs = {"PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "true"} if self.cloud_logs else {}
        return {"PREFECT__LOGGING__LEVEL": self.log_level, "PREFECT__CLOUD__HEARTBEAT_MODE": "thread", **logs}

    def equip(self, job: Job, *, url: str, key: str | None, tenant: str | None) -> Job:
        """The job with its engine's variables: log level, heartbeats from a thread, address, credentials, run id."""
        # a run may switch its logs off, and never on
        logs = {} if self.cloud_logs else {"PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "false"}
        forced = {
            **logs,
            "PREFECT__BACKEND": self.server_backend,
            "PREFECT__CLOUD__API": url,
            "PREFECT__CLOUD__API_KEY": key,
            "PREFECT__CLOUD__TENANT_ID": tenant if key else None,
            "PREFECT__CLOUD__AGENT__LABELS": repr(list(self.labels)),
            "PREFECT__CONTEXT__FLOW_RUN_ID": job.state.run_id,
            "PREFECT__CONTEXT__FLOW_ID": job.flow_id,
            "PREFECT__CLOUD__USE_LOCAL_SECRETS": "false",
            "PREFECT__ENGINE__FLOW_RUNNER__DEFAULT_CLASS": "prefect.engine.cloud.CloudFlowRunner",
        }
        return replace(job, engine_defaults=self._defaults(), engine_env=forced)
