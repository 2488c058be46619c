"""Signals: how a process takes them; SIGHUP makes a poller or worker read its secrets again instead of ending it.

A refused key is looked for again without any signal too, every few seconds, so that a replaced file is enough. The
other secrets are read whenever they are needed (`settings/secret_files.py`); for them the signal only means that a
change is found and logged at once.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from flowfleet.guard import guarded
from flowfleet.wakeup import Wakeup

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


def take(*numbers: int, handler: Callable[[int], None], respect_ignored: bool) -> None:
    """Call `handler` with the number of each of these signals that comes; it may take no lock.

    With `respect_ignored` an ignored signal stays so: a shell starts a job in the background with SIGINT ignored.
    """
    for number in numbers:
        if not (respect_ignored and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, lambda number, _frame: handler(number))


@contextlib.contextmanager
def restored(*numbers: int) -> Iterator[None]:
    """What these signals did before is what they do again after the block."""
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


class SecretHolder(Protocol):
    """A holder of secrets that can be looked for again: the connector of the API, and `SecretFiles` for the others."""

    @property
    def key_refused(self) -> bool:
        """Whether the last answer refused the secrets."""

    def renew(self) -> bool:
        """Look for the secrets again; True when they have changed."""


class ReloadOnSighup:
    """Handler of SIGHUP: it takes the signal from the first moment on, and acts on it once `serve` is called."""

    def __init__(self, then: Callable[[], None], *, look_seconds: float = LOOK_SECONDS) -> None:
        """`then` is called after a reload, when other credentials may be in use."""
        self._then = then
        self._look_seconds = look_seconds
        self._signalled = Wakeup()
        #: set after each signal and whenever the credentials have changed, for callers of `wait`
        self.changed = threading.Event()

    def install(self) -> None:
        """Take SIGHUP."""
        take(signal.SIGHUP, handler=lambda _number: self._signalled.wake(), respect_ignored=False)

    def serve(self, *holders: SecretHolder) -> None:
        """Start the thread that lets these holders look for their secrets again."""
        threading.Thread(target=self._run, args=holders, name="sighup", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the credentials have changed."""
        self.changed.wait(seconds)
        self.changed.clear()

    def _run(self, *holders: SecretHolder) -> None:
        while True:
            with guarded(logger, "secrets could not be read again"):  # the next signal must find this thread alive
                self.look(*holders)

    def look(self, *holders: SecretHolder) -> None:
        """Wait for a signal, or for the next time to look after a refused key; then renew secrets if there is cause."""
        signalled = self._signalled.wait(self._look_seconds)
        if signalled:
            self._signalled.clear()
            logger.info("SIGHUP: secrets are read again")
        if not signalled and not any(holder.key_refused for holder in holders):
            return
        renewed = [holder.renew() for holder in holders]  # of all, whatever the first answers
        if signalled or any(renewed):
            self.changed.set()
            self._then()
