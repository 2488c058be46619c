"""BenchOfRuns: real subprocess runs below real shims, in a folder of the test; what is left is killed at the end."""

import os
import signal
import sys
import uuid
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from tests import processes
from tests.waiting import until
from workers.deployers.fork_client import ForkClient, own_program
from workers.deployers.process import ProcessDeployer
from workers.deployers.process_handles import members
from workers.deployment import Exit, RunLimits, StartedRun, StartSpec, StopReason
from workers.host import Abilities, Host
from workers.state.run_folders import RunFolder, RunFolders
from workers.stop import Stop

FULL = Abilities.probe({})
#: a command that says that it is there, and takes no TERM
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def read_pid(path: Path) -> int:
    return int(until(lambda: path.exists() and path.read_text().strip(), 20, f"a pid in {path.name}"))


#: a fork server whose shims wait for an engine's answer as long as it takes: on a busy machine a second is too short
PATIENT = """
import sys
package = sys.modules["flowfleet_shim"] = type(sys)("flowfleet_shim")
package.__path__ = [{folder!r}]
from flowfleet_shim import forkserver, stopping
stopping.ANSWER_SECONDS = 300.0
forkserver.main()
"""


def new_fork_client() -> ForkClient:
    # in plain mode this stands for an init that reaps at once, as launchd does; the one of a sandbox takes seconds
    return ForkClient(reap_orphans=True)


def patient_fork_client() -> ForkClient:
    program = own_program()
    *python, file = program.argv
    patient = (*python, "-c", PATIENT.format(folder=str(Path(file).parent)))
    return ForkClient(program=replace(program, argv=patient), reap_orphans=True)


@dataclass
class BenchOfRuns:
    path: Path
    abilities: Abilities
    #: one for many tests, since each takes a moment to start; the bench ends only its own
    fork_client: ForkClient | None = None
    host: Host = field(default_factory=lambda: Host.probe({}))

    def __post_init__(self):
        self._shared = self.fork_client is not None
        self.fork_client = self.fork_client or new_fork_client()
        self.records = RunFolders(self.path / "runs")
        self.records.path.mkdir(parents=True)
        self.deployer = self.new_deployer()
        self.start_specs: list[StartSpec] = []
        self.started_runs: list[StartedRun] = []

    def new_deployer(self, abilities: Abilities | None = None) -> ProcessDeployer:
        """Another worker of this host as it is now."""
        return ProcessDeployer(host=self.host, abilities=abilities or self.abilities, fork_client=self.fork_client)

    def spec(self, *argv: str, **changes) -> StartSpec:
        run_id, claim = str(uuid.uuid4()), str(uuid.uuid4())
        folder = self.records.create(run_id, claim, {})
        env = {"PATH": os.environ["PATH"], "FLOWFLEET_RUN_ID": run_id, "FLOWFLEET_CLAIM": claim}
        facts = {
            "run_id": run_id, "claim": claim, "argv": argv, "env": {**env, **changes.pop("env", {})}, "cwd": None,
            "folder": folder.path, "not_after": None,
        }  # fmt: skip
        own = {limit.name: changes.pop(limit.name) for limit in fields(RunLimits) if limit.name in changes}
        facts["limits"] = RunLimits(**{"log_limit": 1 << 20, "stop_grace": 60.0, **own})
        spec = StartSpec(**{**facts, **changes})
        self.start_specs.append(spec)
        return spec

    def sh(self, script: str, **changes) -> StartSpec:
        return self.spec("sh", "-c", script, **changes)

    def python(self, script: str, **changes) -> StartSpec:
        return self.spec(sys.executable, "-I", "-S", "-c", script, **changes)

    def start(self, spec: StartSpec) -> StartedRun:
        started_run = self.deployer.start(spec)
        self.started_runs.append(started_run)
        return started_run

    def start_ready(self, spec: StartSpec) -> StartedRun:
        """A run that has said so."""
        started_run = self.start(spec)
        until(lambda: b"ready" in (spec.folder / "log").read_bytes(), 20, "the command to be ready")
        return started_run

    def stop(self, started_run: StartedRun, spec: StartSpec, *, kill: bool = False) -> None:
        """As a worker does it that stops: first the reason, then the signal."""
        self.folder(spec).write_stop(Stop(reason=StopReason.WORKER), "worker@here")
        if kill:
            started_run.kill()
        else:
            started_run.stop()

    def kill_shim(self, started_run: StartedRun, spec: StartSpec) -> None:
        os.kill(started_run.handle["pid"], signal.SIGKILL)
        until(lambda: not self.folder(spec).shim_alive(), 20, "the shim to die")

    def adopt(self, spec: StartSpec, deployer: ProcessDeployer | None = None) -> StartedRun | None:
        started_run = (deployer or self.deployer).adopt(spec.folder)
        if started_run is not None:
            self.started_runs.append(started_run)
        return started_run

    def end_of(self, started_run: StartedRun, seconds: float = 10.0) -> Exit:
        return until(started_run.poll, seconds, "the end of the run")

    def run(self, spec: StartSpec) -> Exit:
        return self.end_of(self.start(spec))

    def living(self, spec: StartSpec) -> list[int]:
        return members(spec.run_id, spec.claim, session=0, group=0)

    def folder(self, spec: StartSpec) -> RunFolder:
        return RunFolder(spec.folder)

    def close(self) -> None:
        for spec in self.start_specs:
            for pid in self.living(spec):
                processes.kill(pid)
            shim = (self.folder(spec).start() or {}).get("pid")
            if shim:
                until(lambda spec=spec: not self.folder(spec).shim_alive(), 10, f"the shim {shim} to end")
        for started_run in self.started_runs:
            started_run.close()
        if not self._shared:
            self.fork_client.close()
