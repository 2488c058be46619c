"""BenchOfRuns: real subprocess runs below real shims, in a folder of the test; what is left is killed at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import until
from workers.deployers.fork_client import Launcher
from workers.deployers.process import ProcessDeployer
from workers.deployers.process_handles import members
from workers.deployment import Deployment, Exit, Order
from workers.host import Abilities, Host
from workers.state.run_folders import RunFolder, RunRecords


def new_launcher() -> Launcher:
    # in plain mode this stands for an init that reaps at once, as launchd does; the one of a sandbox takes seconds
    return Launcher(reap_orphans=True)


@dataclass
class BenchOfRuns:
    path: Path
    abilities: Abilities
    #: one for many tests, since each takes a moment to start; the bench ends only its own
    launcher: Launcher | None = None
    host: Host = field(default_factory=lambda: Host.probe({}))

    def __post_init__(self):
        self._shared = self.launcher is not None
        self.launcher = self.launcher or new_launcher()
        self.records = RunRecords(self.path / "runs")
        self.records.path.mkdir(parents=True)
        self.deployer = self.new_deployer(self.launcher)
        self.orders: list[Order] = []
        self.deployments: list[Deployment] = []

    def new_deployer(self, launcher: Launcher | None = None) -> ProcessDeployer:
        return ProcessDeployer(host=self.host, abilities=self.abilities, launcher=launcher)

    def order(self, *argv: str, **changes) -> Order:
        run_id, claim = str(uuid.uuid4()), str(uuid.uuid4())
        folder = self.records.create(run_id, claim, {})
        env = {"PATH": os.environ["PATH"], "FLOWFLEET_RUN_ID": run_id, "FLOWFLEET_CLAIM": claim}
        facts = {
            "run_id": run_id, "claim": claim, "argv": argv, "env": {**env, **changes.pop("env", {})}, "cwd": None,
            "folder": folder.path, "not_after": None, "log_limit": 1 << 20, "stop_grace": 60.0,
        }  # fmt: skip
        order = Order(**{**facts, **changes})
        self.orders.append(order)
        return order

    def sh(self, script: str, **changes) -> Order:
        return self.order("sh", "-c", script, **changes)

    def python(self, script: str, **changes) -> Order:
        return self.order(sys.executable, "-I", "-S", "-c", script, **changes)

    def start(self, order: Order) -> Deployment:
        deployment = self.deployer.start(order)
        self.deployments.append(deployment)
        return deployment

    def adopt(self, order: Order, deployer: ProcessDeployer | None = None) -> Deployment | None:
        deployment = (deployer or self.deployer).adopt(order.folder)
        if deployment is not None:
            self.deployments.append(deployment)
        return deployment

    def end_of(self, deployment: Deployment, seconds: float = 10.0) -> Exit:
        return until(deployment.poll, seconds, "the end of the run")

    def run(self, order: Order) -> Exit:
        return self.end_of(self.start(order))

    def living(self, order: Order) -> list[int]:
        return members(order.run_id, order.claim, session=0, group=0)

    def folder(self, order: Order) -> RunFolder:
        return RunFolder(order.folder)

    def close(self) -> None:
        for order in self.orders:
            for pid in self.living(order):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shim = (self.folder(order).start() or {}).get("pid")
            if shim:
                until(lambda order=order: not self.folder(order).shim_alive(), 10, f"the shim {shim} to end")
        for deployment in self.deployments:
            deployment.close()
        if not self._shared:
            self.launcher.close()
