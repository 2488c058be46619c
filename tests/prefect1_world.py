"""World1: one fleet for one test on a Prefect 1 API of its own, with the real client and engine beside it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.prefect1_api import Faults, Prefect1Api
from tests.prefect1_client import Prefect1Client
from tests.prefect1_env import python
from tests.waiting import SCALE, until
from tests.world import Part, World

ENDS = ("Success", "Failed", "Cancelled", "TriggerFailed")

#: stands in for the engine where a test needs many runs or held ones; what it writes is what the real one writes, in
#: its order (Running, then the end, without versions). `TINY_HOLD` holds it till `release`, `TINY_EXIT` ends it so
TINY = """
import json, os, sys, time, urllib.request

RUN = os.environ["PREFECT__CONTEXT__FLOW_RUN_ID"]

def note(word):
    line = f"{word} {os.getpid()} {time.time():.6f} {os.environ.get('FFTEST_WHO', '-')}\\n".encode()
    fd = os.open(os.path.join(os.environ["FFTEST_NOTES"], RUN), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line)
    os.close(fd)

def ask(query, variables):
    body = json.dumps({"query": query, "variables": json.dumps(variables)}).encode()
    for _ in range(400):
        try:
            url = os.environ["PREFECT__CLOUD__API"]
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            answer = json.load(urllib.request.urlopen(asked, timeout=10))
            if answer.get("data"):
                return answer["data"]
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    sys.exit(9)

def state(kind):
    query = "mutation($input: set_flow_run_states_input!) { set_flow_run_states(input: $input) { states { id } } }"
    stands = {"type": kind, "message": kind, "context": {}}
    ask(query, {"input": {"states": [{"flow_run_id": RUN, "version": None, "state": stands}]}})

note("ran")
state("Running")
if os.environ.get("TINY_HOLD"):
    gate, end = os.path.join(os.environ["FFTEST_NOTES"], "release"), time.monotonic() + 600
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.02)
note("done")
code = int(os.environ.get("TINY_EXIT", "0"))
if code == 0:
    state("Success")
sys.exit(code)
"""


class World1:
    """`start_poller()`, `start_worker("name", "label")`, `run_of(flow)`, `wait_end(run)`."""

    def __init__(self, folder: Path, redis_url: str, *, faults: Faults | None = None) -> None:
        self.api = Prefect1Api(faults=faults).start()
        self.world = World(folder, self.api.url, redis_url)
        self.folder = folder
        settings = {"PREFECT__CLOUD__CHECK_CANCELLATION_INTERVAL": "0.5"}
        self.real = Prefect1Client(folder / "real", self.api.url, settings)
        (folder / "real").mkdir(exist_ok=True)
        #: ids of registered flows by name
        self.flows: dict[str, str] = {}
        self.world.env = {
            "FLOWFLEET_BACKEND": "prefect1",
            "FLOWFLEET_API": self.api.url,
            # what hangs is given up soon: tests wait for it
            "FLOWFLEET_API_READ_SECONDS": str(3 * SCALE),
            **settings,
            "PREFECT__HOME_DIR": str(folder / ".prefect"),
            "PREFECT__USER_CONFIG_PATH": str(folder / "no-config.toml"),
            "PYTHONWARNINGS": "ignore",
        }

    # parts

    def start_poller(self, name: str = "agent", *options: str, **how: Any) -> Part:
        return self.world.start_poller(name, *options, **how)

    def start_worker(
        self,
        name: str = "worker",
        *labels: str,
        slots: int = 2,
        tiny: bool = False,
        options: Sequence[str] = (),
        **how: Any,
    ) -> Part:
        """A worker with just these labels, for the real engine or for the tiny one."""
        own = ["--name", name, "--slots", str(slots), "--no-hostname-label", "--python"]
        own.append(str(self.tiny_python() if tiny else python()))
        for label in labels:
            own += ["--label", label]
        return self.world.start("worker", name, [*own, *options], **how)

    def tiny_python(self) -> Path:
        """What a worker takes for an interpreter with prefect 1.4.1."""
        path = self.folder / "tiny" / "bin" / "python"
        if not path.exists():
            path.parent.mkdir(parents=True)
            (self.folder / "tiny.py").write_text(TINY)
            path.write_text(
                f'#!/bin/sh\n[ "$1" = -c ] && echo 1.4.1 && exit 0\nexec {sys.executable} -I {self.folder}/tiny.py\n'
            )
            path.chmod(0o755)
        return path

    # runs

    def tiny_run(self, *labels: str, hold: bool = False, code: int = 0, **given: Any) -> str:
        """A run whose engine is the tiny one."""
        flow = self._tiny_flow()
        env: Mapping[str, str] = {**({"TINY_HOLD": "1"} if hold else {}), **({"TINY_EXIT": str(code)} if code else {})}
        config = {"type": "LocalRun", "env": dict(env), "labels": list(labels), "working_dir": None}
        run_id = self.api.add_run(flow, labels=labels, run_config=config, **given)
        self.world.runs.append(run_id)
        return run_id

    def _tiny_flow(self) -> str:
        with self.api.lock:
            flows = self.api.store.where("flow", name="tiny")
        return str(flows[0]["id"]) if flows else self.api.add_flow("tiny")

    def create_run(self, flow_id: str, **given: Any) -> str:
        """A run by the real client."""
        run_id = self.real.create_run(flow_id, **given)
        self.world.runs.append(run_id)
        return run_id

    def wait_state(self, run_id: str, *kinds: str, seconds: float = 60) -> str:
        return until(
            lambda: state if (state := self.api.state(run_id)) in kinds else None,
            seconds,
            f"run {run_id} to be {' or '.join(kinds)}",
        )

    def wait_end(self, run_id: str, seconds: float = 60) -> str:
        """The type of its last state."""
        return self.wait_state(run_id, *ENDS, seconds=seconds)

    def words(self, run_id: str) -> list[str]:
        """What the tiny engine noted."""
        return self.world.words(run_id)

    def lines(self, run_id: str) -> list[str]:
        """The messages on the run's log page."""
        return [str(line["message"]) for line in self.api.logs(run_id)]

    # the end

    def close(self) -> None:
        for part in self.world.parts:
            part.signal(signal.SIGCONT)
        try:
            self.world.close()
        finally:
            self.real.close()
            self.api.stop()

    def describe(self) -> str:
        """For a failed test."""
        histories = {run_id: self.api.history(run_id) for run_id in self.world.runs[:10]}
        return f"{self.world.describe()}\nhistories: {histories}"
