"""Stopping: the steps by which a shim ends its run once the worker has asked for it.

    tell        the engine hears over its control session that its run is being cancelled, and answers within a second
    patience    a command that cancels itself has its time; a TERM would make it lose that
    grace       every process of the run has got TERM
    kill        every process of the run gets KILL, again and again until the command is gone

A polite stop goes through the steps that stop.json asks for, grace and kill always; nothing leads back. The engine's
answer is waited for only where an engine is connected: one that still loads, or another version, gets its TERM at once.

Standard library only: part of the shim.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable
    from typing import Any

    from . import control_session, process_tree

#: how long an engine has for its answer; one of prefect 3.9.1 takes some milliseconds
ANSWER_SECONDS = 1.0
#: what is forked while a tree is being killed is killed with the next look
_AGAIN_SECONDS = 0.2


class Stopping:
    """Where the stop of one run is, and what comes next."""

    def __init__(
        self,
        tree: process_tree.ProcessTree,
        session: control_session.ControlSession | None,
        grace: float,
        hit: Callable[[str], None],
    ) -> None:
        self._hit = hit
        self._tree = tree
        self._session = session
        self._grace = grace
        self._step = ""
        self._patience = 0.0
        #: the strongest signal that was sent: None, "term" or "kill"
        self.by: str | None = None
        #: what stop.json said when the last signal came
        self.record: dict[str, Any] = {}
        #: when the next step is due, by the monotonic clock; None = there is none
        self.due: float | None = None

    def ask(self, record: dict[str, Any], now: float, *, kill: bool) -> None:
        """Begin to stop the run as stop.json asks for, or go on in a stronger way."""
        self.record = record
        if kill or record.get("kill"):
            self._kill(now)
            return
        patience = _seconds(record.get("patience"))
        if self._step == "patience":
            self.due = min(self.due or now, now + patience)  # the second who asks may have less of it
        elif self._step == "tell":
            self._patience = min(self._patience, patience)
        elif self._step == "grace":
            self.due = min(self.due or now, now + self._most_grace())
        elif not self._step:
            self._patience = patience
            if record.get("intent") and self._session is not None and self._session.tell_cancel():
                self._step, self.due = "tell", now + ANSWER_SECONDS
            else:
                self._be_patient(now)
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Do what is due."""
        if self._step == "tell" and self._session is not None and self._session.answered:
            self.due = now
        if self.due is None or now < self.due:
            return
        if self._step == "tell":
            self._be_patient(now)
        elif self._step == "patience":
            self._term(now)
        else:
            self._kill(now)

    def _be_patient(self, now: float) -> None:
        if self._patience > 0:
            self._step, self.due = "patience", now + self._patience
        else:
            self._term(now)

    def _term(self, now: float) -> None:
        self._step, self.due = "grace", now + min(self._grace, self._most_grace())
        self.by = "term"
        self._tree.signal_all(signal.SIGTERM)
        if self.record.get("reason") == "cancelled":
            self._hit("cancel.after_term")

    def _most_grace(self) -> float:
        return _seconds(self.record.get("most_grace")) or float("inf")

    def _kill(self, now: float) -> None:
        self._step, self.due = "kill", now + _AGAIN_SECONDS
        self.by = "kill"
        self._tree.kill_all()


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0
