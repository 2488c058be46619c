"""Click options: the settings as options of click commands, and the TOML file that `--config` names."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import click

from flowfleet import logs
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.option import Option, machine_facts, options_of, resolve, secrets_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

TABLES = ("poller", "worker", "flowfleet")


def read_config(path: str | None, command: str, known: frozenset[str]) -> dict[str, Any]:
    """The settings of a TOML file for one command: its top level, and over it the table named like the command."""
    if path is None:
        return {}
    try:
        whole = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The config file {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The config file {path} is not valid TOML: {error}.") from error
    merged = {key: value for key, value in whole.items() if not isinstance(value, dict)}
    for key, table in whole.items():
        if isinstance(table, dict):
            if key not in TABLES:
                raise SettingsError(
                    f"The config file {path} has the table [{key}]: use [poller], [worker], [flowfleet]."
                )
            _check_keys(table, known, path)
            if key == command:
                merged.update(table)
    _check_keys(merged, known, path)
    return {key.replace("_", "-"): value for key, value in merged.items()}


def _check_keys(table: Mapping[str, Any], known: frozenset[str], path: str) -> None:
    for key in table:
        if key.replace("_", "-") not in known:
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "flowfleet config shows all of them."
            raise SettingsError(f"The config file {path} has the setting {key!r}, which does not exist: {remedy}")


def click_option(option: Option, level: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The click option of a setting; its help names the variable. Its default is None: `resolve` finds the value."""
    text = f"{option.help.replace('{level}', level)}  [{option.variable}]"
    if option.kind.switch:
        return click.option(option.dest, *option.flags, default=None, help=text)
    metavar = option.kind.metavar or "|".join(option.kind.choices) or None
    several = option.separator is not None
    return click.option(option.dest, *option.flags, type=str, multiple=several, metavar=metavar, help=text)


def options(
    cls: type[S], *, command: str = "flowfleet", level: str = "INFO"
) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command the options of a settings class; it is called with one frozen instance as `settings`.

    Logging is set up on the way, since only here the level, the format and the secrets are known. `level` is the
    default of commands that only ask: their answer is what people want to see.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def wrapper(*args: Any, config_file: str | None, **given: Any) -> R:
            flags = {option.key: given.pop(option.dest, None) for _, option in options_of(cls) if option.flags}
            config = read_config(config_file, command, known_keys())
            settings: Any = resolve(cls, flags, os.environ, config, {**machine_facts(), "log_level": level})
            logs.configure(settings.log_level, settings.log_format, secrets=secrets_of(settings))
            _warn_of_password(flags)
            return function(*args, settings=settings, **given)

        wrapped: Callable[..., R] = wrapper
        for _, option in reversed(options_of(cls)):
            if option.flags:
                wrapped = click_option(option, level)(wrapped)
        return click.option(
            "config_file",
            "--config",
            envvar="FLOWFLEET_CONFIG",
            metavar="FILE",
            help="A TOML file with settings.  [FLOWFLEET_CONFIG]",
        )(wrapped)

    return decorate


def _warn_of_password(flags: Mapping[str, Any]) -> None:
    url = flags.get("redis")
    if url and "@" in url and urlsplit(url).password:
        logger.warning(
            "the Redis password shows in the process list: give it by FLOWFLEET_REDIS or FLOWFLEET_REDIS_FILE"
        )


def known_keys() -> frozenset[str]:
    """Every option key that any command has: one config file serves them all."""
    classes = (PollerSettings, WorkerSettings, UpSettings)
    return frozenset(option.key for cls in classes for _, option in options_of(cls))
