"""Host control groups: the folder in which this worker may make a cgroup for each of its runs, if there is one.

Version 1 of cgroups: the worker's own group of the controller `memory`, where it is writable. Version 2: a group that
was given to us (systemd's `Delegate=` with `DelegateSubgroup=`, or the top group of a container that may write it),
since in version 2 processes and further groups cannot be in one group. What belongs to the host's own manager is left
alone.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.shim import cgroup, syscalls

logger = logging.getLogger(__name__)

#: what the group of a run is named, before RUN.CLAIM
_PREFIX = "flowfleet-"
#: the group into which a worker moves that is alone in the top group of its container
_OWN = "flowfleet"
#: enters a group in a process of its own: whether that is allowed is found out by doing it
_TRIAL = 'echo 0 > "$0/tasks" 2>/dev/null || echo 0 > "$0/cgroup.procs"'
_TRIAL_SECONDS = 10.0
#: how often a trial group is made: another worker that starts may take an empty one away
_TRIALS = 5
#: by which a controller is known to be there: what tells of kills for memory, and what limits processors
_FILES = {"memory": ("memory.oom_control", "memory.events"), "cpu": ("cpu.cfs_quota_us", "cpu.max")}


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mounted hierarchy of cgroups that has a controller, or could have it."""

    #: where it is mounted, and which group of the hierarchy is seen there
    point: Path
    root: str
    unified: bool

    def own_group(self, path: str) -> Path:
        """The folder of the group that the kernel names by this path."""
        below = path.removeprefix(self.root.rstrip("/")) if path.startswith(self.root) else path
        folder = self.point / below.lstrip("/")
        # a container without a namespace of cgroups: the path is the host's, and what is mounted is our group
        return folder if folder.is_dir() else self.point


def find_parent(root: Path = Path("/"), *, controller: str = "memory") -> Path | None:
    """The folder in which groups of runs with this controller can be made; None where there is none."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_mounts(root, controller))
    except OSError:
        return None  # not Linux, or no /proc
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        for mount in mounts:
            if mount.unified and controllers == "":
                parent = _delegated(mount.own_group(path), controller, top=path == "/")
            elif not mount.unified and controller in controllers.split(","):
                parent = mount.own_group(path)
            else:
                continue
            if parent is not None and _usable(parent, _FILES[controller]):
                return parent
    return None


def group_of(parent: Path, run_folder: Path) -> Path:
    """The group of the run with this folder; a hook's folder is below that of its run, and has a group of its own."""
    name = run_folder.name if "." in run_folder.name else f"{run_folder.parent.name}.{run_folder.name}"
    return parent / f"{_PREFIX}{name}"


def sweep(parent: Path) -> int:
    """Remove the empty groups that dead runs have left; returns how many there were."""
    # a run that is just about to enter its own makes it once more
    return sum(cgroup.remove(str(path)) for path in parent.glob(f"{_PREFIX}*"))


def _mounts(root: Path, controller: str) -> Iterator[Mount]:
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        name, _, options = kind.split(" ", 2)
        within, point = fields.split(" ")[3:5]
        if name == "cgroup2" or (name == "cgroup" and controller in options.split(" ")[-1].split(",")):
            yield Mount(point=root / point.lstrip("/"), root=within, unified=name == "cgroup2")


def _delegated(own: Path, controller: str, *, top: bool) -> Path | None:
    """The group of version 2 that was given to us, with this controller switched on for the groups in it."""
    if top:
        # the real top group has no type, and is the host's; in a container it may be ours alone
        parent = own if (own / "cgroup.type").exists() and _move_into(own / _OWN, own) else None
    else:
        parent = own.parent if _is_delegated(own.parent) else None
    if parent is None:
        return None
    try:
        if controller not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return None
    return parent


def _is_delegated(group: Path) -> bool:
    # systemd marks what it has given away
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(group, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _move_into(group: Path, own: Path) -> bool:
    """Move this process and its parents out of the top group; not where others are in it, which are not ours."""
    inside, line = set(cgroup.members(str(own))), _line_of_parents()
    if not inside <= line:
        return False
    try:
        group.mkdir(exist_ok=True)
        for pid in inside:
            (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def _line_of_parents() -> set[int]:
    pid, line = os.getpid(), set()
    while pid > 0 and pid not in line:
        line.add(pid)
        pid = int((syscalls.stat_fields(pid) or ("", 0))[1])
    return line


def _usable(parent: Path, files: tuple[str, ...]) -> bool:
    """Whether a group can be made here and entered, and has one of these files."""
    trial = parent / f"{_PREFIX}trial-{os.getpid()}"
    for _ in range(_TRIALS):
        usable, swept = _tried(trial, files)
        if usable or not swept:
            return usable
    return False


def _tried(trial: Path, files: tuple[str, ...]) -> tuple[bool, bool]:
    """Whether this group could be made and entered, and whether it was swept away meanwhile by another worker."""
    try:
        trial.mkdir()
    except OSError:
        return False, False
    try:
        tells = any((trial / name).exists() for name in files)
        command = ["/bin/sh", "-c", _TRIAL, str(trial)]
        done = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=_TRIAL_SECONDS, check=False)
        return tells and done.returncode == 0, not trial.is_dir()
    except (OSError, subprocess.TimeoutExpired) as exc:
        logger.info("no control group can be made for runs", extra={"folder": str(trial.parent), "error": str(exc)})
        return False, False
    finally:
        cgroup.remove(str(trial))
