"""WorkerWorld: one worker in this process on a real Valkey and either API, and as much of a leader as it needs."""

import os
import shlex
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery.worker import state as celery_state

from flowfleet import broker
from flowfleet.api.client import ApiClient, Mark
from flowfleet.api.connect import connect
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Message, Offer, Route, claim_id
from flowfleet.ledger.roster import WorkerRow
from flowfleet.settings.classes import WorkerSettings
from tests.lawless_api import LawlessApi
from tests.ledger_world import LedgerWorld
from tests.prefect1_api import Faults, Prefect1Api
from tests.waiting import SCALE, until
from workers.background import BackgroundJobs
from workers.deployers.fork_client import ForkClient
from workers.deployers.process import ProcessDeployer
from workers.deployers.registry import adopting_deployer
from workers.deployment import StopReason
from workers.environment import layers_of, worker_layer
from workers.host import Abilities, Host
from workers.interpreter import Interpreter
from workers.runs.start_spec import StartSpecBuilder
from workers.service import WorkerService
from workers.state.run_folders import RunFolder
from workers.state.state_folder import StateFolder
from workers.stop import Stop

#: stands in for the engine: it says what it is told to, and then does what `CODE` says
ENGINE = """
import json, os, sys, time, urllib.request

RUN = os.environ["PREFECT__CONTEXT__FLOW_RUN_ID"]

def ask(name, states):
    query = "mutation($input: %s_input!) { %s(input: $input) { states { id } } }" % (name, name)
    body = json.dumps({"query": query, "variables": json.dumps({"input": {"states": states}})}).encode()
    asked = urllib.request.Request(os.environ["PREFECT__CLOUD__API"], body, {"Content-Type": "application/json"})
    json.load(urllib.request.urlopen(asked, timeout=60))

def state(kind, **more):
    ask("set_flow_run_states", [{"flow_run_id": RUN, "version": None, "state": {"type": kind, **more}}])

def task(task_run_id, kind, **more):
    ask("set_task_run_states", [{"task_run_id": task_run_id, "version": None, "state": {"type": kind, **more}}])

exec(os.environ["CODE"])
"""


def command(code: str) -> str:
    """The command line of a run that executes this Python."""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


class Left(BaseException):
    """The worker would have ended its process here."""


