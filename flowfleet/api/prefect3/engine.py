"""Engine: the environment of a Prefect 3 engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flowfleet.api.client import Job

#: `false`, as a stock worker has it: an engine that is told of its cancel stops and writes nothing, so that Cancelled
#: is told when its whole tree is gone, and its hooks run then. What it writes as Crashed has its hooks run there
#: (source: prefect 3.9.1, flow_engine)
_OWN_CANCELLATION = "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The settings that all engines of one worker get."""

    #: returns the user's PREFECT_* settings; called for each run, since credentials change while we run
    settings: Callable[[], Mapping[str, str]]
    #: the name by which the server shows who runs a flow
    worker: str | None

    def equip(self, job: Job, *, url: str) -> Job:
        """The job with the variables that its engine must have: address, credentials, run id and attribution.

        Other settings are among them only where the run does not set them itself.
        """
        forced = {
            name: value
            for name, value in {"PREFECT_API_URL": url, **self.settings()}.items()
            if name.startswith("PREFECT_API_") or name not in job.env
        }
        attribution = {
            "PREFECT__WORKER_NAME": self.worker,
            "PREFECT__FLOW_ID": job.flow_id,
            "PREFECT__FLOW_NAME": job.flow_name,
            "PREFECT__DEPLOYMENT_ID": job.deployment_id,
            "PREFECT__DEPLOYMENT_NAME": job.deployment_name,
        }
        forced |= {name: value for name, value in attribution.items() if value}
        own = {"PREFECT__FLOW_RUN_ID": job.state.run_id, _OWN_CANCELLATION: "false"}
        return replace(job, engine_env={**forced, **own})
