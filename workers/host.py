"""Host: which machine, boot and pid namespace this is."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


@dataclass(frozen=True, kw_only=True)
class Host:
    """Facts that decide whether a pid on disk can still mean the process that it meant."""

    name: str
    machine_id: str
    boot_id: str
    pid_ns: int | None

    @classmethod
    def probe(cls, environ: Mapping[str, str]) -> Host:
        """Read them; tests set FLOWFLEET_MACHINE_ID and FLOWFLEET_BOOT_ID, since namespaces share the real ones."""
        return cls(
            name=socket.gethostname(),
            machine_id=environ.get("FLOWFLEET_MACHINE_ID") or _machine_id(),
            boot_id=environ.get("FLOWFLEET_BOOT_ID") or _boot_id(),
            pid_ns=_pid_ns(),
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
