"""Stop plan: what becomes of this worker's runs when it is stopped, and why, as the worker says at its start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowfleet.settings.classes import WorkerSettings
from workers.deployment import CONTAINERS, EXTERNAL
from workers.host import HOST_PID_NAMESPACE, INITS

logger = logging.getLogger(__name__)

#: a mark, and who ends a container with such a mark how soon after its TERM, unless told otherwise
_MARKS = (
    (".dockerenv", "docker itself kills after 10 s"),
    ("run/.containerenv", "podman itself kills after 10 s"),
)


@dataclass(frozen=True, kw_only=True)
class Enclosure:
    """What ends the runs of a worker together with the worker, whatever the worker does."""

    #: where the worker is, and who kills how soon if that is known
    words: str
    #: whether it may be set up so that runs outlive the worker all the same
    may_leave: bool = False


def enclosure_of(
    environ: Mapping[str, str], root: Path = Path("/"), *, pid: int | None = None, parent: int | None = None
) -> Enclosure | None:
    """Find out whether runs end with a worker of this process; None when they can outlive it.

    Docker and Podman leave a file, Podman and nspawn the variable `container`, Kubernetes a variable of its own, and
    systemd sets INVOCATION_ID for a unit, of which it ends the whole group. A process namespace ends with its first
    process: that matters where we are this process or its child, and not where something else keeps it alive (a
    sandbox, or a whole system in a namespace such as WSL).
    """
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return Enclosure(words="in a pod; Kubernetes itself kills after 30 s")
    for mark, who in _MARKS:
        if (root / mark).exists():
            return Enclosure(words=f"in a container; {who}")
    if environ.get("container"):
        return Enclosure(words="in a container, as the variable `container` says")
    if environ.get("INVOCATION_ID"):
        return Enclosure(words="in a systemd unit, which ends whole unless it has KillMode=process", may_leave=True)
    return _namespace(root / "proc", os.getpid() if pid is None else pid, os.getppid() if parent is None else parent)


def _namespace(proc: Path, pid: int, parent: int) -> Enclosure | None:
    if pid == 1:
        return Enclosure(words="the first process here, with which all others end")
    if parent != 1:
        return None
    try:
        space = str((proc / "self/ns/pid").readlink())
        # a /proc that was mounted outside tells of processes there
        ours = str((proc / "self").readlink()) == str(pid)
        first = (proc / "1/comm").read_text().strip() if ours else ""
    except OSError:
        return None  # not Linux, or /proc does not tell
    if space == HOST_PID_NAMESPACE or first in INITS:
        return None
    return Enclosure(words="a child of the first process here, with which all others end")


@dataclass(frozen=True, kw_only=True)
class StopPlan:
    """What a stop does with the runs of this worker."""

    #: detach, wait or cancel
    mode: str
    #: why, in words
    why: str
    #: how long a run that asks for no time of its own is waited for, and gets between TERM and KILL
    grace: float
    #: the runs are left, and end at the latest with the container or namespace that they are in
    bounded: bool = False

    @classmethod
    def of(cls, settings: WorkerSettings, enclosure: Enclosure | None) -> StopPlan:
        """The plan for these settings; `auto` is detach where runs can outlive us, as containers do, else wait."""
        mode, grace = settings.on_stop, settings.stop_grace
        if settings.deploy == CONTAINERS and mode in ("auto", "detach"):
            return cls(mode="detach", why="its containers are the engine's, and outlive this worker", grace=grace)
        if mode == "auto":
            where = enclosure.words if enclosure else "nothing here ends them with this worker"
            return cls(mode="wait" if enclosure else "detach", why=where, grace=grace)
        if mode == "detach" and settings.deploy == EXTERNAL:
            return cls(mode=mode, why="its runs are deployed elsewhere", grace=grace)
        why = f"as given by {settings.origin('on_stop')}"
        if enclosure is None:
            return cls(mode=mode, why=why, grace=grace)
        bounded = mode == "detach" and not enclosure.may_leave
        return cls(mode=mode, why=f"{why}; {enclosure.words}", grace=grace, bounded=bounded)

    def say(self) -> None:
        """Log the plan in one line, at the start of the worker."""
        if self.bounded:
            # the worker may be one of many processes there, or the one with which all end
            logger.warning(
                "on stop: leaves its runs running, and they end with the container that they are in",
                extra={"why": self.why},
            )
        elif self.mode == "detach":
            logger.info(
                "on stop: leaves its runs running, and the next worker on this host adopts them",
                extra={"why": self.why},
            )
        else:
            waits = self.mode == "wait"
            logger.info(
                "on stop: waits for its runs, then ends them" if waits else "on stop: ends its runs",
                extra={"grace_seconds": self.grace, "why": self.why, "otherwise": "--on-stop detach"},
            )
