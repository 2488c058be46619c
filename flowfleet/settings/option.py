"""Option: one setting's flags, variable and meaning; and how the settings of a command are filled from its sources."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from flowfleet import logs
from flowfleet.errors import SettingsError

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """A kind of value: how it is parsed from text, and how it is described to people."""

    parse: Callable[[str], Any] = str
    #: what a right value looks like, for the error about a wrong one
    wants: str = "text"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    switch: bool = False
    #: gives what people may see of a value that may hold a secret; None = the whole value
    masked: Callable[[str], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting as people give it: its flags, environment variable, help text and kind of value."""

    #: as for click, but in one string: `-k --key`, `--a/--no-a`; empty = the setting has a variable only
    flag: str = ""
    #: `{level}` in it stands for the command's own default of --log-level
    help: str
    kind: ValueKind = ValueKind()
    #: the variable's name without FLOWFLEET_; None = made from the long flag
    named: str | None = None
    secret: bool = False
    #: True when the value may stand in a file that the variable with _FILE at its end names
    by_file: bool = False
    #: None = one value; else the text that separates several values in the variable
    separator: str | None = None
    #: True for a variable that only tests set; it is not shown to people
    for_tests: bool = False
    #: the attribute that this option sets, where the field holds a record (the lease has three)
    part: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags, one by one."""
        return tuple(self.flag.split())

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return "FLOWFLEET_" + (self.named or self.key.upper().replace("-", "_"))

    @property
    def file_variable(self) -> str | None:
        """The variable that names a file which holds the value."""
        return f"{self.variable}_FILE" if self.by_file else None

    @property
    def key(self) -> str:
        """The name in `--config` files and in `flowfleet config`: the long flag without its dashes."""
        for flag in self.flags:
            if flag.startswith("--"):
                return flag[2:].partition("/")[0]
        return (self.named or "").lower().replace("_", "-")

    @property
    def dest(self) -> str:
        """The name of the click parameter."""
        return f"option_{self.key.replace('-', '_')}"


@dataclass(frozen=True)
class Origin:
    """Where a value came from, in words: `flag --redis`, `variable FLOWFLEET_REDIS`, `file …`, `default`."""

    kind: str  # flag | variable | secret-file | config | prefect1 | machine | default
    name: str = ""

    def __str__(self) -> str:
        words = {"secret-file": "file", "config": "config file", "prefect1": "", "machine": "this machine"}
        return f"{words.get(self.kind, self.kind)} {self.name}".strip()


def setting(default: Any, *options: Option) -> Any:
    """A dataclass field of a settings class, with the options that fill it."""
    secret = any(option.secret or option.kind.masked for option in options)
    return dataclasses.field(default=default, repr=not secret, metadata={"options": options})


def options_of(cls: type[Any]) -> list[tuple[str, Option]]:
    """All options of a settings class with the names of their fields, in order."""
    return [(field.name, option) for field in dataclasses.fields(cls) for option in field.metadata.get("options", ())]


def _fields(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def machine_facts() -> dict[str, Any]:
    """Defaults that depend on this machine: its name and its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"host": platform.node() or "localhost", "slots": max(1, cores or 1)}


