"""WorkerWorld1: one worker in this process on a real Valkey and a local Prefect 1 API."""

import sys
from pathlib import Path
from typing import Any

from flowfleet.api.client import ApiClient
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import FlowRun, Message, Offer, Route
from tests.prefect1_api import Faults, Prefect1Api
from tests.worker_world import WorkerWorld
from workers.interpreter import Interpreter

#: stands in for the engine: it says what it is told to, and then does what `CODE` says
ENGINE = """
import json, os, sys, time, urllib.request

RUN = os.environ["PREFECT__CONTEXT__FLOW_RUN_ID"]

def ask(name, states):
    query = "mutation($input: %s_input!) { %s(input: $input) { states { id } } }" % (name, name)
    body = json.dumps({"query": query, "variables": json.dumps({"input": {"states": states}})}).encode()
    asked = urllib.request.Request(os.environ["PREFECT__CLOUD__API"], body, {"Content-Type": "application/json"})
    json.load(urllib.request.urlopen(asked, timeout=10))

def state(kind, **more):
    ask("set_flow_run_states", [{"flow_run_id": RUN, "version": None, "state": {"type": kind, **more}}])

def task(task_run_id, kind, **more):
    ask("set_task_run_states", [{"task_run_id": task_run_id, "version": None, "state": {"type": kind, **more}}])

exec(os.environ["CODE"])
"""


class WorkerWorld1(WorkerWorld):
    """`submit(code)` is a run of an engine that executes this Python; `api` is the local API."""

    def __init__(
        self,
        redis_url: str,
        folder: Path,
        *,
        slots: int = 2,
        labels: tuple[str, ...] = ("x",),
        faults: Faults | None = None,
        **settings: Any,
    ) -> None:
        self.api = Prefect1Api(faults=faults or Faults.like_server()).start()
        self.interpreter = Interpreter(path=str(_engine(folder)), prefect="1.4.1")
        facts = {"api": self.api.url, "labels": labels, "hostname_label": False, **settings}
        self._put_together(redis_url, folder, slots=slots, **facts)
        self.flow = self.api.add_flow()
        self.offer = self.client.presence.resolve(
            Offer(backend="prefect1", labels=self.settings.agent_labels), create=True
        )
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
        run = self.api.run(run_id)
        (found,) = [
            run
            for one in self.client.backlog.due([self.offer], within_seconds=60, limit=50)
            for run in one.runs
            if run.run_id == run_id
        ] or [FlowRun(run_id=run_id, name=run["name"], route=self.route, due=self.api.clock())]
        return found

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
