"""Failpoints: named places in the way of a run where a test can make a process die, freeze or fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from flowfleet.errors import FleetError, SettingsError

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
        "end.before_record",
        "end.after_record",
        "end.before_report",
        "end.after_report",
        "gate.before_open",
        "leave.after_ledger",
        "leave.before_resign",
    }
)
ACTIONS = ("kill", "freeze", "raise")


class FailpointRaised(FleetError):
    """Raised on purpose by a failpoint set to `raise`."""


@dataclass(frozen=True)
class Failpoints:
    """The failpoints that are set: `FLOWFLEET_FAILPOINT=name:kill|freeze|raise`, several by commas."""

    actions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Failpoints:
        """Read `FLOWFLEET_FAILPOINT`; raises `SettingsError` for an unknown name or action."""
        actions: dict[str, str] = {}
        for item in filter(None, environ.get("FLOWFLEET_FAILPOINT", "").split(",")):
            name, _, action = item.strip().partition(":")
            if name not in NAMES or action not in ACTIONS:
                raise SettingsError(f"FLOWFLEET_FAILPOINT={item!r}: use NAME:kill, NAME:freeze or NAME:raise")
            actions[name] = action
        return cls(actions)

    def hit(self, name: str) -> None:
        """Die, freeze or raise if this failpoint is set; as a rule none is, and nothing happens."""
        action = self.actions.get(name)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "raise":
            raise FailpointRaised(f"failpoint {name}")