def resolve(
    cls: type[S],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> S:
    """Fill a settings class: flag, then variable, then its secret file, then config file, then machine, then default.

    `flags` and `config` are by option key (`work-queue`); an absent flag is missing or None or (). Raises
    `SettingsError` with one sentence for a value that cannot be used.
    """
    values: dict[str, Any] = {name: value for name, value in (facts or {}).items() if name in _fields(cls)}
    origins: dict[str, Origin] = {name: Origin("machine") for name in values}
    for name, option in options_of(cls):
        found = _look_up(option, flags, environ, config)
        if found is None:
            continue
        value, origin = found
        if option.part:
            whole: Any = values.get(name, _fields(cls)[name].default)
            value = dataclasses.replace(whole, **{option.part: value})
        values[name] = value
        origins[option.key if option.part else name] = origin
    values["redis"] = _with_password(values, cls)
    made: Callable[..., S] = cls
    return made(**values, origins=origins)


def _look_up(
    option: Option, flags: Mapping[str, Any], environ: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[Any, Origin] | None:
    given = flags.get(option.key)
    if given is not None and given != ():
        return read(option, given, option.flags[-1]), Origin("flag", option.flags[-1])
    if environ.get(option.variable):
        return read(option, environ[option.variable], option.variable), Origin("variable", option.variable)
    if option.file_variable and environ.get(option.file_variable):
        path = environ[option.file_variable]
        return read(option, _secret_of(path, option.file_variable), option.file_variable), Origin("secret-file", path)
    if option.key in config:
        return read(option, config[option.key], f"{option.key} in the config file"), Origin("config", option.key)
    return None


def read(option: Option, given: Any, source: str) -> Any:
    """Parse what a flag (already typed or text), a variable (text) or a config file (TOML) gave.

    Raises `SettingsError` with one sentence that names the source, the value and what is wanted.
    """
    if option.separator is not None:
        items = _several(given, option.separator)
        return tuple(_parse(option, item, source) for item in items)
    if option.kind.switch:
        return given if isinstance(given, bool) else _switch(str(given), source)
    if isinstance(given, bool | list | dict):
        raise SettingsError(f"{source} must be {option.kind.wants}, not {given!r}.")
    return _parse(option, str(given), source)


def _several(given: Any, separator: str) -> list[str]:
    if isinstance(given, str):
        return [item.strip() for item in given.split(separator) if item.strip()]
    return [str(item) for item in given] if isinstance(given, list | tuple) else [str(given)]


def _parse(option: Option, text: str, source: str) -> Any:
    shown = logs.MASK if option.secret else option.kind.masked(text) if option.kind.masked else repr(text)
    if option.kind.choices and text not in option.kind.choices:
        # log levels may be written in lower case too
        if text.upper() not in option.kind.choices:
            raise SettingsError(f"{source} cannot be {shown}: use one of {', '.join(option.kind.choices)}.")
        text = text.upper()
    try:
        return option.kind.parse(text)
    except ValueError as error:
        raise SettingsError(f"{source} cannot be {shown}: it must be {option.kind.wants}.") from error


def _switch(text: str, source: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise SettingsError(f"{source} cannot be {text!r}: use true or false.")


def _secret_of(path: str, variable: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{variable} names {path}, which cannot be read ({why}).") from error
    if not text:
        raise SettingsError(f"{variable} names {path}, which is empty.")
    return text


def _with_password(values: Mapping[str, Any], cls: type[Any]) -> str:
    """The Redis address with the password that was given apart from it, since addresses show in process lists."""
    url = str(values.get("redis") or _fields(cls)["redis"].default)
    password = values.get("redis_password")
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError as error:
        raise SettingsError(f"The Redis address {logs.redact_url(url)} cannot be read: {error}.") from error
    if not password or has_password:
        return url
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host if at else parts.netloc}"))


def refresh(settings: S, only: Collection[str] | None = None) -> S:
    """Read the secret files again (at SIGHUP, or after a refusal), of all fields or some; the rest stays as it is."""
    origins: Mapping[str, Origin] = getattr(settings, "origins", {})
    changed: dict[str, Any] = {}
    for name, option in options_of(type(settings)):
        wanted = only is None or name in only
        if wanted and option.file_variable and name in origins and origins[name].kind == "secret-file":
            changed[name] = _secret_of(origins[name].name, option.file_variable)
    if "redis" in changed or "redis_password" in changed:
        before: Mapping[str, Any] = vars(settings)
        bare = changed.get("redis") or _without_password(before["redis"], before["redis_password"])
        changed["redis"] = _with_password({**before, **changed, "redis": bare}, type(settings))
    renewed: Any = dataclasses.replace(settings, **changed)  # type: ignore[type-var]
    for secret in secrets_of(renewed):
        logs.keep_secret(secret)
    return renewed  # type: ignore[no-any-return]


def _without_password(url: str, password: str | None) -> str:
    """The Redis address as it was given: without the password that came apart from it, but with its user."""
    parts = urlsplit(url)
    if not password or parts.password != quote(password, safe=""):
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}" if parts.username else host))


def secrets_of(settings: Any) -> list[str]:
    """Every secret value in these settings, for the redactor."""
    found = [getattr(settings, name) for name, option in options_of(type(settings)) if option.secret]
    secrets = [value for value in found if isinstance(value, str) and "://" not in value]
    encoded = [urlsplit(value).password or "" for value in found if isinstance(value, str) and "://" in value]
    secrets += [form for secret in encoded for form in (secret, unquote(secret))]
    return [secret for secret in secrets if secret]
