"""Command line: the `flowfleet` command, for everything on one machine and for questions to a fleet."""

import json
import os
import sys
import time
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from functools import cache

import click
from rich.console import Console, RenderableType
from rich.live import Live

from flowfleet.api.backlog import Place
from flowfleet.api.client import ApiClient, RunState, StateType
from flowfleet.api.connect import PrefectValues
from flowfleet.api.connect import connect as connect_api
from flowfleet.commands import leave
from flowfleet.commands.cancel import cancel
from flowfleet.commands.program import CHECKS_FAILED, Group, run
from flowfleet.commands.requeue import requeue
from flowfleet.commands.show_config import config_lines
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiError, LedgerError, SettingsError
from flowfleet.ledger import Ledger, connect
from flowfleet.monitor import explain as explanations
from flowfleet.monitor import run_output, runs
from flowfleet.monitor.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    api_checks,
    fleet_checks,
    label_checks,
    ledger_checks,
    redis_checks,
)
from flowfleet.monitor.metrics import our_version
from flowfleet.monitor.redis_server import RedisServer
from flowfleet.monitor.snapshot import Snapshot, take_snapshot
from flowfleet.monitor.status import console, status
from flowfleet.settings.classes import LogsSettings, PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.click_options import options, read_config
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import machine_facts, resolve
from flowfleet.settings.option import options_of
from flowfleet.up.command import up

_WATCH_SECONDS = 1.0
_RECORDS = 10_000


@click.group(cls=Group)
@click.version_option(our_version(), prog_name="flowfleet")
def program() -> None:
    """Prefect flow runs on many workers: a poller, a queue in Redis, Celery workers.

    \b
    flowfleet up --demo        everything on this machine, with example runs
    flowfleet status           what waits, what runs, and where
    flowfleet explain RUN      why is my run (not) running
    flowfleet cancel RUN       end a run, wherever it is
    flowfleet requeue RUN      start a run again
    flowfleet leave            give back what has not begun, and end the fleet
    """  # noqa: D301 - click reads the escape


def _page(ledger: Ledger, out: Console) -> RenderableType:
    return status(take_snapshot(ledger), runs=max(5, out.height - 20), width=out.width)


def _watch(ledger: Ledger, out: Console) -> None:
    """Show the status anew each second until Ctrl-C."""
    if not out.is_terminal:
        raise SettingsError("A live view needs a terminal: use flowfleet status, or --json for programs.")
    with Live(_page(ledger, out), console=out, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_WATCH_SECONDS)
                live.update(_page(ledger, out), refresh=True)
        except KeyboardInterrupt:
            return


