"""Click options: the settings as options of click commands, and the TOML file that `--config` names."""

import difflib
import functools
import logging
import os
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from flowfleet import logs
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import machine_facts, resolve, secrets_of
from flowfleet.settings.option import options_of

logger = logging.getLogger(__name__)

Command = Callable[..., Any]

TABLES = ("poller", "worker", "flowfleet")

#: what a command has no use for that asks or orders and is no part of a fleet itself
NO_PART = frozenset({"name"})
#: and one that asks nobody but Redis
REDIS_ALONE = NO_PART | {"api", "backend", "key", "token", "tenant_id"}


class SettingsCommand(click.Command):
    """A click command whose help has the options that all commands share in a group of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the common ones."""
        shared = {_parameter(name) for name in options_of(CommonSettings)} | {_CONFIG}
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Common options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                groups["Common options" if parameter.name in shared else "Options"].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


#: how click names the parameter of the config file
_CONFIG = "config_file"


def _parameter(name: str) -> str:
    """How click names the parameter of a field."""
    return f"option_{name}"


def known_keys() -> frozenset[str]:
    """Every option key that any command has: one config file serves them all."""
    classes = (PollerSettings, WorkerSettings, UpSettings)
    return frozenset(option.key for cls in classes for option in options_of(cls).values())


def read_config(path: str | None, command: str) -> dict[str, Any]:
    """The settings of a TOML file for one command: its top level, and over it the table named like the command."""
    if path is None:
        return {}
    try:
        whole = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The config file {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The config file {path} is not valid TOML: {error}.") from error
    tables = {key: value for key, value in whole.items() if isinstance(value, dict)}
    top = {key: value for key, value in whole.items() if key not in tables}
    known = known_keys()
    for name, table in (*tables.items(), (command, top)):
        if name not in TABLES:
            raise SettingsError(f"The config file {path} has the table [{name}]: use [poller], [worker], [flowfleet].")
        for key in (key for key in table if key.replace("_", "-") not in known):
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            remedy = f"did you mean {near[0]}?" if near else "flowfleet config shows all of them."
            raise SettingsError(f"The config file {path} has the setting {key!r}, which does not exist: {remedy}")
    return {key.replace("_", "-"): value for key, value in (top | tables.get(command, {})).items()}


def with_options(
    cls: type[CommonSettings], function: Command, level: str = "INFO", unused: Collection[str] = ()
) -> Command:
    """Give a function the click options of a settings class, whose helps name the variables.

    Their default is None, since `resolve` finds the value. `level` is the command's own default of --log-level. Flags
    of `unused` fields are taken, since one line of flags may serve many commands, and not shown.
    """
    for option in reversed([option for option in options_of(cls).values() if option.flags]):
        function = click.option(
            _parameter(option.name),
            *option.flags,
            default=None,
            multiple=bool(option.kind.separator),
            metavar=option.kind.metavar,
            hidden=option.name in unused,
            help=f"{option.help.replace('{level}', level)}  [{option.variable}]",
        )(function)
    return function


def taken_flags(cls: type[CommonSettings], given: dict[str, Any]) -> dict[str, Any]:
    """The flags that click has given to such a function, by option key; they are taken out of `given`."""
    return {option.key: given.pop(_parameter(option.name), None) for option in options_of(cls).values() if option.flags}


def options(
    cls: type[CommonSettings], command: str = "flowfleet", level: str = "INFO", unused: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the options of a settings class; it is called with one frozen instance as `settings`.

    Logging is set up on the way, since only here the level, the format and the secrets are known. `level` is the
    default of commands that only ask: their answer is what people want to see. `unused` are the fields that the command
    has no use for.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def wrapper(*args: Any, config_file: str | None, **given: Any) -> Any:
            flags = taken_flags(cls, given)
            config = read_config(config_file, command)
            settings = resolve(cls, flags, os.environ, config, {**machine_facts(), "log_level": level})
            logs.configure(settings.log_level, settings.log_format, secrets=secrets_of(settings))
            if urlsplit(flags["redis"] or "").password:
                logger.warning(
                    "the Redis password shows in the process list: give it by FLOWFLEET_REDIS or FLOWFLEET_REDIS_FILE"
                )
            return function(*args, settings=settings, **given)

        with_config = click.option(
            _CONFIG,
            "--config",
            envvar="FLOWFLEET_CONFIG",
            metavar="FILE",
            help="A TOML file with settings.  [FLOWFLEET_CONFIG]",
        )
        return with_options(cls, with_config(wrapper), level, unused)

    return decorate
