"""Failpoints: named places in the way of a run where a test can make a process die, freeze or fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowfleet.errors import SettingsError

#: the names of all failpoints: the step of docs/design.md, The way of a run, and the moment in it
NAMES = frozenset(
    {
        "claim.after_ledger",
        "claim.after_api",
        "claim.after_accept",
        "claim.after_publish",
        "return.after_ledger",
        "return.after_api",
        "take.on_arrival",
        "take.after_folder",
        "take.after_move",
        "start.after_move",
        "start.before_fork",
        "start.after_fork",
        "start.after_running",
        "container.after_create",
        "container.after_start_file",
        "container.after_start",
        "container.after_exit_record",
        "end.before_record",
        "end.after_record",
        "end.before_report",
        "end.after_report",
        "report.between",
        "gate.before_open",
        "leave.after_ledger",
        "leave.before_resign",
        "cancel.found",
        "cancel.after_field",
        "cancel.after_stop_file",
        "cancel.after_ack",
        "cancel.after_term",
        "cancel.before_report",
        "hooks.after_start",
        "hooks.before_report",
        "lost.after_miss",
        "lost.after_judge",
        "lost.after_api",
        "lost.after_bury",
        # in the shim above a run, which has them in its request (workers/shim/failpoint.py)
        "shim.after_start_file",
        "shim.after_exec",
        "shim.before_exit_record",
        "shim.after_receipt",
        "shim.before_ack",
    }
)
#: what the shim does of a cancel is its own too
OF_SHIMS = frozenset({name for name in NAMES if name.startswith("shim.")} | {"cancel.after_ack", "cancel.after_term"})
ACTIONS = ("kill", "freeze", "raise")


class FailpointRaised(Exception):
    """Raised on purpose by a failpoint set to `raise`: a fault of ours, and so none of the errors that parts expect."""


@dataclass(frozen=True)
class Failpoints:
    """The failpoints that are set: `FLOWFLEET_FAILPOINT=name:kill|freeze|raise`, several by commas.

    With `FLOWFLEET_FAILPOINT_FOLDER` each of them fires once in all processes that share the folder, where its name
    then stands as a file with the pid of the process that it met.
    """

    actions: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Failpoints:
        """Read the two variables; raises `SettingsError` for an unknown name or action."""
        actions: dict[str, str] = {}
        for item in filter(None, environ.get("FLOWFLEET_FAILPOINT", "").split(",")):
            name, _, action = item.strip().partition(":")
            if name not in NAMES or action not in ACTIONS:
                raise SettingsError(f"FLOWFLEET_FAILPOINT={item!r}: use NAME:kill, NAME:freeze or NAME:raise")
            actions[name] = action
        folder = environ.get("FLOWFLEET_FAILPOINT_FOLDER")
        return cls(actions, Path(folder) if folder else None)

    def hit(self, name: str) -> None:
        """Die, freeze or raise if this failpoint is set; as a rule none is, and nothing happens."""
        action = self.actions.get(name)
        if action is None or not self._fires(name):
            return
        if action == "kill":
            signal.raise_signal(signal.SIGKILL)
        elif action == "freeze":
            # to this thread, which stops right here: sent to the process, another thread takes it and this one goes on
            signal.raise_signal(signal.SIGSTOP)
        elif action == "raise":
            raise FailpointRaised(f"failpoint {name}")

    def _fires(self, name: str) -> bool:
        if self.folder is None:
            return True
        try:
            with (self.folder / name).open("x", encoding="ascii") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True

    def of_shims(self) -> dict[str, Any]:
        """Those that the shims of this worker hit, as they stand in the request for a run; empty without any."""
        actions = {name: action for name, action in self.actions.items() if name in OF_SHIMS}
        return {"actions": actions, "folder": str(self.folder) if self.folder else None} if actions else {}
