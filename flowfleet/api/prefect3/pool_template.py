"""Pool template: the base job template of the pools that flowfleet creates, which the Prefect UI shows as a form."""

from typing import Any

POOL_TYPE = "flowfleet"


def _optional(title: str, description: str, kind: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A field of this kind that may stay empty."""
    return {"title": title, "description": description, "anyOf": [kind, {"type": "null"}], "default": None, **more}


def _text(title: str, description: str, **more: Any) -> dict[str, Any]:
    return _optional(title, description, {"type": "string"}, **more)


def _table(title: str, description: str, values: dict[str, Any]) -> dict[str, Any]:
    table = {"type": "object", "additionalProperties": values, "default": {}}
    return {"title": title, "description": description, **table}


def _list(title: str, description: str) -> dict[str, Any]:
    words = {"type": "array", "items": {"type": "string"}, "default": []}
    return {**words, "title": title, "description": description}


_FIELDS = {
    "command": _text(
        "Command",
        "The command that starts a run. Empty: the Prefect engine of the worker's Python; in a container "
        "`prefect flow-run execute`, for which its image needs prefect.",
    ),
    "env": _table(
        "Environment Variables",
        "Environment variables of the run. A variable without a value is left out.",
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
    ),
    "working_dir": _text(
        "Working Directory",
        "The folder in which a run starts, on its worker's host or in its container; a relative one begins where the "
        "worker was started. Empty: a new one each time; in a container that of its image.",
    ),
    "nice": _optional(
        "Niceness",
        "How much less priority a run has than its worker, up to 19; at least the worker's --nice.",
        {"type": "integer", "minimum": 0, "maximum": 19},
    ),
    "stop_grace": _optional(
        "Stop Grace",
        "Seconds that a stop of its worker waits for a run, and gives it between TERM and KILL. Empty: the worker's.",
        {"type": "number", "minimum": 0, "maximum": 86400},
    ),
    "on_lost_run": _optional(
        "On Lost Run",
        "What becomes of a run whose host is lost: report = it is told as crashed; requeue = it is started again, and "
        "its process ends by itself when its worker cannot reach Redis in time. Empty: as the poller was told.",
        {"type": "string", "enum": ["report", "requeue"]},
    ),
    "image": _text(
        "Image",
        "For workers that deploy containers: the image with the flow and its packages.",
        examples=["docker.io/prefecthq/prefect:3-latest"],
    ),
    "image_pull_policy": _optional(
        "Image Pull Policy",
        "For containers: when the image is fetched. Empty: always for latest, else if missing.",
        {"type": "string", "enum": ["IfNotPresent", "Always", "Never"]},
    ),
    "registry_credentials": _optional(
        "Registry Credentials",
        "For containers: a block of registry credentials, for an image that is not here.",
        {"type": "object"},
    ),
    "volumes": _list(
        "Volumes",
        "For containers: folders of the host, each as HOST_PATH:CONTAINER_PATH or with :ro after, as far as the worker "
        "allows them, and named volumes.",
    ),
    "networks": _list("Networks", "For containers: the networks that they join."),
    "network_mode": _text("Network Mode", "For containers: host, none, bridge or the name of a network."),
    "memory": _text("Memory Limit", "For containers: the memory that a run may use, such as 512m or 2g."),
    "cpus": _optional(
        "CPU Limit",
        "For containers: how many processors a run may use, fractions allowed.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    "mem_limit": _text("Memory Limit of the Container", "For containers: another name of the memory limit."),
    "memswap_limit": _text("Swap Limit", "For containers: memory and swap together, such as 3g."),
    "privileged": _optional(
        "Privileged",
        "For containers: all rights on the host; refused, unless the worker allows it.",
        {"type": "boolean"},
    ),
    "name": _text("Name", "For containers: the name that they get. Empty: that of the run."),
    "shm_size": _text("Shared Memory", "For containers: the size of /dev/shm, such as 1g."),
    "gpus": _text("GPUs", "For containers: how many graphics processors they get, or all."),
    "user": _text("User", "For containers: the user and group that the run has inside, as USER or USER:GROUP."),
    "labels": _table(
        "Labels", "For containers: labels that are put on them beside flowfleet's own.", {"type": "string"}
    ),
    "container_create_kwargs": _table(
        "Further Settings",
        "For containers: settings by their names in Docker's SDK, such as ulimits. What could take the host over is "
        "refused, unless its worker allows it.",
        {},
    ),
}


def base_job_template() -> dict[str, Any]:
    """The template: each variable of the form stands in the job configuration under its own name."""
    return {
        "job_configuration": {name: f"{{{{ {name} }}}}" for name in _FIELDS},
        "variables": {
            "type": "object",
            "description": "How runs of this pool are started. All fields are optional.",
            "properties": _FIELDS,
        },
    }