@program.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON, in a form that stays.")
@click.option("--watch", is_flag=True, help="Show it anew each second.")
@options(CommonSettings, level="WARNING")
def status_command(settings: CommonSettings, *, as_json: bool, watch: bool) -> None:
    """Show queues, workers and runs of the fleet.

    \b
    flowfleet status                what waits, what runs, and where
    flowfleet status --watch        the same, live
    flowfleet status --json         for programs
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        if watch:
            _watch(ledger, console())
        elif as_json:
            click.echo(json.dumps(take_snapshot(ledger).to_json(), indent=2))
        else:
            out = console()
            out.print(status(take_snapshot(ledger), width=out.width))


@program.command()
@options(CommonSettings, level="WARNING")
def top(settings: CommonSettings) -> None:
    """Watch the fleet live."""
    with open_ledger(settings) as ledger:
        _watch(ledger, console())


@program.command("runs")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--state", metavar="STATE", help="Only claims in this state; `gone` are those that have ended.")
@click.option("--route", metavar="TEXT", help="Only those whose queue has this in its name.")
@click.option("--worker", metavar="NAME[@HOST]", help="Only those of this worker.")
@click.option("--since", metavar="SPAN", help="Only those of the last 90s, 10m, 2h or 1d.")
@options(CommonSettings, level="WARNING")
def runs_command(
    settings: CommonSettings,
    *,
    as_json: bool,
    state: str | None,
    route: str | None,
    worker: str | None,
    since: str | None,
) -> None:
    """List the runs of the fleet, also the ended ones of the last day."""
    seconds = runs.parse_since(since) if since else None
    state = runs.parse_state(state) if state else None
    with open_ledger(settings) as ledger:
        snapshot = take_snapshot(ledger)
        records = ledger.claims.records(limit=_RECORDS)
    found = runs.collect(snapshot, records, state=state, route=route, worker=worker, since_seconds=seconds)
    if as_json:
        click.echo(json.dumps(runs.to_json(found), indent=2))
    elif found:
        out = console()
        out.print(runs.table(found, snapshot.at, out.width))
    else:
        click.echo(f"The fleet {settings.fleet} has no such run.")


@program.command("explain")
@click.argument("run_id", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options(CommonSettings, level="WARNING")
def explain_command(settings: CommonSettings, run_id: str, *, as_json: bool) -> None:
    """Say why a run is, or is not, running: one sentence, then the evidence.

    RUN is its name, its id, or the beginning of its id.

    \b
    flowfleet explain calm-otter
    flowfleet explain 0a1b2c3d --json
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        records = [dict(record) for record in ledger.claims.records(limit=_RECORDS)]
        snapshot = take_snapshot(ledger)
    known = runs.names(records, snapshot.claims)
    run_id = runs.whole_id(run_id, known)
    record = next((record for record in records if record.get("run_id") == run_id), None)
    at_api, place, trouble = _at_api(settings, run_id)
    explanation = explanations.explain(run_id, snapshot, record, at_api, place)
    if trouble:
        click.echo(f"The API could not be asked: {trouble}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=2, default=str))
        return
    click.echo(explanation.sentence)
    for name, value in explanation.evidence.items():
        click.echo(f"\n{name}:\n{json.dumps(value, indent=2, default=str)}")


def _at_api(settings: CommonSettings, run_id: str) -> tuple[RunState | None, Place | None, str]:
    """The run's state and place at the API, and why the API could not be asked, if so.

    Such an error does not end the command: the ledger's half of the answer stands alone.
    """
    try:
        api = connect_api(settings, os.environ)
        state = api.ends.states([run_id]).get(run_id)
        return state, api.backlog.place(run_id) if state and state.kind is StateType.SCHEDULED else None, ""
    except (ApiError, SettingsError) as error:
        return None, None, str(error)


@program.command("logs")
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@options(LogsSettings, level="WARNING")
def logs_command(settings: LogsSettings, run_id: str, *, follow: bool) -> None:
    """Show what a run has printed."""
    with open_ledger(settings) as ledger:
        live, records = ledger.claims.live(), ledger.claims.records(limit=_RECORDS)
        claims = {claim.run_id: claim.worker for claim in live}
        gone = {str(record["run_id"]): record.get("worker") for record in reversed(records)}
        run_id = runs.whole_id(run_id, runs.names(records, live))
        folder = settings.state_dir or run_output.state_home(os.environ)
        log = run_output.local_log(folder, run_id)
        if log:
            pieces = run_output.read_local(log, follow=follow, ended=lambda: ledger.claims.get(run_id) is None)
        else:
            worker = claims.get(run_id) or gone.get(run_id)
            address = next((row.address for row in ledger.roster.rows() if row.worker == worker), None)
            if not address:
                where = f"the worker {worker} has no --agent-address" if worker else "no worker of this fleet had it"
                raise run_output.NoOutput(
                    f"The output of the run {run_id} is not below {folder} on this host, and {where}: "
                    "give the worker's --state-dir, or look on its host."
                )
            pieces = run_output.read_remote(address, run_id, follow=follow, token=settings.page_token)
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


@program.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options(CommonSettings, level="WARNING")
def doctor_command(settings: CommonSettings, *, as_json: bool) -> int:
    """Check Redis, the API and the fleet; exit 5 if something is wrong."""
    checks = _checks(settings)
    failed = any(check.verdict is FAIL for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        out = console()
        colours = {OK: "green", WARN: "yellow", FAIL: "red"}
        for check in checks:
            out.print(f"[{colours[check.verdict]}]{check.verdict:<5}[/]", end="")
            out.print(f"{check.name}: {check.sentence}", markup=False, soft_wrap=True)
    return CHECKS_FAILED if failed else 0


def _checks(settings: CommonSettings) -> list[Check]:
    api = cache(lambda: connect_api(settings, os.environ))
    try:
        ledger = connect(settings.redis, settings.fleet)
    except LedgerError as error:  # the address of Redis is unusable: the API is checked all the same
        return [Check("redis", FAIL, str(error)), *api_checks(lambda: api().probe())]
    with closing(ledger):
        checks = [*redis_checks(RedisServer(ledger.store)), *api_checks(lambda: api().probe())]
        if any(check.verdict is FAIL for check in checks if check.name.startswith("redis")):
            return checks
        try:
            snapshot = take_snapshot(ledger)
            checks += fleet_checks(snapshot)
            if any(check.name == "api" and check.verdict is OK for check in checks):
                client = _as_leader(settings, api().backend, snapshot)
                checks += [*label_checks(client, snapshot), *ledger_checks(client, ledger, snapshot)]
        except LedgerError as error:
            checks.append(Check("fleet", FAIL, str(error)))
    return checks


def _as_leader(settings: CommonSettings, backend: str, snapshot: Snapshot) -> ApiClient:
    """The API, asked under the leader's name, by which Prefect 1 tells the fleet's own agents from others."""
    name = snapshot.leader.name if snapshot.leader else settings.name
    return connect_api(replace(settings, backend=backend, name=name), os.environ)


@program.command("config")
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
    for line in config_lines(found, settings, {"name"}):
        click.echo(line)
    for command, cls in (("poller", PollerSettings), ("worker", WorkerSettings), ("flowfleet", UpSettings)):
        config = read_config(ctx.params["config_file"], command)
        click.echo(f"\n[{command}]" + ("  # flowfleet up" if cls is UpSettings else ""))
        of_part = resolve(cls, flags, os.environ, config, machine_facts())
        for line in config_lines(found, of_part, options_here.keys() - {"name"}):
            click.echo(line)


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


program.add_command(up)
program.add_command(cancel)
program.add_command(requeue)
program.add_command(leave.command(_substitute))
program.add_command(_half("poller"))
program.add_command(_half("worker"))


def main() -> None:
    """The `flowfleet` command."""
    sys.exit(run(program, name="flowfleet"))
