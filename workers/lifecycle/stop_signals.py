"""Stop signals: what SIGTERM and SIGINT do to a worker.

A signal handler may take no lock and may not wait, so it does two things that need neither: it sets flags (one of them
for Celery's loop), and wakes the loop, the watchdog thread, and launches that wait for a neighbour.
"""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flowfleet.signals import take
from flowfleet.wakeup import Wakeup
from workers.lifecycle.consumer import Slots
from workers.state.attempts import Attempts

#: seconds after which the watchdog ends an orderly stop that hangs (a lost network, a stuck task); the disk has all
#: that a kill -9 needs
WATCHDOG_SECONDS = 5.0


def leave_at_once(leave: Callable[[int], Any] = os._exit) -> None:
    """Let SIGTERM and SIGINT end a worker that has begun nothing yet; `StopSignals.install` replaces these handlers."""
    take(signal.SIGTERM, signal.SIGINT, handler=lambda _number: leave(0), respect_ignored=True)


@dataclass
class StopSignals:
    """The handlers of SIGTERM and SIGINT in one worker. `leave` ends the process at once; tests pass another."""

    slots: Slots
    attempts: Attempts
    leave: Callable[[int], Any] = os._exit
    #: whether the watchdog guards the stop: False where a stop waits for its runs or ends them, which may take long
    #: and has a limit of its own
    guarded: bool = True
    #: the number of the first signal that asked for the stop; None = nobody has
    first_signal: int | None = None
    _asked: Wakeup = field(default_factory=Wakeup)
    _done: threading.Event = field(default_factory=threading.Event)

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on; an ignored SIGINT (a shell's background job) stays ignored."""
        take(signal.SIGTERM, handler=self.request, respect_ignored=False)
        take(signal.SIGINT, handler=self.request, respect_ignored=True)
        self.watch()

    def watch(self) -> None:
        """Start the watchdog thread, for a stop that leaves its runs; the thread sleeps until a stop is asked for."""
        if self.guarded:
            threading.Thread(target=self._watch, name="stop-watch", daemon=True).start()

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask for the stop, as a signal or a drained worker does; a second request ends the process at once."""
        if self.first_signal is not None:
            # nothing on disk needs us
            self.leave(128 + number)
            return
        self.first_signal = number
        self.end()

    def end(self) -> None:
        """Ask for a stop that leaves the runs as they are, in each mode: nobody has asked for the end of any."""
        self.slots.stop()
        self.attempts.close()
        self._asked.wake()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until a stop is asked for; whether it is."""
        return self._asked.wait(seconds)

    def finished(self) -> None:
        """Tell the watchdog that the orderly stop has finished."""
        self._done.set()

    def _watch(self) -> None:
        self._asked.wait()
        if not self._done.wait(WATCHDOG_SECONDS):
            self.leave(0)
