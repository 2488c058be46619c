"""Host: which machine, boot and pid namespace this is, and what works on it."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from workers import host_cgroups
from workers.shim import syscalls

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
#: the process namespace that Linux begins with; its number is fixed in the kernel
HOST_PID_NAMESPACE = "pid:[4026531836]"
#: names of the first process of a whole system
INITS = ("systemd", "init")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The facts that decide whether a pid on disk can still mean the process that it meant."""

    name: str
    machine_id: str
    boot_id: str
    #: the inode of the pid namespace; None where /proc does not tell
    pid_ns: int | None
    #: no other machine has this machine id: that of a container may be its image's, and the same on each machine
    unique: bool = True

    @property
    def fingerprint(self) -> str:
        """What tells this machine from others in the roster: its id itself is nobody else's business.

        Empty where the id is not sure to be this machine's alone: two boot ids would prove no restart then.
        """
        return "" if not self.unique else hashlib.sha256(self.machine_id.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """What tells this host from others that use the same container engine; its name counts where the id may not."""
        return self.fingerprint or hashlib.sha256(f"{self.machine_id} {self.name}".encode()).hexdigest()[:16]

    @classmethod
    def probe(cls, environ: Mapping[str, str]) -> Host:
        """Read the facts; tests set FLOWFLEET_MACHINE_ID and FLOWFLEET_BOOT_ID, as namespaces share the real ones."""
        named, pid_ns = environ.get("FLOWFLEET_MACHINE_ID"), _pid_ns()
        return cls(
            name=socket.gethostname(),
            machine_id=named or _machine_id(),
            boot_id=environ.get("FLOWFLEET_BOOT_ID") or _boot_id(),
            pid_ns=pid_ns,
            unique=bool(named) or pid_ns is None or f"pid:[{pid_ns}]" == HOST_PID_NAMESPACE,
        )


def _machine_id() -> str:
    for path in _MACHINE_ID_FILES:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text:
            return text
    # macOS and images without the file: derived from the hardware address, the same at each start
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{uuid.getnode():x}.{socket.gethostname()}").hex


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # to the minute, since it is derived from the date, which may be corrected by seconds
        return f"boot-{round(psutil.boot_time() / 60)}"


def _pid_ns() -> int | None:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What this host can do: an ability is True only where it works. Without any, a worker runs in plain mode."""

    #: /proc tells start times, parents and environments
    proc: bool
    #: processes are watched and signalled by descriptor: an end is seen at once, a reused pid is never met
    pidfd: bool
    #: orphans of a run, daemons too, come back to its shim
    subreaper: bool
    #: the head of a log can be given back to the disk while the run writes on
    holes: bool
    #: the exit of a process that is not our child can still be asked for
    pidfd_info: bool
    #: the folder in which each run gets a control group of its own; "" = there is none
    groups: str = ""
    #: the same for groups that can limit processors; often the same folder, and one of its own in version 1 of cgroups
    cpu_groups: str = ""

    @classmethod
    def probe(cls, environ: Mapping[str, str]) -> Abilities:
        """Find out what works here; `FLOWFLEET_PLAIN=1` switches every ability off."""
        if environ.get("FLOWFLEET_PLAIN") == "1":
            return cls.plain()
        proc = _proc_is_ours() and syscalls.start_ticks(os.getpid()) is not None
        pidfd, pidfd_info = _probe_pidfd()
        return cls(
            proc=proc,
            pidfd=pidfd and proc,
            subreaper=syscalls.LINUX and proc,
            holes=syscalls.LINUX,
            pidfd_info=pidfd_info,
            groups=str((host_cgroups.find_parent() if proc else None) or ""),
            cpu_groups=str((host_cgroups.find_parent(controller="cpu") if proc else None) or ""),
        )

    @classmethod
    def plain(cls) -> Abilities:
        """No ability beyond POSIX: everything is polled, and some promises fall away (`missing` names them)."""
        return cls(proc=False, pidfd=False, subreaper=False, holes=False, pidfd_info=False)

    def missing(self) -> list[str]:
        """The promises that fall away here, one sentence each, for the worker to log at start."""
        sentences = []
        if not self.pidfd:
            sentences.append("The end of a run is seen within a second, not at once.")
        if not self.subreaper:
            sentences.append("A daemon that a run leaves behind is only found by its environment.")
        if not self.holes:
            sentences.append("Lines can be lost when the output of a run is cut to its cap.")
        return sentences


def _proc_is_ours() -> bool:
    # in a new process namespace /proc may still be that of the old one, where each pid means another process
    try:
        return str(Path("/proc/self").readlink()) == str(os.getpid())
    except OSError:
        return False


def _probe_pidfd() -> tuple[bool, bool]:
    # old kernels lack the calls, and seccomp profiles of old container engines refuse them
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False, False
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError:
        return False, False
    try:
        signal.pidfd_send_signal(fd, 0)  # signal 0 only asks whether signalling works
        return True, syscalls.pidfd_info_works(fd)
    except OSError:
        return False, False
    finally:
        os.close(fd)
