"""Defaults: the values of Prefect 1's own agent settings, which hold where no flag, variable or file of ours is set."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from flowfleet.api.prefect1.settings import Prefect1Settings, list_of
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import Origin, options_of, read

C = TypeVar("C", bound=CommonSettings)

#: the kinds of origin that win over Prefect's own settings
_NEARER = ("flag", "variable", "secret-file", "config", "agent config")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, kw_only=True)
class AgentDefaults:
    """Our entry in Prefect 1's list of agents, and what an agent passes on to its runs."""

    name: str
    config_id: str | None
    labels: tuple[str, ...]
    deploy: str
    log_level: str
    cloud_logs: bool


def agent(settings: CommonSettings, found: Prefect1Settings) -> AgentDefaults:
    """What the API client must know of the poller or worker that uses it; `settings` have these defaults already."""
    name = settings.name
    if settings.origins.get("name", Origin("default")).kind == "prefect1":
        name = found.text("cloud.agent.name")  # an agent's name may have blanks, which our identity may not
    labels: tuple[str, ...] = getattr(settings, "agent_labels", ()) or getattr(settings, "labels", ())
    return AgentDefaults(
        name=name,
        config_id=getattr(settings, "agent_config_id", None),
        labels=labels,
        deploy=getattr(settings, "deploy", "process"),
        log_level=found.text("logging.level").upper() or "INFO",
        cloud_logs=getattr(settings, "cloud_logs", True),
    )


def applied(settings: C, found: Prefect1Settings) -> C:
    """The settings with Prefect 1's own as defaults; raises `SettingsError` for a value that cannot be used."""
    known = {field.name for field in fields(settings)}
    taken: dict[str, Any] = {}
    origins = dict(settings.origins)
    for name, (value, source) in _values(settings, found).items():
        if name not in known or origins.get(name, Origin("default")).kind in _NEARER:
            continue
        taken[name] = value
        origins[name] = Origin("prefect1", source)
    return replace(settings, **taken, origins=origins) if taken else settings


def _values(settings: CommonSettings, found: Prefect1Settings) -> dict[str, tuple[Any, str]]:
    options = dict(options_of(type(settings)))
    values: dict[str, tuple[Any, str]] = {}
    name = found.get("cloud.agent.name")
    if name:
        values["name"] = (identity(name.value), name.source)
    level = found.get("cloud.agent.level")
    if level:
        values["log_level"] = (read(options["log_level"], level.value, level.source), level.source)
    logs = found.get("cloud.send_flow_run_logs")
    if logs:
        values["cloud_logs"] = (_switch(logs.value, logs.source), logs.source)
    if isinstance(settings, WorkerSettings):
        # a poller's labels only filter the workers' offers: which labels there are is for the workers to say
        labels = list_of(found.value("cloud.agent.labels"))
        if labels:
            values["labels"] = (read(options["labels"], labels[0], labels[1]), labels[1])
        env = _environment(found)
        if env:
            values["env"] = env
    address = found.get("cloud.agent.agent_address")
    if address and isinstance(settings, PollerSettings):
        # the address of the agent that polls: a worker on the same host cannot have it too
        values["agent_address"] = (read(options["agent_address"], address.value, address.source), address.source)
    return values


def identity(name: str) -> str:
    """An agent's name, which may be any text, as the name of a poller or worker, which must fit keys and folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "agent"


def _switch(text: str, source: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise SettingsError(f"{source} cannot be {text!r}: use true or false")
    return text.lower() in _TRUE


def _environment(found: Prefect1Settings) -> tuple[tuple[str, ...], str] | None:
    """The variables that Prefect 1's agent gives to every run: a table in a file, or a Python dict written as text."""
    written = found.value("cloud.agent.env_vars")
    if written is None:
        table = found.table("cloud.agent.env_vars")
        source = next((where for _, where in table.values()), "")
        return (tuple(f"{name}={value}" for name, (value, _) in table.items()), source) if table else None
    value, source = written
    try:
        pairs = ast.literal_eval(str(value).strip() or "{}")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise SettingsError(f"{source} is not a table of variables, write it as {{'NAME': 'VALUE'}}") from error
    if not isinstance(pairs, Mapping) or not all(isinstance(name, str) for name in pairs):
        raise SettingsError(f"{source} is not a table of variables, write it as {{'NAME': 'VALUE'}}")
    return (tuple(f"{name}={value}" for name, value in pairs.items()), source) if pairs else None
