"""Defaults: Prefect 1's own agent settings, a layer that stands below the flags, variables and files of ours."""

import ast
from collections.abc import Mapping
from typing import Any, TypeVar

from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, add
from flowfleet.settings.option import options_of

C = TypeVar("C", bound=CommonSettings)

#: Prefect 1's settings by the names of our fields
_TEXTS = {"name": "cloud.agent.name", "log_level": "cloud.agent.level", "cloud_logs": "cloud.send_flow_run_logs"}
_ADDRESS, _LABELS, _VARIABLES = "cloud.agent.agent_address", "cloud.agent.labels", "cloud.agent.env_vars"
_A_LIST = "a list of labels: write it as ['a', 'b'] or a,b"
_A_TABLE = "a table of variables: write it as {'NAME': 'VALUE'}"


def applied(settings: C, found: Prefect1Settings) -> C:
    """The settings with Prefect 1's own as defaults; raises `SettingsError` for a value that cannot be used."""
    options = options_of(type(settings))

    def of_agent(name: str) -> Found | None:
        if name in _TEXTS:
            theirs = found.get(_TEXTS[name])
        elif name == "agent_address" and isinstance(settings, PollerSettings):
            # the address of the agent that polls: a worker on the same host cannot have it too
            theirs = found.get(_ADDRESS)
        elif name == "labels" and isinstance(settings, WorkerSettings):
            # a poller's labels only filter the workers' offers: which labels there are is for the workers to say
            theirs = _labels(found)
        else:
            return _variables(found) if name == "env" else None
        if theirs is None:
            return None
        return Found(options[name].read(theirs.value, theirs.source), theirs.origin)

    return add(settings, of_agent)


def _labels(found: Prefect1Settings) -> Found | None:
    """The labels: a list in a file, a Python list as text, or texts with commas; None when there are none."""
    written = found.written(_LABELS)
    if written is None:
        return None
    items = written.value
    while isinstance(items, str):
        is_literal = items.strip()[:1] in {"[", "(", "{", "'", '"'}
        split = [item.strip() for item in items.split(",") if item.strip()]
        items = _literal(items, written, _A_LIST) if is_literal else split
    if not isinstance(items, list | tuple | set) or not all(isinstance(item, str) and item for item in items):
        raise SettingsError(f"{written.source} is not {_A_LIST}")
    return Found(tuple(items), written.origin) if items else None


def _variables(found: Prefect1Settings) -> Found | None:
    """The variables that Prefect 1's agent gives to every run: a table in a file, or a Python dict written as text."""
    table = found.table(_VARIABLES)
    written = found.written(_VARIABLES) or next(iter(table.values()), None)
    if written is None:
        return None
    pairs: Any = {name: each.value for name, each in table.items()}
    if found.written(_VARIABLES):
        pairs = _literal(str(written.value).strip() or "{}", written, _A_TABLE)
        if not isinstance(pairs, Mapping) or not all(isinstance(name, str) for name in pairs):
            raise SettingsError(f"{written.source} is not {_A_TABLE}")
    return Found(tuple(f"{name}={value}" for name, value in pairs.items()), written.origin) if pairs else None


def _literal(text: str, written: Found, wants: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise SettingsError(f"{written.source} is not {wants}") from error
