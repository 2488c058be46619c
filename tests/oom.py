"""OOM: runs that the kernel kills for memory, in a control group with a limit, and kills that only look like that."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench_of_runs import BenchOfRuns
from tests.waiting import until
from workers import host_cgroups
from workers.deployment import Exit, StartedRun, StartSpec
from workers.shim import cgroup

LIMIT = 48 << 20
#: waits until its group has a limit, and then takes far more memory than that
HOG = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)\nx = b'x' * (1 << 30)\n"
#: does so in a child that a fork of it is, and says so; then goes on
CHILD = (
    "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)\n"
    "pid = os.fork()\nif pid == 0:\n    x = b'x' * (1 << 30)\n"
    "print(os.waitpid(pid, 0)[1], 'ready', flush=True)\n{then}\n"
)


@dataclass
class LimitedRuns:
    """Runs on a bench whose control groups get a limit of memory as soon as they are there."""

    bench: BenchOfRuns
    groups: Path

    def group(self, spec: StartSpec) -> Path:
        return host_cgroups.group_of(self.groups, spec.folder)

    def start(self, script: str) -> tuple[StartedRun, StartSpec]:
        """A run of this Python that waits for `go`, which it gets when its limit is there."""
        spec = self.bench.python(script)
        started = self.bench.start(spec)
        limit(self.group(spec))
        (spec.folder / "work" / "go").touch()
        return started, spec

    def starve(self) -> Exit:
        """A run that the kernel kills for memory."""
        started, _ = self.start(HOG)
        return self.bench.end_of(started, 30)

    def starve_child(self, then: str) -> tuple[StartedRun, StartSpec]:
        """A run of which the kernel has just killed a child."""
        started, spec = self.start(CHILD.format(then=then))
        until(lambda: b"9 ready" in (spec.folder / "log").read_bytes(), 30, "the child to be killed", pause=0.002)
        return started, spec

    def kill(self, started: StartedRun, *, after: float = 0.0) -> Exit:
        """Kill the run's first process, as somebody else on this host may."""
        time.sleep(after)  # the span is what is tested: no condition tells that it is over
        os.kill(started.handle["command_pid"], signal.SIGKILL)
        return self.bench.end_of(started, 30)


def limit(group: Path) -> None:
    """Limit the memory of the group."""
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"):
        if (group / name).exists():
            (group / name).write_text(str(LIMIT))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    assert cgroup.members(str(group)), "the run is in its group"
