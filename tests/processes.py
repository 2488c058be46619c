"""Processes: the ones that carry a mark in their environment, found and ended without touching anybody else's."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.waiting import SCALE, until


def environment(*less: str) -> dict[str, str]:
    """Ours without the user's own flowfleet and Prefect, and without what begins with one of `less`."""
    own = ("FLOWFLEET_", "PREFECT_", *less)
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def run(
    *argv: str | Path, env: Mapping[str, str], cwd: Path | None = None, seconds: float = 60, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """A program to its end, with what it has said."""
    return subprocess.run(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds * SCALE,
        check=check,
    )


def marked(variable: str, value: str) -> dict[int, str]:
    """Pid and command of each live process that was started with `variable=value` in its environment."""
    wanted = f"{variable}={value}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if alive(int(entry.name)):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """Is there such a process, and is it more than a zombie?"""
    try:
        return _stat(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def stopped(pid: int) -> bool:
    """Is the process stopped by a signal? One that is gone is not."""
    try:
        return _stat(pid)[0] == "T"
    except OSError:
        return False


def parent(pid: int) -> int:
    """Who started it, or adopted it."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """What `/proc/PID/stat` has behind the command: the state's letter, the parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal it, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def sweep(variable: str, value: str) -> dict[int, str]:
    """Kill all that carry the mark; the answer says who they were."""
    first = marked(variable, value)

    def gone() -> bool:
        now = marked(variable, value)
        for pid in now:
            kill(pid)
        return not now

    until(gone, 20, f"the end of all processes with {variable}={value}")
    return first
