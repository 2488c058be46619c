"""Command line: the `flowfleet` command, for everything on one machine and for questions to a fleet."""

import os
import sys
from contextlib import AbstractContextManager

import click

from flowfleet.api import traits
from flowfleet.api.client import ApiClient
from flowfleet.commands import config, leave
from flowfleet.commands.cancel import cancel
from flowfleet.commands.doctor import doctor_command
from flowfleet.commands.explain import explain_command
from flowfleet.commands.logs import logs_command
from flowfleet.commands.program import Group, run
from flowfleet.commands.requeue import requeue
from flowfleet.commands.runs import runs_command
from flowfleet.commands.status import status_command
from flowfleet.commands.top import top
from flowfleet.errors import SettingsError
from flowfleet.ledger import Ledger
from flowfleet.local.data_folder import default_path
from flowfleet.monitor.metrics import our_version
from flowfleet.settings.classes import UpSettings, WorkerSettings
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


def _found_paths(settings: CommonSettings, backend: str | None) -> dict[str, config.FoundPath]:
    """Where a part keeps or looks for what no setting names; the worker's half is imported only when it is asked."""
    if isinstance(settings, UpSettings):
        return {"data_dir": config.FoundPath(str(default_path(os.environ).absolute()))}
    if not isinstance(settings, WorkerSettings):
        return {}
    from workers.interpreter import find_interpreter  # noqa: PLC0415
    from workers.state.state_folder import state_root  # noqa: PLC0415

    try:
        _, python = find_interpreter(settings, os.environ, traits.of(backend or "prefect3"))
        own = config.FoundPath(python.path, f"prefect {python.prefect}") if python.prefect else config.FoundPath(None)
    except SettingsError as error:
        own = config.FoundPath(None, str(error))
    return {"state_dir": config.FoundPath(str(state_root(settings, os.environ))), "python": own}


for _command in (
    *(up, status_command, top, runs_command, explain_command, logs_command, cancel, requeue),
    *(leave.command(_substitute), doctor_command, config.command(_found_paths), _half("poller"), _half("worker")),
):
    program.add_command(_command)


def main() -> None:
    """The `flowfleet` command."""
    sys.exit(run(program, name="flowfleet"))