class WorkerWorld:
    """`submit(code)` is a run from Scheduled to its message in Redis; `start()` and `stop()` are a worker's life."""

    def __init__(self, redis_url: str, folder: Path, *, slots: int = 2, **settings: Any) -> None:
        self.api: Any = LawlessApi().start()
        self.interpreter = Interpreter(path=sys.executable, prefect="3.8.8")
        self._put_together(redis_url, folder, api=self.api.api_url, slots=slots, **settings)
        self.api.add_pool()
        self.offer = self.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)
        (self.route,) = self.client.presence.routes(self.offer)
        self.ledger.roster.know([self.route])

    def _put_together(self, redis_url: str, folder: Path, *, slots: int, **settings: Any) -> None:
        self.ledger = LedgerWorld(redis_url)
        #: the ledger as the worker reaches it
        self.near = self.ledger.ledger
        self.folder = folder
        self.settings = WorkerSettings(
            redis=redis_url, fleet=self.ledger.fleet, host="here", slots=slots, state_dir=folder / "state", **settings
        )
        self.client = self._connect()
        self.app = broker.make_app(redis_url, fleet=self.ledger.fleet)
        self.publisher = broker.Publisher(self.app)
        self.worker = self.settings.identity
        self.service: WorkerService | None = None
        self.code: int | None = None
        self.left: list[int] = []
        #: what a run gets between TERM and KILL
        self.run_grace = 2.0
        #: what starts the shims, if not the deployer's own
        self.fork_client: ForkClient | None = None
        self._thread: threading.Thread | None = None
        self._number = 0

    def _connect(self) -> ApiClient:
        return connect(self.settings, {"HOME": str(self.folder)})

    # the worker

    def build(self, *, failpoints: Failpoints | None = None, mode: str = "detach") -> WorkerService:
        host = Host.probe({"FLOWFLEET_MACHINE_ID": "m" * 32})
        self._number += 1
        slots, nonce = self.settings.slots, f"nonce-{self._number}"
        row = WorkerRow(worker=self.worker, nonce=nonce, offer=self.offer, routes=(), slots=slots, version="0.1.0")
        self.state = StateFolder.open(self.settings.state_dir, host.machine_id, self.settings.name)
        other = self.ledger.roster.sign_on(row)
        if other is not None:
            assert self.ledger.roster.sign_on(row, over=other) is None
        layers = layers_of(self.settings, worker_layer(os.environ, python=None, own_prefix=None), self.client.traits)
        to_api = BackgroundJobs("the Prefect API")
        return WorkerService(
            settings=self.settings,
            row=row,
            app=broker.make_app(self.settings.redis, fleet=self.settings.fleet),
            claims=self.near.claims,
            roster=self.near.roster,
            api=self.client,
            to_api=to_api,
            deployer=adopting_deployer(
                ProcessDeployer(
                    host=host,
                    abilities=Abilities.probe({"FLOWFLEET_PLAIN": os.environ.get("FLOWFLEET_TEST_PLAIN", "")}),
                    fork_client=self.fork_client,
                ),
                self.client,
                self.settings,
                to_api.outage.of("external runs"),
            ),
            start_specs=StartSpecBuilder(
                api=self.client.jobs,
                layers=layers,
                interpreter=self.interpreter,
                settings=replace(self.settings, log_limit=1 << 20, stop_grace=self.run_grace),
                traits=self.client.traits,
            ),
            state=self.state,
            failpoints=failpoints or Failpoints(),
            mode=mode,
            count_refused=lambda _reason: self.ledger.ledger.store.count("messages-refused"),
            leave=self.left.append,
        )

    def start(self, **how: Any) -> WorkerService:
        """A worker that serves its route through an open gate."""
        celery_state.reset_state()
        celery_state.should_stop = None
        if self.ledger.term == 0:
            self.ledger.lead()
            self.ledger.open()
        service = self.service = self.build(**how)
        self._thread = threading.Thread(target=self._run, args=(service,), daemon=True)
        self._thread.start()
        until(lambda: self._row().routes == (self.route,), 10, "the worker to serve its route")
        return service

    def _run(self, service: WorkerService) -> None:
        self.code = None
        self.code = service.run()

    def _row(self) -> WorkerRow:
        return next(row for row in self.ledger.roster.rows() if row.worker == self.worker)

    def stop(self) -> int:
        """An orderly stop; the exit code."""
        assert self.service is not None
        if self.service.stop_signals.first_signal is None:
            self.service.stop_signals.request()
        self.wait_ended()
        self.service.to_api.close()
        self.service.to_ledger.close()
        self.state.close()
        self.service = None
        assert self.code is not None
        return self.code

    def next_worker(self) -> None:
        """An orderly stop, and the next process of the worker."""
        self.stop()
        self.start()

    def wait_ended(self, seconds: float = 20) -> None:
        """Wait until the worker has ended, by `stop` or by itself."""
        assert self._thread is not None
        self._thread.join(seconds * SCALE)
        assert not self._thread.is_alive(), "the worker did not stop"

    def close(self) -> None:
        if self.service is not None:
            for attempt in self.service.attempts.running():
                self.service.supervisor.stop(attempt.key, Stop(reason=StopReason.CANCEL, kill=True))
            self.stop()
        self.ledger.ledger.close()
        self.api.stop()

    # runs

    def create(self, command: str | None = None, **variables: Any) -> FlowRun:
        """A scheduled run that starts this command line."""
        run_id = self.api.add_run(job_variables={"command": command, **variables})
        due = until(lambda: self.client.backlog.due([self.offer], within_seconds=1, limit=50), 5, "due runs")
        return next(run for one in due for run in one.runs if run.run_id == run_id)

    def claim(self, run: FlowRun) -> Message:
        """Claim it as the leader does, up to the message, which is not sent."""
        call = f"00000000-0000-4000-8000-{int(run.run_id[:8], 16):012x}"
        (outcome,) = self.ledger.claim(run, call=call)
        assert outcome.moved, outcome
        answer = self.client.claims.claim([run], call, Mark(fleet=self.ledger.fleet))[run.run_id]
        assert answer.verdict == "accepted", answer
        claim = claim_id(call, run.run_id)
        assert self.ledger.claims.accept(self.ledger.term, run.run_id, claim).moved
        return Message(run_id=run.run_id, claim=claim, route=run.route)

    def submit(self, code: str = "pass", **variables: Any) -> Message:
        """A run of one line of Python, claimed and queued."""
        return self.submit_command(command(code), **variables)

    def submit_command(self, command: str, **variables: Any) -> Message:
        """A run of this command line, claimed and queued."""
        message = self.claim(self.create(command, **variables))
        self.publisher.publish(message)
        return message

    def run(self, code: str = "pass", **variables: Any) -> Message:
        """Such a run, once a worker has brought it to its end and its claim is settled."""
        if self.service is None:
            self.start()
        message = self.submit(code, **variables)
        self.wait_gone(message)
        return message

    def holding(self, code: int = 0, gate: str = "gate") -> str:
        """What a run executes that begins, waits for `release`, and ends with this code."""
        gate = repr(str(self.folder / gate))
        return f"import os,time\nwhile not os.path.exists({gate}): time.sleep(0.02)\nraise SystemExit({code})"

    def begin(self, code: int = 0, gate: str = "gate") -> Message:
        """Such a run, once it is running."""
        message = self.submit(self.holding(code, gate))
        self.wait_state(message, "running")
        return message

    def release(self, gate: str = "gate") -> None:
        (self.folder / gate).touch()

    def end(self, message: Message, code: int, seconds: float = 20) -> None:
        """Let the run go on to its end, of which the API is told."""
        self.release()
        self.wait_gone(message, seconds)
        assert f"exited with code {code}" in self.told(message)

    def told(self, message: Message) -> str:
        """What the state of the run says."""
        return str(self.api.state(message.run_id)["message"])

    def wait_free(self) -> None:
        """Wait until no slot is in use."""
        service = self.service
        assert service is not None
        until(lambda: service.slots.in_use() == 0, 10, "the slots to be free")

    def wait_handed_back(self, message: Message) -> None:
        """Wait until nothing of a run that went back is left to do here."""
        self.wait_free()
        folder = self.run_folder(message)
        until(lambda: not folder.path.exists() or folder.settled(), 30, "the folder to be removed or settled")

    def marking(self) -> str:
        """What a run executes to show that it has begun."""
        return f"open({str(self.folder / 'mark')!r}, 'a').write('ran;')"

    def marks(self) -> str:
        """`ran;` for each run that has."""
        path = self.folder / "mark"
        return path.read_text() if path.exists() else ""

    def run_folder(self, message: Message) -> RunFolder:
        """Its folder on the worker's disk."""
        return self.state.runs.get(message.run_id, message.claim)

    def finish(self, run_id: str) -> None:
        """What the engine writes at its end."""
        self.api.write(run_id, "COMPLETED")

    def wait_gone(self, message: Message, seconds: float = 20) -> dict[str, Any]:
        """Wait until the claim is settled; its record."""

        def record() -> dict[str, Any] | None:
            return next((dict(one) for one in self.ledger.claims.records() if one["claim"] == message.claim), None)

        found = until(record, seconds, f"claim of {message.run_id} to be settled")
        assert self.ledger.claims.get(message.run_id) is None
        if self.service is not None:
            # the claim goes first, then the worker's own traces of it: a crash between the two loses nothing
            until(lambda: self._traces(message) == [], 10, "the worker to be done with it")
        return found

    def _traces(self, message: Message) -> list[str]:
        """What the worker still has of a claim. Its outcome is counted last of all, which is not seen from here."""
        assert self.service is not None
        folder = self.run_folder(message)
        traces = {
            "attempt": self.service.attempts.get(message.task_id) is not None,
            "report": self.state.outbox.get(message.run_id, message.claim) is not None,
            # settled after an end, removed after a hand-back that the ledger has confirmed
            "folder": folder.path.exists() and not folder.settled(),
        }
        return [name for name, there in traces.items() if there]

    def wait_state(self, message: Message, state: str, seconds: float = 15) -> Any:
        """Wait until the claim is in this state."""

        def there() -> Any:
            claim = self.ledger.claims.get(message.run_id)
            return claim if claim is not None and claim.state == state else None

        return until(there, seconds, f"claim of {message.run_id} to be {state}")


