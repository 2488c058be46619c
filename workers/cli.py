"""Command line: the `worker` command, which builds a worker from its parts and runs it."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from flowfleet import broker, logs
from flowfleet import ledger as ledgers
from flowfleet.api.client import ApiClient
from flowfleet.api.connect import Connector
from flowfleet.api.prefect1 import agent_config
from flowfleet.api.unused import tell_unused
from flowfleet.commands import forget, install, program, worker_control
from flowfleet.failpoints import Failpoints
from flowfleet.ledger import Ledger
from flowfleet.ledger.api_troubles import TroubleTeller
from flowfleet.ledger.hints import Subscription
from flowfleet.page.startup import StartupPage
from flowfleet.retry import Outage, Retry
from flowfleet.settings.classes import WAIT, WorkerSettings
from flowfleet.settings.click_options import SettingsCommand, options
from flowfleet.settings.secret_files import SecretFiles
from flowfleet.signals import ReloadOnSighup
from workers import host_cgroups
from workers import page as worker_page
from workers.background import BackgroundJobs
from workers.deployers import warm_client
from workers.deployers.fork_client import ForkServerProgram
from workers.deployers.registry import adopting_deployer, container_deployer, plugged_in_deployer, process_deployer
from workers.deployment import CONTAINERS, EXTERNAL, Deployer, DeployerContext, RunLimits
from workers.environment import EnvironmentLayers
from workers.host import Abilities, Host
from workers.host_limits import HostLimits, check_limits
from workers.interpreter import interpreter_of
from workers.lifecycle import sign_on
from workers.lifecycle.consumer import forget_stop, require_hooks
from workers.lifecycle.joining import Joining
from workers.lifecycle.resume_wait import ResumeWait
from workers.lifecycle.stop_plan import StopPlan, enclosure_of
from workers.lifecycle.stop_signals import leave_at_once
from workers.runs.hooks import check_times
from workers.runs.start_spec import StartSpecBuilder
from workers.service import WorkerService
from workers.state.state_folder import StateFolder

logger = logging.getLogger(__name__)


@click.group(cls=program.Group)
@click.version_option(package_name="flowfleet", prog_name="worker")
def cli() -> None:
    """Run flow runs on this host, and look after the workers of a fleet.

    \b
    worker start --pool mine        run what the pool `mine` has
    worker install --for systemd    print a unit that starts it
    worker list                     the workers of the fleet
    worker drain NAME@HOST          no new runs, and end when empty
    """  # noqa: D301 - click reads the escape


@cli.command(cls=SettingsCommand)
@options(WorkerSettings, command="worker")
def start(settings: WorkerSettings) -> int:
    """Take flow runs from the queue and run them on this host.

    \b
    worker start --pool mine --slots 4
    worker start --api http://HOST:4200/api --redis redis://HOST:6379/0
    worker start --backend prefect1 --api http://HOST:4200 --label etl
    worker start --python /srv/flows/.venv/bin/python
    worker start --pool containers --deploy docker --memory 2G
    """  # noqa: D301 - click reads the escape
    waits = partial(_wait_and_start_again, dict(os.environ))
    return serve(settings, os.environ, EmbeddingProgram(drained=waits) if settings.on_drained == WAIT else AS_COMMAND)


def _wait_and_start_again(environ: Mapping[str, str], ledger: Ledger, worker: str, page: StartupPage) -> NoReturn:
    """Wait for the resume of this drained worker, and be the same command anew, with the environment of its start."""
    leave_at_once()
    page.show_start()
    with page.waiting_for(f"worker resume {worker}"):
        ResumeWait(ledger.roster, worker).run()
    logging.shutdown()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)  # noqa: S606 - our own command line


for _command in (install.command(WorkerSettings, "worker"), *worker_control.worker_commands, forget.forget_worker):
    cli.add_command(_command)


@dataclass(frozen=True, kw_only=True)
class EmbeddingProgram:
    """What a Python program adds to the worker that runs in its process (flowfleet/agents)."""

    #: what SIGTERM and SIGINT do until the worker is there
    early: Callable[[], None] = leave_at_once
    #: the worker's deployer, made of the one that its settings name; it meets outages of the API too
    deployer: Callable[[Deployer, ApiClient, WorkerSettings, Outage], Deployer] = adopting_deployer
    #: how that one starts runs, where the program deploys them itself
    below: str = "process"
    #: the layers of the runs' environment, made of those that the settings name, before any process is started
    layers: Callable[[EnvironmentLayers, ApiClient, WorkerSettings], EnvironmentLayers] = lambda own, _api, _given: own
    #: called with the run id after each launch, whether it succeeded or failed
    launched: Callable[[str], None] = lambda _run_id: None
    #: called once the worker is joined, before it fetches its first message
    begun: Callable[[WorkerService], None] = lambda _service: None
    #: called when the worker has ended since it was drained before its start; the exit code
    drained: Callable[[Ledger, str, StartupPage], int] = lambda _ledger, _worker, _page: program.DRAINED
    #: ends the process at once
    leave: Callable[[int], Any] = os._exit
    #: where the program goes on after the worker: what is closed when the worker has ended, the last first
    leaving: contextlib.ExitStack | None = None

    def leave_with(self, step: Callable[[], object]) -> None:
        """Do this when the worker has ended, before the steps given earlier, if the program goes on after it."""
        if self.leaving is not None:
            self.leaving.callback(step)


#: a worker that is a program of its own
AS_COMMAND = EmbeddingProgram()


def serve(settings: WorkerSettings, environ: Mapping[str, str], embedding: EmbeddingProgram = AS_COMMAND) -> int:
    """Build the worker, run it to its end, and return the exit code."""
    embedding.early()
    to_api = BackgroundJobs("the Prefect API")
    reload = ReloadOnSighup(to_api.retry)
    reload.install()
    retry = replace(sign_on.RETRY, wait=reload.wait)
    require_hooks()
    settings = replace(settings, slots=HostLimits.probe().fit(settings.slots))
    failpoints = Failpoints.from_environment(environ)
    environ = dict(environ)  # as it was: flows that use Celery themselves keep its variables
    _take_off_celery()
    connector = Connector(settings, environ, failpoints=failpoints)
    secrets = SecretFiles(settings)
    reload.serve(connector, secrets)
    startup_page = StartupPage(secrets.page_token)
    startup_page.open(settings.agent_address)
    ledger = ledgers.connect(settings.redis, settings.fleet, login=secrets.login)
    host, abilities = Host.probe(environ), _abilities(settings, environ)
    below = embedding.below if embedding.leaving and settings.deploy == EXTERNAL else settings.deploy
    plugged_in = plugged_in_deployer(below)
    with startup_page.waiting_for("the Prefect API"):
        api, settings = _enter(connector, settings, retry)
    check_times(settings, api.traits)
    layers, interpreter = interpreter_of(settings, environ, api.traits)
    layers = embedding.layers(layers, api, settings)
    warm = settings.warm_start and api.traits.engine_forks and warm_client.is_possible(interpreter, abilities)
    parent = warm_client.parent_program(interpreter, layers) if warm else None
    state = sign_on.open_state(settings, host, environ)
    embedding.leave_with(state.close)
    context = _context(settings, host, layers, state)
    make = partial(_own_deployer, below, settings, host, abilities, environ=environ, parent=parent)
    own = plugged_in(context) if plugged_in else make(failpoints=failpoints, api=api.address)
    embedding.leave_with(own.close)
    deployer = embedding.deployer(own, api, settings, to_api.outage.of("external runs"))
    specs = StartSpecBuilder(settings, api.traits, api=api.jobs, layers=layers, interpreter=interpreter)
    specs = replace(specs, in_containers=below == CONTAINERS)
    embedding.leave_with(ledger.close)
    row = Joining(ledger, settings, api, state, host, retry, startup_page.waiting_for).join()
    service = WorkerService(
        settings=settings,
        row=row,
        app=_app(settings, secrets),
        claims=ledger.claims,
        roster=ledger.roster,
        api=api,
        to_api=to_api,
        deployer=deployer,
        start_specs=specs,
        state=state,
        failpoints=failpoints,
        mode=_stop_mode(settings, environ),
        count_refused=lambda _reason: ledger.store.count("messages-refused"),
        tell_api=TroubleTeller(store=ledger.store, part=row.worker).tell,
        launched=embedding.launched,
        leave=embedding.leave,
    )
    return _run(service, ledger, startup_page, embedding)


def _app(settings: WorkerSettings, secrets: SecretFiles) -> broker.App:
    return broker.make_app(settings.redis, fleet=settings.fleet, login=secrets.login, task_events=settings.task_events)


def _own_deployer(
    kind: str,
    settings: WorkerSettings,
    host: Host,
    abilities: Abilities,
    *,
    environ: Mapping[str, str],
    parent: ForkServerProgram | None,
    failpoints: Failpoints,
    api: str,
) -> Deployer:
    if kind == CONTAINERS:
        return container_deployer(settings, host, abilities, environ, failpoints, api=api)
    return process_deployer(host, abilities, parent, failpoints)


def _context(settings: WorkerSettings, host: Host, layers: EnvironmentLayers, state: StateFolder) -> DeployerContext:
    return DeployerContext(
        host=host.name, environment=layers.base, limits=RunLimits.of(settings, {}, {}), state_folder=state.path
    )


def _run(service: WorkerService, ledger: Ledger, startup_page: StartupPage, embedding: EmbeddingProgram) -> int:
    """Connect the joined worker to what wakes, asks and stops it, and run it to its end; the exit code."""
    # neither this nor the page is closed again: their threads end with the process, and waiting for them would lengthen
    # each stop
    subscription = ledger.hints.listen(partial(_on_hint, service))
    embedding.leave_with(partial(_leave_nothing, service, subscription))
    embedding.begun(service)
    service.stop_signals.install()
    startup_page.show(worker_page.handlers(service.health))
    code = service.run()
    if code or not service.draining.from_start:
        return code
    return embedding.drained(ledger, service.row.worker, startup_page)


def _take_off_celery() -> None:
    taken_off = broker.take_off_celery_variables(os.environ)
    if taken_off:
        logger.info("variables of Celery are ignored", extra={"variables": ", ".join(taken_off)})


def _abilities(settings: WorkerSettings, environ: Mapping[str, str]) -> Abilities:
    abilities = Abilities.probe(environ)
    check_limits(settings, abilities)
    for sentence in abilities.missing():
        logger.warning(sentence)
    if abilities.groups:
        swept = sum(host_cgroups.sweep(Path(folder)) for folder in {abilities.groups, abilities.cpu_groups} - {""})
        logger.info("each run gets a control group", extra={"folder": abilities.groups, "swept": swept})
    return abilities


def _stop_mode(settings: WorkerSettings, environ: Mapping[str, str]) -> str:
    """What a stop of this worker does with its runs; said at its start."""
    plan = StopPlan.of(settings, enclosure_of(environ))
    plan.say()
    return plan.mode


def _leave_nothing(service: WorkerService, subscription: Subscription) -> None:
    subscription.close()
    for background in (service.to_api, service.to_ledger):
        background.close()
    forget_stop()


def _enter(connector: Connector, settings: WorkerSettings, retry: Retry) -> tuple[ApiClient, WorkerSettings]:
    """Connect to the API: its client, and the settings completed by Prefect's own; waits until the API answers."""

    def ask() -> tuple[ApiClient, WorkerSettings]:
        api = connector.open()
        fitted = agent_config.applied(connector.defaults(settings), api)
        return connector.client_for(fitted), fitted

    api, fitted = retry.ask("the Prefect API", ask)
    tell_unused(settings, api.backend)
    logs.set_level(fitted.log_level)
    fitted.tell_identity()
    return api, fitted


def _on_hint(service: WorkerService, kind: str, text: str) -> None:
    # a cancel concerns the one worker that holds the run: of a large fleet the others go on as they were
    held = kind == "cancel" and any(attempt.held.run_id == text for attempt in service.attempts.all())
    if held or kind in ("routes", "wanted"):
        service.heartbeat.nudge()


def main() -> None:
    """Run the `worker` command, and exit with its code."""
    code = program.run(cli, name="worker")
    logging.shutdown()
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    # threads of the pool and of a hung connection are not waited for: all that matters is on disk and in the ledger
    os._exit(code)


if __name__ == "__main__":
    main()
