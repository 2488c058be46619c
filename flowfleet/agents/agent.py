"""Agent: the base class of Prefect 1's agents, with its documented arguments and methods.

Each method says who calls it: flowfleet itself, while `start` runs, or your program, which uses the class.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from flowfleet.agents import argument_kinds, arguments, flow_run_records, overrides
from flowfleet.agents.flow_run_records import FlowRunRecord
from flowfleet.agents.older_methods import OlderMethods
from flowfleet.agents.starts import Starts
from flowfleet.api.client import ApiClient, LogLine, Mark, StateType, Verdict
from flowfleet.api.connect import connect
from flowfleet.errors import AlreadyClaimed, ApiError, ApiUnavailable
from flowfleet.flow_run import FlowRun, Offer, Route
from flowfleet.settings.classes import WorkerSettings

#: Prefect 1's own agent asks for runs that are due within so many seconds
_AHEAD_SECONDS = 10.0
_MOST_RUNS = 25
#: kinds of states in which a run waits for its start time
_WAITING = (StateType.SCHEDULED, StateType.PAUSED)
_NO_TENANT = "00000000-0000-0000-0000-000000000000"
#: by these words in an error Prefect 1's own agents know that a run is another agent's (source: prefect 0.9 to 1.4.1)
_OF_ANOTHER = "State update failed"


class Agent(OlderMethods):
    """Polls for flow runs of Prefect 1 and deploys them: subclass it and override `deploy_flow`.

    The arguments of Prefect's releases of 2020 keep their order; `agent_config_id` and every option of `worker start`
    (`redis`, `fleet`, `slots`, `python`, `api`, `key`, `run_timeout`, …) are given by keyword. An argument that is not
    given is looked for as `worker start` does.
    """

    def __init__(
        self,
        name: str | None = None,
        labels: Iterable[str] | None = None,
        env_vars: Mapping[str, str | None] | None = None,
        max_polls: int | None = None,
        agent_address: str | None = None,
        no_cloud_logs: bool | None = None,
        *more: Any,
        agent_config_id: str | None = None,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {"name": name, "labels": labels, "env_vars": env_vars, "max_polls": max_polls}
        given |= {"agent_address": agent_address, "no_cloud_logs": no_cloud_logs}
        argument_kinds.check(f"{type(self).__name__}()", given, more, agent_config_id=agent_config_id)
        self._options = arguments.check_options(type(self), options)
        found = arguments.worker_settings(self._options, os.environ)
        self._found_name = found.name
        self.name: str = name or found.name
        self.labels: list[str] = list(labels or found.labels)
        #: read at each start of a run; None takes a variable away that the run would have from this host
        self.env_vars: dict[str, str | None] = dict(env_vars or arguments.variables(found.env))
        self.max_polls = max_polls
        self.agent_address: str = agent_address or arguments.address_of_prefect(os.environ)
        self.log_to_cloud: bool = found.cloud_logs if no_cloud_logs is None else not no_cloud_logs
        self.agent_config_id = agent_config_id
        #: seconds between two calls of `heartbeat`
        self.heartbeat_period: float = 60.0
        self.logger = logging.getLogger(self.name)
        #: runs between `agent_process` and `on_flow_run_deploy_attempt`
        self.submitting_flow_runs: set[str] = set()
        self._client: ApiClient | None = None
        self._seen: dict[str, FlowRun] = {}
        #: the runs that the worker is starting through these methods just now
        self.starts_under_way = Starts()

    # -- what the worker and the poller of this agent need

    @property
    def client(self) -> ApiClient:
        """The client of the Prefect API, connected at first use."""
        if self._client is None:
            self._client = connect(self.worker_settings(), os.environ)
        return self._client

    @property
    def deploy_kind(self) -> str:
        """How this agent starts runs: "external" means by a `deploy_flow` that the user has written."""
        return "external"

    def become(self, api: ApiClient, settings: WorkerSettings) -> None:
        """Take over the worker's API client, and labels and variables that an agent config of the API has changed."""
        self._client = api
        if self.agent_config_id is None:
            return
        self.labels = list(settings.labels)
        env = arguments.variables(settings.env)
        if env != {name: str(value) for name, value in self.env_vars.items() if value is not None}:
            self.env_vars = dict(env)

    def given(self) -> dict[str, Any]:
        """The options that this agent gives to its worker and poller, by option key."""
        said: dict[str, Any] = {
            "backend": "prefect1",
            # a name that was not given is left to the worker, which finds it again, in its form at the API
            "name": self.name if self.name != self._found_name else None,
            "label": sorted(set(self.labels)),
            "env": [f"{name}={value}" for name, value in self.env_vars.items() if value is not None],
            "max-polls": self.max_polls,
            "agent-address": self.agent_address or None,
            "agent-config-id": self.agent_config_id,
            "cloud-logs": self.log_to_cloud,
            "hostname-label": False,  # where wanted, the host's name is among the labels already
            "deploy": self.deploy_kind,
            # a run deployed elsewhere outlives us in any case; waiting for its end would end in giving the run up
            "on-stop": "detach" if self.deploy_kind == "external" and "on-stop" not in self._options else None,
        }
        return {**self._options, **{key: value for key, value in said.items() if value is not None}}

    def worker_settings(self) -> WorkerSettings:
        """The settings of this agent's worker."""
        return arguments.worker_settings(self.given(), os.environ)

    def _mark(self) -> Mark:
        # a run deployed by hand is in no ledger: the fleet's leader must not take it for a lost run of its own
        return Mark(fleet=f"{self.worker_settings().fleet}.by-hand")

    # -- life

    def start(self, _loop_intervals: dict[int, float] | None = None) -> None:
        """Run flow runs until SIGINT, SIGTERM or `max_polls` polls: a poller beside, and a worker in this process.

        Your program calls this method, in the main thread. It calls `setup`, `heartbeat`, `deploy_flow` where you have
        overridden it, `on_flow_run_deploy_attempt` and `cleanup`. Runs that go on when it ends are adopted by the next
        start.
        """
        del _loop_intervals  # the poller paces itself
        if type(self).deploy_flow is Agent.deploy_flow and not overrides.deploys(self):
            raise NotImplementedError("Agent itself starts nothing: override deploy_flow, or use LocalAgent.")
        from flowfleet.agents import start  # noqa: PLC0415 - Celery is heavy, and only a start needs it

        start.run(self)

    def setup(self) -> None:
        """Call `on_startup`, then `agent_connect`. Flowfleet calls this method; your program may call it too."""
        self.on_startup()
        self.agent_connect()

    def cleanup(self) -> None:
        """Call `on_shutdown`. Flowfleet calls this method at every end; your program may call it too."""
        self.on_shutdown()

    def on_startup(self) -> None:
        """A hook for you to override. Flowfleet calls it before anything is started."""

    def on_shutdown(self) -> None:
        """A hook for you to override. Flowfleet calls it when all parts have ended."""

    def heartbeat(self) -> None:
        """A hook for you to override. Flowfleet calls it at once, and then every `heartbeat_period` seconds (60).

        An exception that the hook raises is logged, and the hook is called again.
        """

    def agent_connect(self) -> None:
        """Log what is started, and ask whether the API answers; later steps wait for an API that does not.

        Flowfleet calls this method, by `setup`; your program may call it too.
        """
        self.logger.info("agent starts", extra={"type": type(self).__name__, "labels": ", ".join(self.labels)})
        try:
            info = self.client.probe()
        except ApiUnavailable as exc:
            self.logger.warning("the API does not answer yet", extra={"error": str(exc)})
            return
        self.logger.info("waiting for flow runs", extra={"api": self.client.address, "backend": info.backend})

    # -- one run, by hand

    def query_flow_runs(self, tenant_id: str | None = None) -> list[FlowRunRecord]:
        """Flow runs that this agent could deploy now or within ten seconds, the first due first.

        Your program may call this method. Flowfleet does not: the poller asks for all workers at once. `tenant_id`, an
        argument of 2019, has no effect: the tenant is that of the agent's settings.
        """
        del tenant_id
        offer = Offer(backend="prefect1", labels=tuple(sorted(set(self.labels))), deploy=self.deploy_kind)
        offer = self.client.presence.resolve(offer, create=False)
        underway = set(self.submitting_flow_runs)
        listed = self.client.backlog.due([offer], within_seconds=_AHEAD_SECONDS, limit=_MOST_RUNS)
        runs = {run.run_id: run for due in listed for run in due.runs if run.run_id not in underway}
        self._seen.update(runs)
        return flow_run_records.fetch(self._graphql(), runs)

    def update_state(self, flow_run: Mapping[str, Any], deployment_info: str | None = None) -> None:
        """Mark a flow run and its due task runs as Submitted; raises `AlreadyClaimed` when the API refuses that.

        Raises `ApiUnavailable` when it is not known whether the run is Submitted. Your program may call this method.
        Flowfleet calls an override, before `deploy_flow`; the poller has marked the run by then, with a claim in Redis,
        and this method leaves it alone. `deployment_info`, an argument of 2020, has no effect.
        """
        del deployment_info
        if self.starts_under_way.of(str(flow_run["id"])) is not None:
            return
        run = self._flow_run(flow_run)
        answer = self.client.claims.claim([run], str(uuid.uuid4()), self._mark())[run.run_id]
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"it is not known whether flow run {run.run_id} is Submitted: {answer.reason}")
        if answer.verdict is not Verdict.ACCEPTED:
            raise AlreadyClaimed(f"State update failed: flow run {run.run_id} cannot be submitted: {answer.reason}")

    def deploy_flow(self, flow_run: FlowRunRecord) -> str:
        """Start a flow run somewhere, and say in a few words where: the extension point, for you to override.

        Flowfleet calls this method, in a thread, once for each flow run that this agent has claimed; your program may
        call it too. The text stands in the run's log. An exception that the method raises makes the run Failed. The
        run is then watched at the API, and holds a slot until it has ended or `run_timeout` is over.
        """
        raise NotImplementedError("override deploy_flow")

    def deploy_and_update_flow_run(self, flow_run: FlowRunRecord) -> None:
        """Wait for the start time, call `update_state` and `deploy_flow`, and write a line to the run's log.

        An error of `deploy_flow` makes the run Failed; one that says "State update failed" leaves it to another agent.
        Your program may call this method. Flowfleet calls it for a run that it has claimed; the worker writes the run's
        state and log then.
        """
        run_id = str(flow_run["id"])
        under_way = self.starts_under_way.of(run_id)
        if under_way is None:
            self._await_start(flow_run)
        ours = False
        try:
            self.update_state(flow_run)
            ours = True
            text = self._deploy(flow_run)
        except Exception as exc:  # guards us from the user's code: whatever it is, the run's readers are told
            if _OF_ANOTHER in str(exc):  # the words are all that there is: see there
                self.logger.debug("flow run left to another", extra={"run_id": run_id, "error": str(exc)})
                if under_way is not None:
                    under_way.of_another.append(exc)
                return
            if not ours and isinstance(exc, ApiUnavailable):
                raise  # nobody knows whose run it is: no end may be written
            self.logger.exception("deployment failed", extra={"run_id": run_id})
            if under_way is None:
                self._say(run_id, str(exc), logging.ERROR)
            self.mark_failed(flow_run, exc)
            return
        self.logger.info("flow run deployed", extra={"run_id": run_id, "deployment": text})
        if under_way is None:
            self._say(run_id, f"Submitted for execution: {text}", logging.INFO)
        else:
            under_way.texts.append(text)

    def mark_failed(self, flow_run: Mapping[str, Any], exc: Exception) -> None:
        """Set a flow run to Failed with the exception's text, also one that was never submitted.

        A run that has ended stays as it is. Raises `ApiUnavailable` when it is not known whether the run is Failed.
        Your program may call this method. Flowfleet calls an override when `deploy_flow` has raised; it reports the
        failure itself then, through the worker's outbox, and this method only notes it.
        """
        run_id = str(flow_run["id"])
        under_way = self.starts_under_way.of(run_id)
        if under_way is not None:
            under_way.errors.append(exc)
            return
        answer = self.client.ends.report(run_id, StateType.FAILED, str(exc), self._mark())
        if answer.verdict is Verdict.REFUSED and answer.state is not None and answer.state.kind in _WAITING:
            answer = self._writes().fail_waiting(run_id, str(exc), self._mark())
        fields = {"run_id": run_id, "error": repr(exc), "api": str(answer.verdict)}
        if answer.verdict is Verdict.ACCEPTED:
            self.logger.error("flow run failed", extra=fields)
            return
        self.logger.error("flow run could not be set to Failed", extra={**fields, "reason": answer.reason})
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"it is not known whether flow run {run_id} is Failed: {answer.reason}") from exc

    def agent_process(self, executor: Executor | str | None = None, tenant_id: str | None = None) -> bool:
        """Poll once by hand: query, and deploy each run in the executor; returns whether any run was found.

        Your program may call this method, but never while `start` runs. Flowfleet does not call it, since it knows
        nothing of slots and of the ledger. `tenant_id`, the only argument in 2019, has no effect; without an executor
        the method returns when all runs are deployed.
        """
        del tenant_id
        if executor is None or isinstance(executor, str):
            with ThreadPoolExecutor() as own:
                return self.agent_process(own)
        try:
            flow_runs = self.query_flow_runs()
        except ApiError:
            self.logger.exception("query for flow runs failed")
            return False
        for flow_run in flow_runs:
            future = executor.submit(self.deploy_and_update_flow_run, flow_run)
            self.submitting_flow_runs.add(flow_run.id)
            future.add_done_callback(functools.partial(self.on_flow_run_deploy_attempt, flow_run_id=flow_run.id))
        return bool(flow_runs)

    def on_flow_run_deploy_attempt(self, fut: Future[Any], flow_run_id: str) -> None:
        """A hook for you to override. Flowfleet calls it after each attempt to deploy a flow run, successful or not.

        `fut` is done; its result is None. An override should call this method of its base class too.
        """
        self.submitting_flow_runs.discard(flow_run_id)
        error = fut.exception() if fut.done() and not fut.cancelled() else None
        if error is not None:  # of `agent_process`: nobody else looks at its futures
            self.logger.error("deployment attempt failed", extra={"run_id": flow_run_id, "error": repr(error)})
        self.logger.debug("deployment attempted", extra={"run_id": flow_run_id})

    # -- inside

    def _await_start(self, flow_run: FlowRunRecord) -> None:
        # as Prefect 1's own agent does in its thread
        seconds = flow_run_records.seconds_until_due(flow_run, lambda: self.client.probe().skew_seconds)
        if seconds > 0:
            self.logger.debug("waiting for the start time", extra={"run_id": flow_run["id"], "wait_seconds": seconds})
            time.sleep(seconds)

    def _writes(self) -> Any:
        # only Prefect 1's agents end runs that have not begun
        return self.client.ends

    def _graphql(self) -> flow_run_records.GraphQLQueries:
        return flow_run_records.graphql_of(self.client)

    def _flow_run(self, flow_run: Mapping[str, Any]) -> FlowRun:
        run_id = str(flow_run["id"])
        due = flow_run_records.due_of(flow_run) or datetime.now(UTC)
        route = Route.of_labels(_NO_TENANT, self.labels)  # the API does not look at the route
        known = FlowRun(run_id=run_id, name=str(flow_run.get("name") or run_id), route=route, due=due)
        return self._seen.pop(run_id, known)

    def _say(self, run_id: str, message: str, level: int) -> None:
        if not self.log_to_cloud:
            return
        line = LogLine(run_id=run_id, message=message, at=datetime.now(UTC), level=level)
        with contextlib.suppress(ApiError):  # a line is not worth the run
            self.client.log([line])
