"""CpuGroup: a cgroup for the programs of a side, whose CPU time the kernel counts, also of processes long dead."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/cpuacct")
_V2 = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class CpuGroup:
    """Raises `OSError` where this machine lets us make none (it takes root, and a writable cgroup file system)."""

    def __init__(self, name: str) -> None:
        parent = _V1 if (_V1 / "cpuacct.usage").exists() else next((one for one in _V2 if _v2(one)), None)
        if parent is None:
            raise OSError("no cgroup file system that counts CPU time")
        self._path = parent / f"flowfleet-{name}-{os.getpid()}"
        self._path.mkdir()

    def add(self, pid: int) -> None:
        """This process, and all that it starts from now on."""
        (self._path / "cgroup.procs").write_text(str(pid))

    @property
    def seconds(self) -> float:
        """What all of them have used so far."""
        v1 = self._path / "cpuacct.usage"
        if v1.exists():
            return int(v1.read_text()) / 1e9
        lines = (self._path / "cpu.stat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("usage_usec")).split()[1]) / 1e6

    def close(self) -> None:
        """Take it away; that works once its last process is gone."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.1)


def _v2(path: Path) -> bool:
    # cpu.stat has usage_usec in every group, whether the cpu controller is on or not
    return (path / "cgroup.controllers").exists()
