"""Containers: what a Prefect 3 run asks of its container, in pools of type `docker` and our own (prefect-docker)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowfleet.api.client import Job
from flowfleet.api.container_ask import PULL_POLICIES, ContainerAsk, a_list, a_table
from flowfleet.errors import UnsupportedRun

API = "PREFECT_API_URL"
#: the authorities by which the API is known, as `--ca-file` or this host's own settings name them
_CA_FILE = "PREFECT_API_SSL_CERT_FILE"
#: where neither pool nor deployment nor run names one
IMAGE = "prefecthq/prefect:3-latest"
#: what runs a flow in an image, with its cancel and its hooks
COMMAND = ("prefect", "flow-run", "execute")
#: job variables beside `container_create_kwargs`, of the template of prefect-docker or of ours, by the SDK's names
_OPTIONS = ("mem_limit", "memswap_limit", "privileged", "shm_size")


def ask(job: Job, env: Mapping[str, str], worker: str | None) -> ContainerAsk:
    """What this run asks of its container, which gets `env`; raises `UnsupportedRun`."""
    variables = job.variables
    given = {name: variables[name] for name in _OPTIONS if variables.get(name) not in (None, "", False)}
    options = {**_gpus(variables.get("gpus")), **given, **_table(variables, "container_create_kwargs")}
    credentials = variables.get("registry_credentials")
    if credentials is not None and not isinstance(credentials, Mapping):
        raise UnsupportedRun("the job variable registry_credentials must be a block of registry credentials")
    return ContainerAsk(
        image=str(variables.get("image") or IMAGE),
        command=job.command or COMMAND,
        env=dict(env),
        api_variables=(API,),
        files=_files(job),
        name=str(variables.get("name") or job.state.run_name),
        labels={**_labels(job, worker), **_table(variables, "labels")},
        working_dir=job.working_dir,
        pull=_pull(variables.get("image_pull_policy")),
        credentials=credentials,
        volumes=_list(variables, "volumes"),
        networks=_list(variables, "networks"),
        network_mode=str(variables["network_mode"]) if variables.get("network_mode") else None,
        user=str(variables["user"]) if variables.get("user") else None,
        options=options,
        options_name="job variables",
    )


def _files(job: Job) -> tuple[str, ...]:
    # by the worker's own settings: a run that names a file of the host must not have it
    path = str(job.engine_env.get(_CA_FILE) or "")
    return (path,) if Path(path).is_absolute() and Path(path).is_file() else ()


def environment(job: Job, extra: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of a run's container, without those of any host; a later layer wins.

    An address of the API from `extra` or the run wins over our own, since it is one as containers see it.
    """
    own = {**extra, **job.env}
    address = own.get(API)
    env: dict[str, Any] = {**own, **job.engine_env, **({API: address} if address else {})}
    return {name: value for name, value in env.items() if value is not None}


def _labels(job: Job, worker: str | None) -> dict[str, str]:
    """The labels that the stock worker puts on its containers: `prefect.io/x` as `io.prefect.x`."""
    facts = {
        "flow-run-id": job.state.run_id,
        "flow-run-name": job.state.run_name,
        "flow-id": job.flow_id,
        "flow-name": job.flow_name,
        "deployment-id": job.deployment_id,
        "deployment-name": job.deployment_name,
        "work-pool-name": job.pool,
        "worker-name": worker,
    }
    return {f"io.prefect.{name}": str(value) for name, value in facts.items() if value}


def _pull(given: Any) -> str | None:
    if given in (None, ""):
        return None
    if given not in PULL_POLICIES:
        raise UnsupportedRun(
            f"the job variable image_pull_policy cannot be {str(given)[:50]!r}: give {', '.join(PULL_POLICIES)}"
        )
    return str(given)


def _list(variables: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(map(str, a_list(variables.get(name), f"the job variable {name}")))


def _table(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    return a_table(variables.get(name), f"the job variable {name}")


def _gpus(given: Any) -> dict[str, Any]:
    """`all`, or how many, as the SDK takes it."""
    if given in (None, "", 0, "0"):
        return {}
    try:
        count = -1 if str(given) == "all" else int(str(given))
    except ValueError as error:
        raise UnsupportedRun(f"the job variable gpus cannot be {str(given)[:50]!r}: give a number or all") from error
    return {"device_requests": [{"Driver": "", "Count": count, "Capabilities": [["gpu"]], "Options": {}}]}
