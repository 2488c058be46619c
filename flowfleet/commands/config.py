"""Config: the command `flowfleet config`, the settings as people read them, each with where it came from."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flowfleet.api.connect import PrefectValues
from flowfleet.logs import redact_url
from flowfleet.printable import printable
from flowfleet.settings.classes import PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.click_options import SettingsCommand, options, read_config
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import machine_facts, resolve
from flowfleet.settings.option import Option, options_of
from flowfleet.settings.values import FOR_TESTS

#: settings that are lists of paths
_PATH_LISTS = ("import_paths",)


@dataclass(frozen=True)
class FoundPath:
    """The path that a part uses where no setting names one, and what more there is to say of it."""

    path: str | None
    remark: str = ""


#: the paths that such a part finds by itself, by the names of their fields; the backend may not be known
FindPaths = Callable[[CommonSettings, str | None], Mapping[str, FoundPath]]


@dataclass(frozen=True)
class ShownSetting:
    """A setting as it is shown: its value, without secrets, and where that came from."""

    key: str
    value: Any
    origin: str

    @property
    def line(self) -> str:
        """The setting for people, `key = value  (origin)`."""
        value = self.value
        words = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        return printable(f"{self.key} = {words or '-'}  ({self.origin})")


def command(find_paths: FindPaths) -> click.Command:
    """The command `flowfleet config`."""

    @click.command("config", cls=SettingsCommand)
    @click.option("--json", "as_json", is_flag=True, help="As JSON: value and origin of each setting, by part.")
    @click.pass_context
    @options(CommonSettings)
    def config_command(ctx: click.Context, settings: CommonSettings, *, as_json: bool) -> None:
        """Show every setting with its value and where that came from; paths as they will be."""
        shown = _all(settings, ctx.params["config_file"], find_paths)
        if as_json:
            form = {
                part: {one.key: {"value": one.value, "origin": one.origin} for one in settings_of_part}
                for part, settings_of_part in shown.items()
            }
            click.echo(json.dumps(form, indent=2))
            return
        for part, settings_of_part in shown.items():
            if part != "common":
                click.echo(f"\n[{part}]{'  # flowfleet up' if part == 'flowfleet' else ''}")
            for one in settings_of_part:
                click.echo(one.line)

    return config_command


def _all(settings: CommonSettings, config_file: str | None, find_paths: FindPaths) -> dict[str, list[ShownSetting]]:
    """The settings of all parts: those that they have in common, then those of each, named as in a config file."""
    options_here = options_of(CommonSettings)
    flags = {
        option.key: getattr(settings, name)
        for name, option in options_here.items()
        if settings.origin(name).kind == "flag"
    }
    found = PrefectValues(settings, os.environ)
    shown = {"common": list(_shown(found, settings, {"name"}, {}))}
    for part, cls in (("poller", PollerSettings), ("worker", WorkerSettings), ("flowfleet", UpSettings)):
        of_part = resolve(cls, flags, os.environ, read_config(config_file, part), machine_facts())
        paths = find_paths(of_part, found.backend)
        shown[part] = list(_shown(found, of_part, options_here.keys() - {"name"}, paths))
    return shown


def _shown(
    found: PrefectValues, settings: CommonSettings, left_out: Collection[str], paths: Mapping[str, FoundPath]
) -> Iterator[ShownSetting]:
    """The settings of a part; the fields in `left_out` are skipped, and where no value is given `paths` has it."""
    completed = found.complete(settings)
    for name, option in options_of(type(completed)).items():
        if name in left_out or option.kind is FOR_TESTS:
            continue
        value, origin = getattr(completed, name), str(completed.origin(name))
        if value is None and name in paths:
            value = paths[name].path
            origin = f"{origin}; {paths[name].remark}" if paths[name].remark else origin
        if name == "log_level" and completed.origin(name).kind == "machine":
            origin = "default"  # each command has its own
        if name == "backend" and value == "auto" and found.backend:
            origin = f"{origin}; here {found.backend}"
        yield ShownSetting(option.key, _fit(name, option, value), origin)


def _fit(name: str, option: Option, value: Any) -> Any:
    """The value without secrets, a path as it is from any folder, and in a form that JSON has."""
    if value is None:
        return None
    if option.kind.masked:
        value = tuple(map(option.kind.masked, value)) if option.kind.separator else option.kind.masked(value)
    if name == "api":
        value = redact_url(value)
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):
        return [str(Path(one).expanduser().absolute()) if name in _PATH_LISTS else str(one) for one in value]
    return value if isinstance(value, bool | int | float | str) else str(value)
