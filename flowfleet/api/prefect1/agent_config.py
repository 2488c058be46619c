"""Agent config: the settings that a Prefect 1 API keeps under `--agent-config-id`, laid over those given here.

The entries are named like the arguments of Prefect 1's own agents. They win, as is documented there. What is one
agent there is a poller and its workers here, so each part takes the entries that concern it.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flowfleet.api.client import ApiClient
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.defaults import identity
from flowfleet.errors import SettingsError
from flowfleet.settings import values
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import Origin, options_of

logger = logging.getLogger(__name__)

S = TypeVar("S", PollerSettings, WorkerSettings)


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One entry: our setting for it, and the reader of its JSON, which raises ValueError or TypeError."""

    field: str
    read: Callable[[Any], Any]
    wants: str
    of: tuple[type[CommonSettings], ...]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _name(value: Any) -> str:
    return identity(_text(value))


def _labels(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values.label(_text(label)) for label in _list(value)))


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(_text(path) for path in _list(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def _pairs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict):
        raise TypeError
    for name, each in value.items():
        if not name or "=" in name or not isinstance(each, str):
            raise TypeError
    return tuple(f"{name}={each}" for name, each in value.items())


_BOTH = (PollerSettings, WorkerSettings)
_ENTRIES = {
    # for the poller alone: a worker's name is its identity and its address a port of its host, so many cannot share one
    "name": _Entry(field="name", read=_name, wants="some text", of=(PollerSettings,)),
    "agent_address": _Entry(field="agent_address", read=_text, wants="an address", of=(PollerSettings,)),
    "max_polls": _Entry(field="max_polls", read=_count, wants=values.NUMBER.wants, of=(PollerSettings,)),
    "labels": _Entry(
        field="labels", read=_labels, wants=f"a list of texts of at most {values.LABEL_LENGTH} characters", of=_BOTH
    ),
    "no_cloud_logs": _Entry(field="cloud_logs", read=lambda value: not _switch(value), wants="true or false", of=_BOTH),
    "env_vars": _Entry(field="env", read=_pairs, wants="a table of names and texts", of=(WorkerSettings,)),
    "import_paths": _Entry(field="import_paths", read=_paths, wants="a list of texts", of=(WorkerSettings,)),
    "show_flow_logs": _Entry(field="show_flow_logs", read=_switch, wants="true or false", of=(WorkerSettings,)),
    "hostname_label": _Entry(field="hostname_label", read=_switch, wants="true or false", of=(WorkerSettings,)),
}
#: entries that are skipped silently: the id is how this config was found
_NO_MATTER = frozenset({"agent_config_id"})
_SECRET = frozenset({"env_vars"})


def applied(settings: S, api: ApiClient) -> S:
    """The settings with the agent config laid over them, if they name one; the caller connects anew with the result.

    Raises `ApiRejected` for a config that does not exist, and `SettingsError` for one that cannot be used.
    """
    config_id = settings.agent_config_id
    if config_id is None:
        return settings
    if not isinstance(api, Prefect1):
        logger.warning("--agent-config-id is ignored, only Prefect 1 has agent configs")
        return settings
    try:
        uuid.UUID(config_id)
    except ValueError as error:
        raise SettingsError(
            f"--agent-config-id cannot be {config_id!r}: it must be an id such as 01234567-89ab-cdef-0123-456789abcdef"
        ) from error
    return lay_over(settings, api.agent_config(config_id), config_id)


def lay_over(settings: S, config: Mapping[str, Any], config_id: str) -> S:
    """The settings with the entries of this config laid over them; an entry that is null is ignored."""
    given = {name: value for name, value in config.items() if value is not None and name not in _NO_MATTER}
    unknown = sorted(set(given) - set(_ENTRIES))
    if unknown:
        logger.warning(
            "settings of the agent config are not known here and ignored",
            extra={"agent_config": config_id, "settings": ", ".join(unknown)},
        )
    changes: dict[str, Any] = {}
    for name, value in given.items():
        entry = _ENTRIES.get(name)
        if entry is not None and type(settings) in entry.of:
            changes[entry.field] = _read(entry, name, value, config_id)
    origins = dict(settings.origins)
    for field, value in changes.items():
        _tell_loser(settings, field, value, config_id)
        origins[field] = Origin("agent config", config_id)
    return dataclasses.replace(settings, **changes, origins=origins)


def _read(entry: _Entry, name: str, value: Any, config_id: str) -> Any:
    try:
        return entry.read(value)
    except (TypeError, ValueError) as error:
        shown = "" if name in _SECRET else f" {value!r}"
        raise SettingsError(
            f"the agent config {config_id} has {name}{shown[:200]}, which must be {entry.wants}: correct it at the "
            "API, or start without --agent-config-id"
        ) from error


def _tell_loser(settings: CommonSettings, field: str, value: Any, config_id: str) -> None:
    origin = settings.origins.get(field)
    if origin is None or origin.kind in ("default", "machine"):
        return
    before = getattr(settings, field)
    same = set(before) == set(value) if field == "labels" else before == value
    if not same:
        flag = next(option.flags[-1] for name, option in options_of(type(settings)) if name == field)
        logger.warning(
            "the agent config wins over what was given here",
            extra={"agent_config": config_id, "setting": flag.partition("/")[0], "given_by": str(origin)},
        )
