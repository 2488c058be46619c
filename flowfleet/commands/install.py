"""Install: the command that prints a unit for a poller or worker; it installs nothing by itself."""

from typing import Any

import click

from flowfleet.commands import units
from flowfleet.settings.click_options import SettingsCommand, taken_flags, with_options
from flowfleet.settings.layers import machine_facts, resolve

_KINDS = {"supervisor": units.supervisor, "systemd": units.systemd}


def command(cls: type[Any], part: str) -> click.Command:
    """The `install` command of a part, with all options of its `start`."""

    def install(kind: str | None, *, secrets: bool, user: str | None, config_file: str | None, **given: Any) -> None:
        if kind is None:
            raise click.UsageError("Say what is to start it: --for systemd or --for supervisor")
        flags = taken_flags(cls, given)
        # a value that cannot be used is refused now, and not by a service that does not start
        resolve(cls, flags, {}, {}, machine_facts())
        facts = units.here()
        unit = units.Unit(
            part=part,
            cls=cls,
            flags=flags,
            config_file=config_file,
            program=units.program_path(part),
            folder=facts["folder"],
            user=user or facts["user"],
        )
        click.echo(units.secrets_text(unit, kind) if secrets else _KINDS[kind](unit), nl=False)

    text = f"""Print a supervisor or systemd unit that starts this {part} with the options given here.

    \b
    {part} install --for systemd | sudo tee /etc/systemd/system/flowfleet-{part}.service
    {part} install --for supervisor > supervisord.conf

    Keys, passwords and values of --env do not stand in it; --secrets prints the file that they belong in. Variables
    that you have set now are not looked at: a service does not have them.
    """
    wrapped: Any = with_options(cls, install)
    for decorate in (
        click.option("config_file", "--config", metavar="FILE", help="A TOML file with settings, named in the unit."),
        click.option("--run-as", "user", metavar="USER", help="Who is to run it (default: you)."),
        click.option("--secrets", is_flag=True, help="Print the file with the secrets for that unit instead."),
        click.option("--for", "kind", type=click.Choice(tuple(_KINDS)), help="What is to start it."),
    ):
        wrapped = decorate(wrapped)
    return click.command("install", cls=SettingsCommand, help=text)(wrapped)
