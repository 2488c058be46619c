"""Process: the deployer of runs as subprocesses of this host, each below a shim that outlives the worker."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowfleet.errors import FolderMissing, StartFailed
from flowfleet.failpoints import Failpoints
from workers import host_cgroups
from workers.deployers.fork_client import ForkClient, NoAnswer
from workers.deployers.subprocess_run import SubprocessRun
from workers.deployers.warm_client import WarmClient
from workers.deployment import Exit, StartedRun, StartSpec
from workers.host import Abilities, Host
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)

_BIRTH_LOOKS = 100
_BIRTH_PAUSE_SECONDS = 0.02


@dataclass(kw_only=True)
class ProcessDeployer:
    """Starts runs through one launcher, or a warm parent, and finds them again by their folders."""

    kind = "process"

    host: Host
    abilities: Abilities
    fork_client: ForkClient | None = None
    #: tried first; None = every run starts cold
    warm: WarmClient | None = None
    wait: Callable[[float], None] = time.sleep
    #: where a relative working folder of a run begins: the folder where the worker was started, as for a stock worker
    folder: Path = field(default_factory=Path.cwd)
    failpoints: Failpoints = field(default_factory=Failpoints)

    @property
    def has_switch(self) -> bool:
        """Whether runs end by themselves when their lease runs out: an orphan has to come back to its shim for that."""
        return self.abilities.proc and self.abilities.subreaper

    def __post_init__(self) -> None:
        self._fork_client = self.fork_client or ForkClient(reap_orphans=self.abilities.subreaper)
        self._umask = _umask()

    def start(self, spec: StartSpec) -> StartedRun:
        request = self._request(spec)
        try:
            answer = self._ask(request)
        except NoAnswer as exc:
            return self._settle_start(spec, str(exc))
        status = answer.get("status")
        if status == "started":
            return self._run(RunFolder(spec.folder), answer["started"])
        if status == "taken":  # a second start of the same attempt: the shim that won the start file has the run
            return self._settle_start(spec, "its start file is taken")
        sentence = str(answer.get("error") or "its shim did not say why")
        failed = StartFailed if spec.cwd is None or (self.folder / spec.cwd).is_dir() else FolderMissing
        raise failed(f"Run {spec.run_id} could not be started: {sentence}.")

    def _ask(self, request: dict[str, Any]) -> Mapping[str, Any]:
        answer = self.warm.launch(request) if self.warm is not None else None
        if answer is not None:
            return answer
        try:
            return self._fork_client.launch(request)
        except NoAnswer as exc:
            # asking again is safe: the start file lets one shim win
            logger.warning("shim did not answer, asked again", extra={"run_id": request["run_id"], "error": str(exc)})
            return self._fork_client.launch(request)

    def _settle_start(self, spec: StartSpec, reason: str) -> StartedRun:
        started_run = self.adopt(spec.folder)
        if started_run is None:
            raise StartFailed(f"Run {spec.run_id} could not be started: {reason}.")
        return started_run

    def _request(self, spec: StartSpec) -> dict[str, Any]:
        host, abilities = self.host, self.abilities
        group = str(host_cgroups.group_of(Path(abilities.groups), spec.folder)) if abilities.groups else None
        # of processors only where they are limited: it may be a group of another hierarchy
        cpus = abilities.cpu_groups if spec.limits.cpus is not None else ""
        cpu_group = str(host_cgroups.group_of(Path(cpus), spec.folder)) if cpus else None
        return {
            "v": 1,
            "run_id": spec.run_id,
            "claim": spec.claim,
            "folder": str(spec.folder),
            "argv": list(spec.argv),
            "env": dict(spec.env),
            "path": spec.env.get("PATH", os.defpath),
            # the launcher is in another folder, so this must be absolute
            "cwd": str(self.folder / spec.cwd) if spec.cwd else None,
            "umask": self._umask,
            "not_after": spec.not_after,
            "cgroup": group,
            "cpu_group": cpu_group,
            "switch": spec.switch,
            "limits": dataclasses.asdict(spec.limits),
            "control": spec.control,
            "handle": {"kind": self.kind, "host": host.name, "boot_id": host.boot_id, "pid_ns": host.pid_ns},
            "abilities": {"proc": abilities.proc, "subreaper": abilities.subreaper, "holes": abilities.holes},
            "failpoints": self.failpoints.of_shims(),
        }

    def adopt(self, folder: Path) -> StartedRun | None:
        run = RunFolder(folder)
        start = run.start()
        if start is None and run.abandon("its worker ended before it was started"):
            return None
        start = run.start() or {}
        if start.get("by") == "abandoned":
            return None
        self._await_birth(run)
        record = run.exit_record()
        if record is not None and record.get("late"):
            run.drop_work()
            return None
        if start.get("boot_id") not in (None, self.host.boot_id):
            return self._from_another_boot(run)
        started = run.started()
        if started is None and record is None and not run.shim_alive():
            # the command waits at its gate until started.json is written, and ends there with its shim
            run.write_exit(Exit(error="its shim was killed before the command began"), begun=False)
        return self._run(run, started or start)

    def _await_birth(self, run: RunFolder) -> None:
        for _ in range(_BIRTH_LOOKS):
            if run.started() is not None or run.exit_record() is not None or not run.shim_alive():
                return
            self.wait(_BIRTH_PAUSE_SECONDS)
        # the shim is alive and slow (a hanging file system): its command may still begin, so the run is watched

    def _from_another_boot(self, run: RunFolder) -> StartedRun:
        if run.exit_record() is None:
            end = Exit(unknown=True, rebooted=True, why="its host restarted while it ran")
            run.write_exit(end, begun=True)
        return self._run(run, run.started() or run.start() or {}, over=True)

    def _run(self, folder: RunFolder, started: Mapping[str, Any], *, over: bool = False) -> SubprocessRun:
        return SubprocessRun(folder=folder, host=self.host, abilities=self.abilities, started=started, over=over)

    def close(self) -> None:
        if self.warm is not None:
            self.warm.close()
        self._fork_client.close()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
