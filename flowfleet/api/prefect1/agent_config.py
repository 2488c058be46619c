"""Agent config: the settings that a Prefect 1 API keeps under `--agent-config-id`, laid over those given here.

The entries are named like the arguments of Prefect 1's own agents. They win, as is documented there. What is one
agent there is a poller and its workers here, so each part takes the entries that concern it.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flowfleet.api.client import ApiClient
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.errors import SettingsError
from flowfleet.settings import values
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, add
from flowfleet.settings.option import Origin, options_of

logger = logging.getLogger(__name__)

S = TypeVar("S", PollerSettings, WorkerSettings)


@dataclass(frozen=True)
class _Entry:
    """One entry: its name in the config, and the reader of its JSON, which raises ValueError or TypeError."""

    name: str
    read: Callable[[Any], Any]
    wants: str
    of: tuple[type[CommonSettings], ...]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _name(value: Any) -> str:
    return str(values.ANY_NAME.parse(_text(value)))


def _labels(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values.LABELS.parse(_text(label)) for label in _list(value)))


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


_POLLER, _WORKER, _BOTH = (PollerSettings,), (WorkerSettings,), (PollerSettings, WorkerSettings)
_A_LABEL = f"a list of texts of at most {values.LABEL_LENGTH} characters"
#: by our field; name and address are for the poller alone: a worker's name is its identity and its address a port of
#: its host, so many cannot share one
_ENTRIES = {
    "name": _Entry("name", _name, "some text", _POLLER),
    "agent_address": _Entry("agent_address", _text, "an address", _POLLER),
    "max_polls": _Entry("max_polls", _count, values.NUMBER.wants, _POLLER),
    "labels": _Entry("labels", _labels, _A_LABEL, _BOTH),
    "cloud_logs": _Entry("no_cloud_logs", lambda value: not _switch(value), "true or false", _BOTH),
    "env": _Entry("env_vars", _pairs, "a table of names and texts", _WORKER),
    "import_paths": _Entry("import_paths", _paths, "a list of texts", _WORKER),
    "show_flow_logs": _Entry("show_flow_logs", _switch, "true or false", _WORKER),
    "hostname_label": _Entry("hostname_label", _switch, "true or false", _WORKER),
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
        logger.warning("--agent-config-id is ignored: only Prefect 1 has agent configs")
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
    unknown = sorted(set(given) - {entry.name for entry in _ENTRIES.values()})
    if unknown:
        logger.warning(
            "settings of the agent config are not known here and ignored",
            extra={"agent_config": config_id, "settings": ", ".join(unknown)},
        )

    def of_config(field: str) -> Found | None:
        entry = _ENTRIES.get(field)
        if entry is None or entry.name not in given or type(settings) not in entry.of:
            return None
        return Found(_read(entry, given[entry.name], config_id), Origin("agent config", config_id))

    laid_over = add(settings, of_config)
    for field, origin in settings.origins.items():
        _tell_loser(field, origin, settings, laid_over)
    return laid_over


def _read(entry: _Entry, value: Any, config_id: str) -> Any:
    try:
        return entry.read(value)
    except (TypeError, ValueError) as error:
        shown = "" if entry.name in _SECRET else f" {value!r}"
        raise SettingsError(
            f"the agent config {config_id} has {entry.name}{shown[:200]}, which must be {entry.wants}: correct it at "
            "the API, or start without --agent-config-id"
        ) from error


def _tell_loser(field: str, origin: Origin, before: CommonSettings, after: CommonSettings) -> None:
    given, wins = getattr(before, field), getattr(after, field)
    same = set(given) == set(wins) if field == "labels" else given == wins
    if not same and origin.kind != "machine":
        logger.warning(
            "the agent config wins over what was given here",
            extra={
                "agent_config": after.origin(field).name,
                "setting": f"--{options_of(type(after))[field].key}",
                "given_by": str(origin),
            },
        )
