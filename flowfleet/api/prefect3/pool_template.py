"""Pool template: the base job template of the pools that flowfleet creates, which the Prefect UI shows as a form."""

from __future__ import annotations

from typing import Any

POOL_TYPE = "flowfleet"


def base_job_template() -> dict[str, Any]:
    """The template: each variable of the form stands in the job configuration under its own name."""
    properties = {**_of_each_run(), **_of_containers()}
    return {
        "job_configuration": {name: f"{{{{ {name} }}}}" for name in properties},
        "variables": {
            "type": "object",
            "description": "How runs of this pool are started. All fields are optional.",
            "properties": properties,
        },
    }


def _text() -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}


def _of_each_run() -> dict[str, Any]:
    return {
        "command": {
            "title": "Command",
            "description": "The command that starts a run. Empty: the Prefect engine of the worker's Python.",
            **_text(),
        },
        "env": {
            "title": "Environment Variables",
            "description": "Environment variables of the run. A variable without a value is left out.",
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "default": {},
        },
        "working_dir": {
            "title": "Working Directory",
            "description": "The folder on the worker's host in which a run starts. Empty: a new one each time.",
            **_text(),
        },
        "nice": {
            "title": "Niceness",
            "description": "How much less priority a run has than its worker, up to 19; at least the worker's --nice.",
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": 19}, {"type": "null"}],
            "default": None,
        },
    }


def _of_containers() -> dict[str, Any]:
    words = {"type": "array", "items": {"type": "string"}, "default": []}
    return {
        "image": {
            "title": "Image",
            "description": "For workers that deploy containers: the image with the flow and its packages.",
            **_text(),
            "examples": ["docker.io/prefecthq/prefect:3-latest"],
        },
        "image_pull_policy": {
            "title": "Image Pull Policy",
            "description": "For containers: when the image is fetched. Empty: always for latest, else if missing.",
            "anyOf": [{"type": "string", "enum": ["IfNotPresent", "Always", "Never"]}, {"type": "null"}],
            "default": None,
        },
        "volumes": {
            **words,
            "title": "Volumes",
            "description": "For containers: folders of the host, each as HOST_PATH:CONTAINER_PATH or with :ro after.",
        },
        "networks": {**words, "title": "Networks", "description": "For containers: the networks that they join."},
        "memory": {
            "title": "Memory Limit",
            "description": "For containers: the memory that a run may use, such as 512m or 2g.",
            **_text(),
        },
        "cpus": {
            "title": "CPU Limit",
            "description": "For containers: how many processors a run may use, fractions allowed.",
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}],
            "default": None,
        },
        "user": {
            "title": "User",
            "description": "For containers: the user and group that the run has inside, as USER or USER:GROUP.",
            **_text(),
        },
        "labels": {
            "title": "Labels",
            "description": "For containers: labels that are put on them beside flowfleet's own.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {},
        },
    }
