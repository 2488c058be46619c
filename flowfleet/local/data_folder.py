"""Data folder: where `flowfleet up` or an agent keeps what outlives it; only one at a time holds its lock."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from flowfleet.errors import SettingsError

#: below all that systems hand out by themselves (Linux from 32,768 on, macOS from 49,152 on): such a port may become
#: another program's between the choice and the part that listens there, which takes half a minute for a server
PORTS = range(20_000, 30_000)
_TRIES = 100
_OTHER_FOLDER = "stop it, or name another folder with --data-dir"


class DataFolder:
    """The data folder with its lock held; `close` releases the lock."""

    def __init__(self, path: Path, lock: TextIO) -> None:
        self.path = path
        self._lock = lock
        self.logs = path / "logs"
        #: pid notes of parts, for an `up` that comes after one that was killed
        self.notes = path / "parts"
        #: temporary files of the parts; the folder is empty when no part runs
        self.scratch = path / "tmp"
        self.state_file = path / "up.json"
        self._ports = path / "ports.json"

    @classmethod
    def open(cls, path: Path, *, owner_is: str = "flowfleet up", remedy: str = _OTHER_FOLDER) -> DataFolder:
        """Make and lock the folder; raises `SettingsError` with the remedy. `owner_is` says who may hold the lock."""
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (path / "up.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise SettingsError(
                f"The data folder {path} cannot be written ({error.strerror}): name another with --data-dir."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise SettingsError(f"Another {owner_is} (pid {owner}) works in {path}: {remedy}.") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        folder = cls(path, lock)
        # an `up` that was killed has left both: whoever waits for the file must not read of dead processes
        folder.state_file.unlink(missing_ok=True)
        shutil.rmtree(folder.scratch, ignore_errors=True)
        for child in (folder.logs, folder.notes, folder.scratch):
            child.mkdir(exist_ok=True, mode=0o700)
        return folder

    def close(self) -> None:
        """Remove what belongs only to a running `up`, and release the lock."""
        self.state_file.unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.truncate(0)
        self._lock.close()

    def note(self, name: str) -> Path:
        """The path of a part's pid note."""
        return self.notes / f"{name}.json"

    def words(self, name: str) -> Path:
        """The path of the sentence that a part has ended with."""
        return self.notes / f"{name}.words"

    def log(self, name: str) -> Path:
        """The path of a part's log."""
        return self.logs / f"{name}.log"

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Write `up.json` in one step: whoever reads it sees all of it or nothing."""
        half = self.state_file.with_suffix(".json.new")
        half.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        half.replace(self.state_file)

    def port(self, name: str, *, probe: bool = True) -> int:
        """The port that this part had the last time, if it is free, else a free one; so that bookmarks stay good.

        With `probe` False the last port is taken without a look at whether it is free.
        """
        known = self._known_ports()
        last = self.last_port(name)
        if last is not None and (not probe or is_free(last)):
            return last
        found = free_port()
        self._ports.write_text(json.dumps(known | {name: found}), encoding="utf-8")
        return found

    def last_port(self, name: str) -> int | None:
        """The port that this part had the last time; None when it had none."""
        return self._known_ports().get(name)

    def _known_ports(self) -> dict[str, int]:
        try:
            ports = json.loads(self._ports.read_text(encoding="utf-8"))
            return {str(name): int(port) for name, port in ports.items()}
        except (OSError, ValueError, AttributeError):
            return {}


def default_path(environ: Mapping[str, str]) -> Path:
    """The data folder where none is given: `$XDG_DATA_HOME/flowfleet`, else below `~/.local/share`."""
    home = environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path(environ.get("HOME") or Path.home()) / ".local" / "share") / "flowfleet"


def is_free(port: int) -> bool:
    """True when nobody listens on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nobody listens on now: one of `PORTS`, and where those are in use any other."""
    chance = random.SystemRandom()
    for port in chance.sample(PORTS, _TRIES):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
