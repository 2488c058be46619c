"""Start: what `Agent.start` runs: a Redis if none is given, a poller as a child, and a worker in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flowfleet import ledger as ledgers
from flowfleet import logs, signals
from flowfleet.agents import arguments
from flowfleet.api.client import ApiClient
from flowfleet.errors import FleetError, LedgerError
from flowfleet.flow_run import Route
from flowfleet.guard import guarded
from flowfleet.ledger.claims import Claim, State
from flowfleet.local import redis_process
from flowfleet.local.child import Part, own_script, wait_ready
from flowfleet.local.data_folder import DataFolder, default_path
from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.layers import secrets_of
from workers import cli
from workers.deployers.external import ExternalDeployer, ExternalWatch
from workers.deployers.process import ProcessDeployer
from workers.deployment import Deployer, StartedRun, StartSpec
from workers.host import Abilities, Host
from workers.interpreter import interpreter_of
from workers.runs.start_spec import StartSpecBuilder
from workers.service import WorkerService
from workers.state.run_folders import RunFolders
from workers.state.state_folder import state_root

if TYPE_CHECKING:
    from flowfleet.agents.agent import Agent
    from flowfleet.agents.flow_run_records import FlowRunRecord
    from flowfleet.agents.local import LocalAgent

logger = logging.getLogger(__name__)

#: after the last poll, what is claimed gets this long to be started
LAST_STARTS_SECONDS = 60.0
#: a poller that has a claim in hand waits a minute for the API, and then gives up by itself
POLLER_STOP_SECONDS = 70.0
_LOOK_SECONDS = 0.2
_BEFORE_START = (State.CLAIMING, State.QUEUED, State.TAKEN, State.STARTING)

_now = threading.local()


class AgentEnded(FleetError):
    """A part that an agent cannot do without has ended."""


class _StopRequested(BaseException):
    """SIGINT or SIGTERM arrived before there was a worker to stop."""


def run(agent: Agent) -> None:
    """Run an agent from its set-up to its clean-up. Raises `FleetError`, whose text is one sentence."""
    if threading.current_thread() is not threading.main_thread():
        raise AgentEnded(f"{type(agent).__name__}.start() takes signals, so call it in the main thread.")
    settings = agent.settings()
    handlers = logging.getLogger().handlers
    if not any(isinstance(handler.formatter, logs.TextFormatter | logs.JsonFormatter) for handler in handlers):
        logs.configure(settings.log_level, settings.log_format, secrets=secrets_of(settings))
    with ExitStack() as stack:
        stack.enter_context(signals.restored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        stack.callback(agent.cleanup)
        signals.take(signal.SIGINT, signal.SIGTERM, handler=_on_early_signal, respect_ignored=False)
        with contextlib.suppress(_StopRequested):
            agent.setup()
            _AgentRun(agent, settings, stack).live()


def _on_early_signal(_number: int) -> None:
    raise _StopRequested


class _AgentRun:
    """One start of an agent, to its end; the exit stack closes all that was opened, the last first."""

    def __init__(self, agent: Agent, settings: WorkerSettings, stack: ExitStack) -> None:
        self._agent = agent
        self._settings = settings
        self._stack = stack
        self._environ = dict(os.environ)
        self._folder = self._open(agent.name, f"agent named {agent.name}", "give this one another name")
        self._poller: Part | None = None
        self._failure: FleetError | None = None
        self._over = threading.Event()

    def live(self) -> None:
        """Run worker, poller and heartbeat until the end is asked for or the polls are done."""
        # the agent's page is served by its poller
        self._settings = dataclasses.replace(self._settings, redis=self._redis(), agent_address=None)
        heartbeat = HeartbeatThread(self._agent.heartbeat, lambda: self._agent.heartbeat_period)
        self._stack.callback(heartbeat.close)
        heartbeat.start()
        self._stack.callback(self._end_poller)
        with ExitStack() as leaving:
            embedding = cli.EmbeddingProgram(
                early=lambda: None,
                deployer=self._deployer,
                launched=self._launched,
                begun=self._begun,
                leave=self._leave,
                leaving=leaving,
            )
            cli.serve(self._settings, self._environ, embedding)
        if self._failure is not None:
            raise self._failure

    # -- folder and Redis

    def _open(self, name: str, owner_is: str, remedy: str) -> DataFolder:
        folder = DataFolder.open(default_path(self._environ) / "agents" / name, owner_is=owner_is, remedy=remedy)
        self._stack.callback(folder.close)
        return folder

    def _redis(self) -> str:
        if self._settings.origin("redis").kind != "default":
            return self._settings.redis
        remedy = "agents of one host share a Redis that you give to each, by redis= or FLOWFLEET_REDIS"
        folder = self._open("redis.embedded", "agent with an embedded Redis", remedy)
        part, url = redis_process.start(folder, self._environ)
        self._stack.callback(part.stop)
        wait_ready(part, lambda: redis_process.answers(url), redis_process.READY_SECONDS)
        logger.info("embedded Redis is ready", extra={"url": url})
        return url

    # -- the worker, in this process

    def _deployer(self, own: Deployer, api: ApiClient, settings: WorkerSettings) -> Deployer:
        agent = self._agent
        agent.become(api, settings)
        by_method = agent.deploy_kind != "process" or getattr(agent, "own_variables", False)

        def deploy(spec: StartSpec) -> StartedRun | str:
            return _by_method(agent, spec, deployer)

        deployer = ExternalDeployer(
            deploy if by_method else None, below=own, watch=ExternalWatch(api.ends.states), host=settings.host
        )
        return deployer

    def _launched(self, run_id: str) -> None:
        future: Future[None] = Future()
        future.set_result(None)
        with guarded(logger, "on_flow_run_deploy_attempt failed", run_id=run_id):  # or it would cost us a thread
            self._agent.on_flow_run_deploy_attempt(future, run_id)

    def _begun(self, service: WorkerService) -> None:
        # the worker is in the roster by now, so the first poll already knows what to ask for
        env = arguments.poller_environment(self._agent.given(), self._settings, self._environ)
        left = Part.left("poller", self._folder, grace=POLLER_STOP_SECONDS)
        if left is not None:
            left.stop()
        argv = [own_script("poller"), "start"]
        self._poller = Part.start("poller", self._folder, argv, env=env, log_mode=None, grace=POLLER_STOP_SECONDS)
        threading.Thread(target=self._attend, args=(service, self._poller), name="attend", daemon=True).start()

    def _leave(self, code: int) -> None:
        # the stop is cut short: of our processes only the runs may outlive it
        if self._poller is not None:
            self._poller.stop(hurry=lambda: True)
        os._exit(code)

    # -- the poller, a child process

    def _attend(self, service: WorkerService, poller: Part) -> None:
        code = poller.wait()
        if self._over.is_set() or service.stop_signals.first_signal is not None:
            return
        if code == 0 and self._agent.max_polls is not None:
            self._await_starts(service)
        else:
            self._failure = AgentEnded(f"The poller of {type(self._agent).__name__} has ended with code {code}.")
        service.stop_signals.request()

    def _await_starts(self, service: WorkerService) -> None:
        """Wait until every claim of the last poll is started, at most `LAST_STARTS_SECONDS`."""
        until = time.monotonic() + LAST_STARTS_SECONDS
        with closing(ledgers.connect(self._settings.redis, self._settings.fleet)) as ledger:
            while time.monotonic() < until and service.stop_signals.first_signal is None:
                with contextlib.suppress(LedgerError):
                    if not any(claim.state in _BEFORE_START for claim in ledger.claims.live()):
                        return
                time.sleep(_LOOK_SECONDS)

    def _end_poller(self) -> None:
        self._over.set()
        if self._poller is not None:
            self._poller.stop()


# -- starting a run by the agent's `deploy_flow`


@dataclass(frozen=True, kw_only=True)
class _StartUnderWay:
    """The start that this thread is working on; LocalAgent's own `deploy_flow` adds the started run to it."""

    spec: StartSpec
    deployer: ExternalDeployer
    started: list[StartedRun] = field(default_factory=list)


