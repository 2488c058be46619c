"""Command line: the `flowfleet` command, for everything on one machine and for questions to a fleet."""

import sys
from contextlib import AbstractContextManager

import click

from flowfleet.api.client import ApiClient
from flowfleet.commands import leave
from flowfleet.commands.cancel import cancel
from flowfleet.commands.config import config_command
from flowfleet.commands.doctor import doctor_command
from flowfleet.commands.explain import explain_command
from flowfleet.commands.logs import logs_command
from flowfleet.commands.program import Group, run
from flowfleet.commands.requeue import requeue
from flowfleet.commands.runs import runs_command
from flowfleet.commands.status import status_command, top
from flowfleet.ledger import Ledger
from flowfleet.monitor.metrics import our_version
from flowfleet.settings.common import CommonSettings
from flowfleet.up.command import up


@click.group(cls=Group)
@click.version_option(our_version(), prog_name="flowfleet")
def program() -> None:
    """Run the flows of Prefect on several machines: `poller start` once, `worker start` on each host.

    \b
    flowfleet up --demo        everything on this machine, with example runs
    flowfleet status           what waits, what runs, and where
    flowfleet explain RUN      why is my run (not) running
    flowfleet cancel RUN       end a run, wherever it is
    flowfleet requeue RUN      start a run again
    flowfleet leave            give back what has not begun, and end the fleet
    """  # noqa: D301 - click reads the escape


def _half(name: str) -> click.Command:
    """The command `flowfleet poller …` or `flowfleet worker …`: another program, imported only when it is called."""

    @click.command(
        name,
        help=f"The same as the command `{name}`.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def half(arguments: tuple[str, ...]) -> int:
        if name == "poller":
            from poller import cli as poller_cli  # noqa: PLC0415

            return run(poller_cli.program, arguments, name="flowfleet poller")
        from workers import cli as workers_cli  # noqa: PLC0415

        return run(workers_cli.cli, arguments, name="flowfleet worker")

    return half


def _substitute(
    settings: CommonSettings, api: ApiClient, ledger: Ledger
) -> AbstractContextManager[leave.LookAtSubstitute]:
    """The poller inside `flowfleet leave`: another half, imported only when that is called."""
    from poller.substitute import substitute  # noqa: PLC0415

    return substitute(settings, api, ledger)


for _command in (
    *(up, status_command, top, runs_command, explain_command, logs_command, cancel, requeue),
    *(leave.command(_substitute), doctor_command, config_command, _half("poller"), _half("worker")),
):
    program.add_command(_command)


def main() -> None:
    """The `flowfleet` command."""
    sys.exit(run(program, name="flowfleet"))
