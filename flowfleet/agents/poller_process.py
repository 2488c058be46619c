"""Poller process: the poller of an agent, a child process that writes to the same terminal and ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from flowfleet.errors import SettingsError
from flowfleet.local.child import console_script, remember, remembered
from flowfleet.local.data_folder import DataFolder

#: a poller that has a claim in hand waits a minute for the API, and then gives up by itself
STOP_SECONDS = 70.0


class PollerProcess:
    """The started process of one poller."""

    def __init__(self, process: subprocess.Popen[bytes], note: Path) -> None:
        self._process = process
        self._note = note

    @classmethod
    def start(cls, name: str, env: Mapping[str, str], folder: DataFolder) -> Self:
        """Start `NAME start`; a process that a killed agent of this folder has left is ended first."""
        program = console_script(name)
        if program is None:
            raise SettingsError(f"The command {name} is not installed beside this Python: install flowfleet again.")
        note = folder.note(name)
        left = remembered(note)
        if left is not None:
            left.terminate()
            left.wait(STOP_SECONDS)
        # a session of its own: Ctrl-C in the terminal is for the agent alone, which knows the order to stop in
        process = subprocess.Popen([program, "start"], env=dict(env), stdin=subprocess.DEVNULL, start_new_session=True)
        remember(note, process.pid)
        return cls(process, note)

    @property
    def pid(self) -> int:
        """The poller's process id."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Send TERM, and KILL if that takes too long; returns when the process is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._note.unlink(missing_ok=True)

    def kill(self) -> None:
        """Send KILL at once, and wait up to 5 s for the end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
