"""Start: what `Agent.start` runs: a Redis if none is given, a poller as a child, and a worker in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from flowfleet import ledger as ledgers
from flowfleet import logs, signals
from flowfleet.agents import arguments, deploying, overrides, variables
from flowfleet.agents.starts import StartUnderWay
from flowfleet.api.client import ApiClient
from flowfleet.errors import FleetError, LedgerError
from flowfleet.guard import guarded
from flowfleet.ledger.claims import Claim, State
from flowfleet.ledger.roster import WorkerRow
from flowfleet.local import redis_process
from flowfleet.local.child import ENDED_IN_ORDER, Part, own_script, wait_ready
from flowfleet.local.data_folder import DataFolder, default_path
from flowfleet.retry import Outage
from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.layers import secrets_of
from workers import cli
from workers.deployers.external import ExternalDeployer, ExternalWatch, InDoubt
from workers.deployment import Deployer, StartedRun, StartSpec
from workers.environment import EnvironmentLayers
from workers.service import WorkerService
from workers.state.run_folders import RunFolder

if TYPE_CHECKING:
    from flowfleet.agents.agent import Agent

logger = logging.getLogger(__name__)

#: after the last poll, what is claimed gets this long to be started
LAST_STARTS_SECONDS = 60.0
#: a poller that has a claim in hand waits a minute for the API, and then gives up by itself
POLLER_STOP_SECONDS = 70.0
_LOOK_SECONDS = 0.2
_COMING = (State.CLAIMING, State.QUEUED)
_STARTING = (State.TAKEN, State.STARTING)


class AgentEnded(FleetError):
    """A part that an agent cannot do without has ended."""


class _StopRequested(BaseException):
    """SIGINT or SIGTERM arrived before there was a worker to stop."""


def run(agent: Agent) -> None:
    """Run an agent from its set-up to its clean-up. Raises `FleetError`, whose text is one sentence."""
    if threading.current_thread() is not threading.main_thread():
        raise AgentEnded(f"{type(agent).__name__}.start() takes signals, so call it in the main thread.")
    settings = agent.worker_settings()
    of_poller = arguments.poller_settings(agent.given(), settings, os.environ)
    logs.join(settings.log_level, settings.log_format, secrets=secrets_of(settings), also=agent.logger.name)
    with ExitStack() as stack:
        stack.enter_context(signals.restored(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        stack.callback(agent.cleanup)
        signals.take(signal.SIGINT, signal.SIGTERM, handler=_on_early_signal, respect_ignored=False)
        failed: list[FleetError] = []
        with contextlib.suppress(_StopRequested):
            agent.setup()
            ignored = overrides.never_called(agent)
            if ignored:
                logger.warning(
                    "methods are overridden that flowfleet never calls", extra={"methods": ", ".join(ignored)}
                )
            if of_poller.require_api:
                agent.client.probe()  # an API that does not answer is waited for else
            # once more: what `on_startup` has changed counts
            _AgentRun(agent, agent.worker_settings(), stack, failed).live()
        if failed:
            raise failed[0]


def _on_early_signal(_number: int) -> None:
    raise _StopRequested


class _AgentRun:
    """One start of an agent, to its end; the exit stack closes all that was opened, the last first."""

    def __init__(self, agent: Agent, settings: WorkerSettings, stack: ExitStack, failed: list[FleetError]) -> None:
        #: takes the error of a part that has ended by itself
        self._failed = failed
        self._agent = agent
        self._settings = settings
        self._stack = stack
        self._environ = dict(os.environ)
        self._folder = self._open(agent.name, f"agent named {agent.name}", "give this one another name")
        self._poller: Part | None = None
        self._embedded_redis: Part | None = None
        self._service: WorkerService | None = None
        self._layers: EnvironmentLayers | None = None
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
                layers=self._own_layers,
                deployer=self._deployer,
                below=deploying.below(self._agent),
                launched=self._launched,
                begun=self._begun,
                leave=self._leave,
                leaving=leaving,
            )
            cli.serve(self._settings, self._environ, embedding)

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
        self._embedded_redis = part
        self._stack.callback(self._end_redis, part)
        wait_ready(part, lambda: redis_process.ready(part, url), redis_process.READY_SECONDS)
        logger.info("embedded Redis is ready", extra={"url": url})
        self._attend("embedded Redis", part)
        return url

    def _end_redis(self, redis: Part) -> None:
        self._over.set()
        redis.stop()

    # -- the worker, in this process

    def _own_layers(self, layers: EnvironmentLayers, api: ApiClient, settings: WorkerSettings) -> EnvironmentLayers:
        agent = self._agent
        agent.become(api, settings)
        self._layers = variables.with_variables_of(agent, layers)
        return self._layers

    def _deployer(self, own: Deployer, api: ApiClient, settings: WorkerSettings, outage: Outage) -> Deployer:
        agent = self._agent

        def deploy(spec: StartSpec) -> StartedRun | InDoubt | str:
            assert self._layers is not None
            return deploying.by_method(agent, self._start_of(spec, deployer, self._layers))

        deployer = ExternalDeployer(
            deploy if overrides.asked(agent) else None,
            below=own,
            watch=ExternalWatch(api.ends.states, outage),
            host=settings.host,
        )
        return deployer

    def _start_of(self, spec: StartSpec, deployer: ExternalDeployer, layers: EnvironmentLayers) -> StartUnderWay:
        def not_after() -> float | None:
            # user code may take longer than the lease that there was at its beginning, which is renewed meanwhile
            service = self._service
            return spec.not_after if service is None else service.leases.deadline(RunFolder(spec.folder).key)

        return StartUnderWay(spec=spec, layers=layers, below=deployer.start_below, not_after=not_after)

    def _launched(self, run_id: str) -> None:
        future: Future[None] = Future()
        future.set_result(None)
        with guarded(logger, "on_flow_run_deploy_attempt failed", run_id=run_id):  # or it would cost us a thread
            self._agent.on_flow_run_deploy_attempt(future, run_id)

    def _begun(self, service: WorkerService) -> None:
        self._service = service
        # the worker is in the roster by now, so the first poll already knows what to ask for
        env = arguments.poller_environment(self._agent.given(), self._settings, self._environ)
        left = Part.left("poller", self._folder, grace=POLLER_STOP_SECONDS)
        if left is not None:
            logger.info("an earlier start of this agent has left a poller, which is ended", extra={"pid": left.pid})
            left.stop()
        argv = [own_script("poller"), "start"]
        self._poller = Part.start(
            "poller", self._folder, argv, env=env, log_mode=None, grace=POLLER_STOP_SECONDS, tied=True
        )
        self._attend("poller", self._poller)

    def _leave(self, code: int) -> None:
        # the stop is cut short: of our processes only the runs may outlive it
        self._over.set()
        if self._poller is not None:
            self._poller.stop(hurry=lambda: True)
        if self._embedded_redis is not None:
            self._embedded_redis.stop()  # in its own time, which is short: it writes what it has
        os._exit(code)

    # -- the parts, child processes

    def _attend(self, name: str, part: Part) -> None:
        threading.Thread(target=self._await_end, args=(name, part), name=f"{part.name}-attend", daemon=True).start()

    def _await_end(self, name: str, part: Part) -> None:
        """Wait for the end of a part, and let this agent end with it; its runs go on, since nobody has ended those."""
        part.wait()
        service = self._service
        if self._over.is_set() or (service is not None and service.stop_signals.first_signal is not None):
            return
        how = part.ended()
        if part is self._poller and service is not None and how == ENDED_IN_ORDER:
            if self._is_drained(service):
                return  # by `flowfleet leave`: the worker ends when its runs have, and this agent with it
            # by `max_polls`, given here or in the agent config, or because somebody has asked it to
            logger.info("the poller has ended in order, and this agent ends with it", extra={"agent": self._agent.name})
            self._await_starts(service)
        else:
            why = part.last_words() or ("see its log lines" if part is self._poller else f"see {part.log}")
            self._failed.append(AgentEnded(f"The {name} of {type(self._agent).__name__} {how}: {why.rstrip('.')}."))
        if service is None:
            os.kill(os.getpid(), signal.SIGTERM)  # the main thread waits for a neighbour, or builds the worker
        else:
            service.stop_signals.end()

    def _is_drained(self, service: WorkerService) -> bool:
        # the ledger is asked, since the worker's next renewal may not have told it yet
        with (
            contextlib.suppress(LedgerError),
            closing(ledgers.connect(self._settings.redis, self._settings.fleet)) as it,
        ):
            return any(row.worker == service.row.worker and row.wanted == "draining" for row in it.roster.rows())
        return False

    def _await_starts(self, service: WorkerService) -> None:
        """Wait until what is claimed for this worker by now is started.

        A claim gets at most `LAST_STARTS_SECONDS` to arrive; a start under way, which may be a `deploy_flow` that takes
        its time, is waited for.
        """
        until = time.monotonic() + LAST_STARTS_SECONDS
        coming: set[str] | None = None
        with closing(ledgers.connect(self._settings.redis, self._settings.fleet)) as ledger:
            while service.stop_signals.first_signal is None:
                starting = [attempt for attempt in service.attempts.all() if attempt.held.state in _STARTING]
                with contextlib.suppress(LedgerError):
                    now = {claim.claim for claim in ledger.claims.live() if _waits_for(service.row, claim)}
                    # another poller may lead, and claim more for us all the time
                    if coming is None and (now or starting):
                        logger.info(
                            "what is claimed for this agent is still started", extra={"runs": len(now) + len(starting)}
                        )
                    coming = now if coming is None else coming & now
                if not starting and (coming == set() or time.monotonic() >= until):
                    return
                time.sleep(_LOOK_SECONDS)

    def _end_poller(self) -> None:
        self._over.set()
        if self._poller is not None:
            self._poller.stop()


def _waits_for(row: WorkerRow, claim: Claim) -> bool:
    """Whether the claim has yet to reach a worker, which may be this one."""
    return claim.state in _COMING and row.offer.serves(claim.route)


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