def _by_method(agent: Agent, spec: StartSpec, deployer: ExternalDeployer) -> StartedRun | str:
    now = _now.under_way = _StartUnderWay(spec=spec, deployer=deployer)
    text = ""
    try:
        text = agent.deploy_spec(spec)
    except Exception:  # guards the worker from the user's code
        if not now.started:
            raise
        # the run's process is started: what the override meant to do after that must not fail the run
        logger.exception("deploy_flow failed after its process was started", extra={"run_id": spec.run_id})
    finally:
        _now.under_way = None
    return now.started[-1] if now.started else text


def deploy(agent: LocalAgent, flow_run: FlowRunRecord) -> str:
    """Start a flow run as a process of this host: by the worker that is starting this run, or else by hand."""
    run_id = str(flow_run["id"])
    now: _StartUnderWay | None = getattr(_now, "under_way", None)
    if now is None or now.spec.run_id != run_id:
        return _by_hand(agent, run_id)
    spec = now.spec
    if agent.own_variables:
        spec = dataclasses.replace(spec, env={**spec.env, **agent.populate_env_vars(flow_run)})
    now.started.append(now.deployer.start_below(spec))
    return _pid(now.started[-1])


def _by_hand(agent: LocalAgent, run_id: str) -> str:
    settings, environ = agent.settings(), dict(os.environ)
    host, abilities = Host.probe(environ), Abilities.probe(environ)
    layers, interpreter = interpreter_of(settings, environ, agent.client.traits)
    specs = StartSpecBuilder(settings=settings, api=agent.client.jobs, layers=layers, interpreter=interpreter)
    path = state_root(settings, environ) / "by-hand"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim = str(uuid.uuid4())
    folder = RunFolders(path).create(run_id, claim, {})
    assert folder is not None
    job = agent.client.jobs.job(run_id)
    held = Claim(
        run_id=run_id,
        claim=claim,
        call=claim,
        route=Route("prefect1", "", ""),
        name=job.state.run_name,
        due=datetime.now(UTC),
        state=State.STARTING,
        attempt=1,
        policy="report",
        handle=None,
        exit=None,
    )
    with closing(ProcessDeployer(host=host, abilities=abilities)) as deployer:
        started_run = deployer.start(specs.make(held, job, folder, not_after=None))
        started_run.close()
        return _pid(started_run)


def _pid(started_run: StartedRun) -> str:
    handle = started_run.handle
    return f"PID: {handle.get('command_pid') or handle.get('pid')}"


class HeartbeatThread:
    """Calls `beat` at once, and again after each period; an exception of `beat` is logged and ends nothing."""

    def __init__(self, beat: Callable[[], None], period_seconds: Callable[[], float]) -> None:
        self._beat = beat
        self._period_seconds = period_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; a beat under way gets a second."""
        self._closed.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closed.is_set():
            with guarded(logger, "heartbeat failed", next_try_seconds=self._period_seconds()):  # its next call may work
                self._beat()
            self._closed.wait(self._period_seconds())
