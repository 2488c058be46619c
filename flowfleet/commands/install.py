"""Install: the command that prints a unit for a poller or worker; it installs nothing by itself."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flowfleet.commands import unit_supervisor, unit_systemd
from flowfleet.commands.unit_environment import absolute, carried
from flowfleet.commands.units import Unit, me, program_path
from flowfleet.settings.click_options import SettingsCommand, taken_flags, with_options
from flowfleet.settings.layers import machine_facts, resolve
from flowfleet.settings.option import options_of

_KINDS = {
    "supervisor": (unit_supervisor.unit_text, unit_supervisor.secrets_text),
    "systemd": (unit_systemd.unit_text, unit_systemd.secrets_text),
}


def command(cls: type[Any], part: str) -> click.Command:
    """The `install` command of a part, with all options of its `start`."""

    def install(kind: str | None, *, secrets: bool, **given: Any) -> None:
        if kind is None:
            raise click.UsageError("Say what is to start it: --for systemd or --for supervisor.")
        unit = _unit(cls, part, given)
        texts = _KINDS[kind]
        click.echo(texts[secrets](unit), nl=False)

    text = f"""Print a supervisor or systemd unit that starts this {part} with the options given here.

    \b
    {part} install --for systemd | sudo tee /etc/systemd/system/flowfleet-{part}.service
    {part} install --for supervisor > supervisord.conf

    The unit also carries the variables FLOWFLEET_* that are set now, proxies and SSL_CERT_FILE, and where Prefect's own
    settings find the API.
    Keys, passwords and values of --env do not stand in the unit: --secrets prints the file for them.
    """
    wrapped: Any = with_options(cls, install)
    for decorate in (
        click.option("config_file", "--config", metavar="FILE", help="A TOML file with settings, named in the unit."),
        click.option("--run-as", "user", metavar="USER", help="Who is to run it (default: you)."),
        click.option(
            "folder", "--working-directory", metavar="FOLDER", help="Where it is started (default: not said)."
        ),
        click.option("--secrets", is_flag=True, help="Print the file with the secrets for that unit instead."),
        click.option("--for", "kind", type=click.Choice(tuple(_KINDS)), help="What is to start it."),
    ):
        wrapped = decorate(wrapped)
    return click.command("install", cls=SettingsCommand, help=text)(wrapped)


def _unit(cls: type[Any], part: str, given: dict[str, Any]) -> Unit:
    here = Path.cwd()
    flags = taken_flags(cls, given)
    options = {option.key: option for option in options_of(cls).values()}
    flags = {key: value if value in (None, ()) else absolute(options[key], value, here) for key, value in flags.items()}
    # a value that cannot be used is refused now, and not by a service that does not start; the files that hold
    # secrets are for the service's user to read, perhaps on another host
    settings = resolve(cls, flags, _without_files(os.environ), {}, machine_facts())
    config = given["config_file"] or os.environ.get("FLOWFLEET_CONFIG")
    return Unit(
        part=part,
        cls=cls,
        flags=flags,
        environment=carried(settings, flags, os.environ, here),
        config_file=str(here / config) if config else None,
        program=program_path(part),
        folder=str(here / given["folder"]) if given["folder"] else None,
        user=given["user"] or me(),
    )


def _without_files(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.endswith("_FILE")}
