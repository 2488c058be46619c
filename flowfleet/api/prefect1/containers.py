"""Containers: what a Prefect 1 run asks of its container (source: prefect 1.4.1, DockerAgent, measured)."""

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from flowfleet.api.client import Job
from flowfleet.api.container_ask import ContainerAsk, a_list, a_table
from flowfleet.errors import UnsupportedRun

API = "PREFECT__CLOUD__API"
#: the network of a Prefect Server that was started by `prefect server start`, and the name of its API there
_SERVER_NETWORK, _SERVER_NAME = "prefect-server", "apollo"
_HOST = "host.docker.internal"


def ask(job: Job, command: tuple[str, ...], env: Mapping[str, str]) -> ContainerAsk:
    """What this run asks of its container, which gets `env`; raises `UnsupportedRun`."""
    config = job.variables.get("run_config") or {}
    labels = {
        "io.prefect.flow-name": job.flow_name,
        "io.prefect.flow-id": job.flow_id,
        "io.prefect.flow-run-id": job.state.run_id,
    }
    image = image_of(job)
    return ContainerAsk(
        image=image,
        command=command,
        env={**env, "PREFECT__CONTEXT__IMAGE": image},
        api_variables=(API,),
        name=job.state.run_name,
        labels={name: str(value) for name, value in labels.items() if value},
        ports=tuple(map(str, a_list(config.get("ports"), "its ports"))),
        options=a_table(config.get("host_config"), "its host_config"),
        options_name="host_config",
    )


def image_of(job: Job) -> str:
    """The image of Docker storage, else that of the run_config, else Prefect's own of the flow's version."""
    storage = job.variables.get("storage") or {}
    if storage.get("type") == "Docker":
        name, tag = storage.get("image_name"), storage.get("image_tag")
        if not name or not tag:
            raise UnsupportedRun(
                f"The flow {job.flow_name!r} is in Docker storage that names no image and tag: register it again"
            )
        return f"{PurePosixPath(str(storage.get('registry_url') or ''), str(name))}:{tag}"
    config = job.variables.get("run_config") or {}
    if config.get("image"):
        return str(config["image"])
    version = str(job.variables.get("core_version") or "latest").partition("+")[0]
    return f"prefecthq/prefect:{version}"


def environment(
    job: Job, extra: Mapping[str, str | None], *, cloud_logs: bool, networks: Collection[str] = ()
) -> dict[str, str]:
    """The variables of a run's container, without those of any host; a later layer wins.

    What has no value is there and empty, for images of older versions. An address of the API from `extra` or the run
    wins over our own, since it is one as containers see it.
    """
    forced = {name: value or "" for name, value in job.engine_env.items()}
    address = for_networks(forced.pop(API, ""), networks)
    forced["PREFECT__CLOUD__AUTH_TOKEN"] = forced.get("PREFECT__CLOUD__API_KEY", "")  # for images before 1.0
    forced["PREFECT__LOGGING__LOG_TO_CLOUD"] = str(cloud_logs).lower()  # for images before 0.15
    env: dict[str, Any] = {API: address, **job.engine_defaults, **extra, **job.env, **forced}
    return {name: value for name, value in env.items() if value is not None}


def for_networks(address: str, networks: Collection[str]) -> str:
    """The address as Prefect 1's own agent rewrites it for a container: only the word localhost is meant."""
    if urlsplit(address).hostname != "localhost":
        return address
    return address.replace("localhost", _SERVER_NAME if _SERVER_NETWORK in networks else _HOST, 1)
