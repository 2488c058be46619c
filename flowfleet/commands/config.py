"""Config: the command `flowfleet config`, the settings as people read them, each with where it came from."""

import os
from collections.abc import Collection, Iterator

import click

from flowfleet.api.connect import PrefectValues
from flowfleet.logs import redact_url
from flowfleet.settings.classes import PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.click_options import SettingsCommand, options, read_config
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import machine_facts, resolve
from flowfleet.settings.option import options_of
from flowfleet.settings.values import FOR_TESTS


@click.command("config", cls=SettingsCommand)
@click.pass_context
@options(CommonSettings)
def config_command(ctx: click.Context, settings: CommonSettings) -> None:
    """Show every setting with its value and where that came from."""
    options_here = options_of(CommonSettings)
    flags = {
        option.key: getattr(settings, name)
        for name, option in options_here.items()
        if settings.origin(name).kind == "flag"
    }
    found = PrefectValues(settings, os.environ)
    for line in _lines(found, settings, {"name"}):
        click.echo(line)
    for command, cls in (("poller", PollerSettings), ("worker", WorkerSettings), ("flowfleet", UpSettings)):
        config = read_config(ctx.params["config_file"], command)
        click.echo(f"\n[{command}]" + ("  # flowfleet up" if cls is UpSettings else ""))
        of_part = resolve(cls, flags, os.environ, config, machine_facts())
        for line in _lines(found, of_part, options_here.keys() - {"name"}):
            click.echo(line)


def _lines(found: PrefectValues, settings: CommonSettings, left_out: Collection[str]) -> Iterator[str]:
    """One line for each option, `key = value  (origin)`; the fields in `left_out` are skipped."""
    completed = found.complete(settings)
    for name, option in options_of(type(completed)).items():
        if name in left_out or option.kind is FOR_TESTS:
            continue
        value, origin = getattr(completed, name), str(completed.origin(name))
        if option.kind.masked and value is not None:
            value = tuple(map(option.kind.masked, value)) if option.kind.separator else option.kind.masked(value)
        if name == "api" and value:
            value = redact_url(value)
        if name == "log_level" and completed.origin(name).kind == "machine":
            origin = "default"  # each command has its own
        if name == "backend" and value == "auto" and found.backend:
            origin = f"{origin}; here {found.backend}"
        yield f"{option.key} = {_shown(value)}  ({origin})"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, tuple) else str(value)
