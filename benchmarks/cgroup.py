"""Group: a cgroup for the programs of a side, of which the kernel counts CPU time and memory, also of dead ones."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_V2 = (_ROOT, _ROOT / "unified")


class Group:
    """Raises `OSError` where this machine lets us make none (it takes root, and a writable cgroup file system)."""

    def __init__(self, name: str) -> None:
        name = f"flowfleet-{name}-{os.getpid()}"
        self._cpu = _parent("cpuacct", "cpuacct.usage", "CPU time") / name
        self._memory = _parent("memory", "memory.stat", "memory") / name
        for path in self._paths():
            path.mkdir(exist_ok=True)
        if not (self._memory / "memory.stat").exists():
            raise OSError("the cgroups of this machine do not count memory")

    def _paths(self) -> set[Path]:
        return {self._cpu, self._memory}

    def add(self, pid: int) -> None:
        """This process, and all that it starts from now on."""
        for path in self._paths():
            (path / "cgroup.procs").write_text(str(pid))

    @property
    def seconds(self) -> float:
        """CPU time that all of them have used so far."""
        v1 = self._cpu / "cpuacct.usage"
        if v1.exists():
            return int(v1.read_text()) / 1e9
        return _field(self._cpu / "cpu.stat", "usage_usec") / 1e6

    @property
    def megabytes(self) -> float:
        """Memory that they have for themselves now: a page that forked processes share is counted once, and the
        files that are mapped are not."""
        return _field(self._memory / "memory.stat", "total_rss", "anon") / (1 << 20)

    def close(self) -> None:
        """Take it away; that works once its last process is gone."""
        deadline = time.monotonic() + 10
        for path in self._paths():
            while path.exists() and time.monotonic() < deadline:
                with suppress(OSError):
                    path.rmdir()
                    break
                time.sleep(0.1)


def _parent(controller: str, file: str, what: str) -> Path:
    v1 = _ROOT / controller
    if (v1 / file).exists():
        return v1
    # cpu.stat has usage_usec in every group, whether the cpu controller is on or not
    v2 = next((path for path in _V2 if (path / "cgroup.controllers").exists()), None)
    if v2 is None:
        raise OSError(f"no cgroup file system that counts {what}")
    return v2


def _field(path: Path, *names: str) -> int:
    found = dict(line.split()[:2] for line in path.read_text().splitlines())
    return int(next(found[name] for name in names if name in found))
