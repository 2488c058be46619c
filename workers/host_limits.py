"""Host limits: how many files and processes this host lets a worker have, and how many slots fit."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from workers.host import Abilities

logger = logging.getLogger(__name__)

#: the highest soft limit that we set: some libraries still walk all descriptors that may be open, and a hard limit
#: can be a billion
MOST_DESCRIPTORS = 65536
#: What a worker has open, measured on Linux with 1 to 24 slots: 23 while it is idle (24 with a warm parent), and 6 to 8
#: for a run, of which 5 stay; all runs of a worker may start in one moment, each with connections to Redis, to the API
#: and to the launcher. The rest is for what comes and goes: pages, a new connection to Redis, files being written.
IDLE_DESCRIPTORS = 40
RUN_DESCRIPTORS = 10
#: Processes and threads, which the kernel counts as one: 11 of an idle worker with its launcher, one more with a warm
#: parent; for a run a thread of ours, its shim, and the 11 that an engine of Prefect 3 was seen to have.
IDLE_TASKS = 12
RUN_TASKS = 13


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """The limits of this process, with all that it starts; None = without a limit."""

    #: open files of the worker
    descriptors: int | None
    #: processes and threads that may still come
    tasks: int | None

    @classmethod
    def probe(cls, root: Path = Path("/")) -> HostLimits:
        """Ask the kernel; nothing is raised yet."""
        limits = [left for left in (_user_limit(), *_group_limits(root)) if left is not None]
        return cls(descriptors=_finite(resource.getrlimit(resource.RLIMIT_NOFILE)[1]), tasks=min(limits, default=None))

    def fit(self, slots: int) -> int:
        """The slots that fit, with a warning where that are not all; raises `SettingsError` where not even one fits.

        Of processes the runs need as many as their flows start, which nobody knows: too few are only warned of.
        """
        fitting = slots
        if self.descriptors is not None:
            fitting = min(slots, (self.descriptors - IDLE_DESCRIPTORS) // RUN_DESCRIPTORS)
            if fitting < 1:
                raise SettingsError(
                    f"Open files are limited to {self.descriptors} here, and a worker with one slot needs "
                    f"{descriptors_for(1)}: raise the hard limit (ulimit -Hn, LimitNOFILE= in a systemd unit, "
                    "--ulimit nofile= of a container)."
                )
        if fitting < slots:
            logger.warning(
                "open files are limited here, and slots are cut to what fits: raise the hard limit to have all "
                "(ulimit -Hn, LimitNOFILE= in a systemd unit, --ulimit nofile= of a container)",
                extra={"limit": self.descriptors, "needed": descriptors_for(slots), "wanted": slots, "slots": fitting},
            )
        needed = IDLE_TASKS + RUN_TASKS * fitting
        if self.tasks is not None and self.tasks < needed:
            logger.warning(
                "processes and threads are limited here, and runs may fail to start: raise the limit or take fewer "
                "slots (ulimit -u, TasksMax= in a systemd unit, --pids-limit of a container)",
                extra={"left": self.tasks, "needed": needed, "slots": fitting},
            )
        return fitting


def descriptors_for(slots: int) -> int:
    """The limit of open files that a worker with so many slots needs."""
    return IDLE_DESCRIPTORS + RUN_DESCRIPTORS * slots


def raise_descriptors() -> int:
    """Raise the soft limit of open files as far as it goes; returns the limit before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:  # macOS has a limit of its own below the one that it reports
        logger.info("limit of open files stays", extra={"limit": soft, "error": str(exc)})
    return soft


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _user_limit() -> int | None:
    # it counts all processes of the user on this host, which are not counted here: what is left is at most this. Root
    # has no such limit
    return _finite(resource.getrlimit(resource.RLIMIT_NPROC)[0]) if os.geteuid() else None


def _group_limits(root: Path) -> list[int | None]:
    """What the control groups above this process leave: version 2, and the controller `pids` of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []  # not Linux
    found: list[int | None] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):
            top = root / "sys/fs/cgroup" / controllers
            group = top / path.lstrip("/")
            found += [_left(one) for one in (group, *group.parents) if one.is_relative_to(top)]
    return found


def _left(group: Path) -> int | None:
    try:
        most, now = (group / "pids.max").read_text().strip(), int((group / "pids.current").read_text())
        return None if most == "max" else max(0, int(most) - now)
    except (OSError, ValueError):
        return None


def check_limits(settings: WorkerSettings, abilities: Abilities) -> None:
    """Raise `SettingsError` for limits that nothing here could hold runs to; an engine of containers does it itself."""
    if settings.deploy != "process":
        return
    for name, asked, there in (
        ("--memory", settings.memory, abilities.groups),
        ("--cpus", settings.cpus, abilities.cpu_groups),
    ):
        if asked is not None and not there:
            raise SettingsError(
                f"{name} cannot be kept here: no control group can be made for runs on this host (docs/several-machines"
                f".md tells how to get one), so leave {name} out or start runs with --deploy docker"
            )
