"""Testing: the checks that a deployer has to pass, for the tests of a package that plugs one in.

    from flowfleet.testing import check_deployer

    def test_my_deployer(tmp_path):
        check_deployer(MyDeployer, tmp_path)

They start runs that do nothing but end as they are told. flowfleet's own two deployers pass them.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flowfleet.errors import DeployError
from workers.deployment import Deployer, DeployerContext, Exit, RunLimits, StartedRun, StartSpec, StopReason
from workers.shim.syscalls import boot_clock
from workers.state.run_folders import RunFolder, RunFolders
from workers.stop import Stop

_WORKER = "worker@test"
_PAUSE_SECONDS = 0.05
_STILL_SECONDS = 1.0
_GRACE_SECONDS = 2.0

Make = Callable[[DeployerContext], Deployer]


class DeployerFault(AssertionError):
    """What a deployer does is not what a worker relies on; the sentence says which of it."""


def check_deployer(
    make: Make,
    folder: Path,
    *,
    change: Callable[[StartSpec], StartSpec] = lambda spec: spec,
    shell: Sequence[str] = ("sh", "-c"),
    seconds: float = 60.0,
) -> list[str]:
    """Check a deployer; returns what was checked, in words. Raises `DeployerFault` at the first fault.

    `make` is what the entry point names; it is called several times, as each worker calls it. `folder` is an empty
    folder. `change` may add to each start spec what the deployer needs of it (job variables, an image). `shell` runs a
    script where runs are. No run takes longer than `seconds`.
    """
    checks = _Checks(make, folder, change=change, shell=tuple(shell), seconds=seconds)
    done = []
    try:
        for name, check in checks.all().items():
            check()
            done.append(name)
    finally:
        checks.close()
    return done


@dataclass
class _Checks:
    make: Make
    folder: Path
    change: Callable[[StartSpec], StartSpec]
    shell: tuple[str, ...]
    seconds: float
    _deployers: list[Deployer] = field(default_factory=list)

    def all(self) -> dict[str, Callable[[], None]]:
        return {
            "a run that ends well": self.ends_well,
            "a run that fails, with its code": self.fails,
            "a handle of plain JSON, on disk too": self.handle,
            "KILL": self.kill,
            "TERM, its grace, then KILL": self.stop,
            "a worker that ends, and its run that goes on": self.outlives,
            "an end that no worker saw": self.ends_alone,
            "a start that comes too late": self.late,
            "a run that was given away before it began": self.given_away,
        }

    # -- the checks

    def ends_well(self) -> None:
        end = self._end(self._start("exit 0"))
        self._expect(end.ok, f"a run that exits 0 is told as: it {end}")

    def fails(self) -> None:
        end = self._end(self._start("exit 3"))
        self._expect(end.code == 3 or end.unknown, f"a run that exits 3 is told as: it {end}")
        self._expect(not end.ok, "a run that exits 3 is told as a good one")

    def handle(self) -> None:
        run, folder = self._start_in("sleep 600")
        handle = dict(run.handle)
        self._expect(json.loads(json.dumps(handle)) == handle, f"the handle {handle} is no plain JSON")
        missing = {"kind", "host", "id"} - handle.keys()
        self._expect(not missing, f"the handle {handle} has no {', '.join(sorted(missing))}")
        self._expect(
            handle["kind"] == self._deployers[0].kind, f"the kind of the handle {handle} is not the deployer's"
        )
        self._expect(folder.started() is not None, "started.json is not in the run's folder")
        run.kill()
        self._end(run)
        self._expect(dict(run.handle)["id"] == handle["id"], "the handle changes with the end")

    def kill(self) -> None:
        run, folder = self._start_in(self._ticking("trap '' TERM"))
        self._still(run)
        folder.write_stop(Stop(reason=StopReason.CANCEL, kill=True), _WORKER)
        run.kill()
        end = self._end(run)
        self._expect(not end.ok, "a run that was killed is told as a good one")
        self._silent(folder)
        run.kill()  # there is nothing left to do
        self._expect(run.poll() == end, "the end changes when a run that is over is killed")

    def stop(self) -> None:
        run, folder = self._start_in(self._ticking("trap 'exit 0' TERM"))
        deaf, deaf_folder = self._start_in(self._ticking("trap '' TERM"))
        self._still(run)
        self._still(deaf)
        for each, its_folder in ((run, folder), (deaf, deaf_folder)):
            its_folder.write_stop(Stop(reason=StopReason.WORKER), _WORKER)
            each.stop()
        self._end(run)
        self._end(deaf)
        self._silent(deaf_folder)

    def outlives(self) -> None:
        run, folder = self._start_in("sleep 3; exit 4")
        handle = dict(run.handle)
        run.close()
        self.close()
        again = self._deployer().adopt(folder.path)
        self._expect(again is not None, "a run that lives is not found again by the next worker")
        assert again is not None
        self._expect(dict(again.handle)["id"] == handle["id"], "a run that is found again has another id in its handle")
        end = self._end(again)
        self._expect(end.code == 4 or end.unknown, f"a run that was found again and exits 4 is told as: it {end}")

    def ends_alone(self) -> None:
        run, folder = self._start_in("exit 5")
        self._end(run)
        run.close()
        self.close()
        again = self._deployer().adopt(folder.path)
        self._expect(again is not None, "a run that has ended is not found again by the next worker")
        assert again is not None
        end = self._end(again)
        self._expect(end.code == 5 or end.unknown, f"a run that had exited 5 is told by the next worker as: it {end}")

    def late(self) -> None:
        spec, folder = self._spec("exit 0")
        try:
            run = self._deployer().start(replace(spec, not_after=boot_clock() - 1.0))
        except DeployError:
            record = folder.exit_record() or {}
            self._expect(
                bool(record.get("late")) and not record.get("begun"),
                "after a start that comes too late exit.json does not say begun: false and late: true",
            )
            self._expect(self._deployer().adopt(folder.path) is None, "a run that never began is found by `adopt`")
        else:
            run.kill()
            raise DeployerFault("a run begins though `not_after` is over")

    def given_away(self) -> None:
        spec, folder = self._spec("exit 0")
        self._expect(self._deployer().adopt(spec.folder) is None, "a run that was never started is found by `adopt`")
        self._expect((folder.start() or {}).get("by") == "abandoned", "the start file does not say abandoned then")
        try:
            run = self._deployer().start(spec)
        except (DeployError, OSError):
            return
        run.kill()
        raise DeployerFault("a run begins though it was given away: its start file was there")

    # -- what they have in common

    def _deployer(self) -> Deployer:
        if not self._deployers:
            context = DeployerContext(
                host="test",
                environment=dict(os.environ),
                limits=RunLimits(stop_grace=_GRACE_SECONDS, log_limit=0),
                state_folder=self.folder,
            )
            self._deployers.append(self.make(context))
        return self._deployers[-1]

    def close(self) -> None:
        """End the worker's deployer: the next check makes a new one."""
        for deployer in self._deployers:
            deployer.close()
        self._deployers.clear()

    def _spec(self, script: str) -> tuple[StartSpec, RunFolder]:
        runs = self.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        run_id, claim = str(uuid.uuid4()), str(uuid.uuid4())
        folder = RunFolders(runs).create(run_id, claim, {})
        assert folder is not None
        spec = StartSpec(
            run_id=run_id,
            claim=claim,
            argv=(*self.shell, script),
            env={**os.environ, "FLOWFLEET_RUN_ID": run_id, "FLOWFLEET_CLAIM": claim},
            cwd=None,
            folder=folder.path,
            not_after=boot_clock() + self.seconds,
            limits=RunLimits(stop_grace=_GRACE_SECONDS, log_limit=0),
        )
        return self.change(spec), folder

    def _start_in(self, script: str) -> tuple[StartedRun, RunFolder]:
        spec, folder = self._spec(script)
        return self._deployer().start(spec), folder

    def _start(self, script: str) -> StartedRun:
        return self._start_in(script)[0]

    def _end(self, run: StartedRun) -> Exit:
        deadline = time.monotonic() + self.seconds
        while (end := run.poll()) is None:
            if time.monotonic() > deadline:
                raise DeployerFault(f"a run has no end after {self.seconds:.0f} s")
            time.sleep(_PAUSE_SECONDS)
        self._expect(run.poll() == end, "a run that has ended is told in another way when it is asked again")
        return end

    def _ticking(self, first: str) -> str:
        """A script that prints all the time, for as long as a run may take: nothing of it stays after a fault."""
        return f"{first}; i=0; while [ $i -lt {int(10 * self.seconds)} ]; do i=$((i+1)); echo $i; sleep 0.1; done"

    def _silent(self, folder: RunFolder) -> None:
        """A moment after an end, in which its script may print nothing more."""
        time.sleep(_STILL_SECONDS)
        printed = _size(folder.log)
        time.sleep(_STILL_SECONDS)
        self._expect(_size(folder.log) == printed, "a run goes on though it is told as ended")

    def _still(self, run: StartedRun) -> None:
        """A moment for its script to set its traps, in which it has to live."""
        time.sleep(_STILL_SECONDS)
        self._expect(run.poll() is None, "a run that lives is told as ended")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DeployerFault(otherwise)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
