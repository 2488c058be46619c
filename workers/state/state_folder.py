"""State folder: a worker's folder on disk, locked for its life, and where such folders lie."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowfleet.errors import FleetError
from flowfleet.monitor.run_output import state_home
from flowfleet.settings.classes import WorkerSettings
from workers.shim import atomic_files
from workers.state.run_folders import VERSION, OutboxFolder, RunFolders


class StateLocked(FleetError):
    """Another worker holds this state folder."""


class StateFolder:
    """A worker's folder on disk, locked for the worker's life."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.runs = RunFolders(path / "runs")
        self.outbox = OutboxFolder(path / "outbox")
        #: {"boot_id", "nonce", …} of the worker that held this folder last, or None
        self.last = atomic_files.read_json(path / "worker.json")

    @classmethod
    def open(cls, root: Path, machine_id: str, name: str) -> StateFolder:
        """Open ROOT/MACHINE-ID/NAME; raises `StateLocked` when another worker lives in it."""
        return cls.open_path(root / machine_id / name)

    @classmethod
    def open_path(cls, path: Path) -> StateFolder:
        """Open the state folder at this path, perhaps another worker's; raises `StateLocked` if its lock is held."""
        for folder in (path, path / "runs", path / "outbox"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(lock)
            raise StateLocked(
                f"Another worker named {path.name} is running on this host with the state folder {path}. "
                f"Give this one another --name or stop the other."
            ) from exc
        return cls(path, lock)

    def boot_changed(self, boot_id: str) -> bool:
        """True when the folder was last used under another boot id: the host restarted, or the disk is a copy."""
        return self.last is not None and self.last.get("boot_id") != boot_id

    def remember(self, *, boot_id: str, nonce: str, **facts: Any) -> None:
        """Write down who holds the folder now, with fleet and API, so that siblings know what they take over."""
        record = {"v": VERSION, "boot_id": boot_id, "nonce": nonce, **facts}
        atomic_files.write_json(self.path / "worker.json", record)
        self.last = record

    def siblings(self) -> list[Path]:
        """The state folders of other names on this machine; their locks may be held or free."""
        return [path for path in sorted(self.path.parent.iterdir()) if path != self.path and (path / "lock").exists()]

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self._lock)


def state_root(settings: WorkerSettings, environ: Mapping[str, str]) -> Path:
    """Where state folders of this user lie: `--state-dir`, else below XDG_STATE_HOME."""
    # absolute: shims have another working folder
    return (settings.state_dir or state_home(environ)).absolute()