class WorkerWorld1(WorkerWorld):
    """`submit(code)` is a run of an engine that executes this Python; `api` is the local API."""

    def __init__(
        self, redis_url: str, folder: Path, *, slots: int = 2, faults: Faults | None = None, **settings: Any
    ) -> None:
        self.api = Prefect1Api(faults=faults or Faults.like_server()).start()
        self.interpreter = Interpreter(path=str(_engine(folder)), prefect="1.4.1")
        facts = {"api": self.api.url, "labels": ("x",), "hostname_label": False, **settings}
        self._put_together(redis_url, folder, slots=slots, **facts)
        self.flow = self.api.add_flow()
        offer = Offer(backend="prefect1", labels=self.settings.agent_labels)
        self.offer = self.client.presence.resolve(offer, create=True)
        self.route = Route.of_labels(self.api.tenant, self.settings.agent_labels)
        self.ledger.roster.know([self.route])

    def _connect(self) -> ApiClient:
        session = Session(Address(url=self.api.url), flavour=PREFECT1, read_seconds=60.0)
        return Prefect1(GraphQL(session), labels=self.settings.agent_labels, cloud_logs=self.settings.cloud_logs)

    def create(self, command: str | None = None, **config: Any) -> FlowRun:
        """A due run whose engine executes this code; `config` goes into its run_config."""
        env = {"CODE": command, **config.pop("env", {})}
        whole = {"type": "LocalRun", "env": env, "labels": list(self.settings.agent_labels), **config}
        run_id = self.api.add_run(self.flow, labels=self.settings.agent_labels, run_config=whole)
        return self.listed(run_id)

    def listed(self, run_id: str) -> FlowRun:
        """This run as the leader knows it, also one that is not for us."""
        due = self.client.backlog.due([self.offer], within_seconds=60, limit=50)
        foreign = FlowRun(run_id=run_id, name=self.api.run(run_id)["name"], route=self.route, due=self.api.clock())
        return next((run for one in due for run in one.runs if run.run_id == run_id), foreign)

    def submit(self, code: str = "pass", **config: Any) -> Message:
        """A run of this code, claimed and queued."""
        return self.submit_command(code, **config)

    def finish(self, run_id: str) -> None:
        """What the engine writes at its end."""
        self.api.write(run_id, "Success")

    def lines(self, run_id: str) -> list[tuple[str, str]]:
        """Level and text of the run's log page."""
        return [(line["level"], line["message"]) for line in self.api.logs(run_id)]


def _engine(folder: Path) -> Path:
    path = folder / "engine" / "python"
    path.parent.mkdir()
    (folder / "engine.py").write_text(ENGINE)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I {folder}/engine.py "$@"\n')
    path.chmod(0o755)
    return path
