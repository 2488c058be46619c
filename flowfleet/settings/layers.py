"""Layers: the ordered list of places where values of settings come from; the nearest one that has a value wins."""

import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from flowfleet import logs
from flowfleet.errors import SettingsError
from flowfleet.ledger.login import with_authority, with_password, without_password
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import Option, Origin, options_of

S = TypeVar("S", bound=CommonSettings)
Values = Mapping[str, Any]

#: the kinds of layers, the nearest first
LADDER = ("agent config", "flag", "variable", "secret-file", "config", "prefect", "machine", "default")


@dataclass(frozen=True)
class Found:
    """A value and where it was found; the value may be a secret, so `repr` does not show it."""

    value: Any = field(repr=False)
    origin: Origin

    @property
    def source(self) -> str:
        """Where that is, as errors say it."""
        return self.origin.name or self.origin.kind


#: gives the value of a field by its name, and None where it has none
Layer = Callable[[str], Found | None]


def machine_facts() -> dict[str, Any]:
    """Defaults that depend on this machine: its name and its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"host": platform.node() or "localhost", "slots": max(1, cores or 1)}


def resolve(cls: type[S], flags: Values, environ: Mapping[str, str], config: Values, facts: Values | None = None) -> S:
    """Fill a settings class: flag, then variable, then its secret file, then config file, then machine, then default.

    `flags` and `config` are by option key (`work-queue`); an absent flag is missing or None or (). Raises
    `SettingsError` with one sentence for a value that cannot be used.
    """
    options = options_of(cls)

    def flag(name: str) -> Found | None:
        given = flags.get(options[name].key)
        # an agent's argument may stand for a variable that has no flag
        shown = (options[name].variable, *options[name].flags)[-1]
        return _given(options[name], None if given == () else given, Origin("flag", shown))

    def variable(name: str) -> Found | None:
        given = environ.get(options[name].variable) or None
        return _given(options[name], given, Origin("variable", options[name].variable))

    def in_config(name: str) -> Found | None:
        key = options[name].key
        return _given(options[name], config.get(key), Origin("config", key), f"{key} in the config file")

    def machine(name: str) -> Found | None:
        return Found(facts[name], Origin("machine")) if facts and name in facts else None

    layers = (flag, variable, secret_files(options, environ), in_config, machine)
    return add(cls(), lambda name: next((found for layer in layers if (found := layer(name))), None))


def _given(option: Option, given: Any, origin: Origin, source: str = "") -> Found | None:
    return None if given is None else Found(option.read(given, source or origin.name), origin)


def secret_files(options: Mapping[str, Option], paths: Mapping[str, str]) -> Layer:
    """The layer of secrets that stand in files; `paths` names the files by their variables (FLOWFLEET_KEY_FILE)."""

    def secret_file(name: str) -> Found | None:
        variable = options[name].file_variable
        path = paths.get(variable, "")
        given = _secret_of(path, variable) if path else None
        return _given(options[name], given, Origin("secret-file", path), variable)

    return secret_file


def _secret_of(path: str, variable: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{variable} names {path}, which cannot be read ({why}).") from error
    if not text:
        raise SettingsError(f"{variable} names {path}, which is empty.")
    return text


def add(settings: S, layer: Layer) -> S:
    """The settings with one more layer: its values win, except over what a nearer layer has given."""
    values: dict[str, Any] = {}
    origins = dict(settings.origins)
    for name in options_of(type(settings)):
        found = layer(name)
        if found and LADDER.index(found.origin.kind) <= LADDER.index(settings.origin(name).kind):
            values[name], origins[name] = found.value, found.origin
    if {"redis", "redis_password", "ca_file"} & values.keys():
        # the password may be given apart from the address, since addresses show in process lists
        bare = values.get("redis") or without_password(settings.redis, settings.redis_password)
        bare = with_authority(bare, values.get("ca_file", settings.ca_file))
        values["redis"] = with_password(bare, values.get("redis_password", settings.redis_password))
    return replace(settings, **values, origins=origins) if values else settings


def refresh(settings: S, only: Collection[str] | None = None) -> S:
    """Read the secret files again (at SIGHUP, or after a refusal), of all fields or some; the rest stays as it is."""
    options = options_of(type(settings))
    paths = {
        options[name].file_variable: origin.name
        for name, origin in settings.origins.items()
        if origin.kind == "secret-file" and (only is None or name in only)
    }
    renewed = add(settings, secret_files(options, paths))
    for secret in secrets_of(renewed):
        logs.keep_secret(secret)
    return renewed


def secrets_of(settings: CommonSettings) -> list[str]:
    """Every secret value in these settings, for the redactor."""
    masked = [getattr(settings, name) for name, option in options_of(type(settings)).items() if option.kind.masked]
    plain = [value for value in masked if isinstance(value, str) and "://" not in value]
    encoded = [urlsplit(value).password or "" for value in masked if isinstance(value, str) and "://" in value]
    return [secret for secret in (*plain, *encoded, *map(unquote, encoded)) if secret]
