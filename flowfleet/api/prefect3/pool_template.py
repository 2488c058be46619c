"""Pool template: the base job template of the pools that flowfleet creates, which the Prefect UI shows as a form."""

from __future__ import annotations

from typing import Any

POOL_TYPE = "flowfleet"


def base_job_template() -> dict[str, Any]:
    """The template: each variable of the form stands in the job configuration under its own name."""
    properties = _properties()
    return {
        "job_configuration": {name: f"{{{{ {name} }}}}" for name in properties},
        "variables": {
            "type": "object",
            "description": "How runs of this pool are started. All fields are optional.",
            "properties": properties,
        },
    }


def _properties() -> dict[str, Any]:
    words = {"type": "array", "items": {"type": "string"}, "default": []}
    return {
        "command": {
            "title": "Command",
            "description": "The command that starts a run. Empty: the Prefect engine of the worker's Python.",
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
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
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
        },
        "image": {
            "title": "Image",
            "description": "For workers that deploy containers: the image with the flow and its packages.",
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
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
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
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
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "default": None,
        },
        "labels": {
            "title": "Labels",
            "description": "For containers: labels that are put on them beside flowfleet's own.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {},
        },
    }
