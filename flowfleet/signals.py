"""Hangup: SIGHUP makes a poller or worker read its secrets again instead of ending it.

A refused key is looked for again without any signal too, every few seconds, so that a replaced file is enough. The
others are read whenever they are needed (`secret_files.py`); here the signal only makes that known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


class SecretHolder(Protocol):
    """Who holds secrets that can be looked for again: the API's client, and the files of the others."""

    @property
    def key_refused(self) -> bool:
        """Whether the last answer refused them."""

    def renew(self) -> bool:
        """Look for them again; True when they are others now."""


class ReloadOnHangup:
    """Takes the signal from the first moment on, and acts on it once there is something to act on."""

    def __init__(self, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        #: set whenever the credentials have changed, for those who wait for that
        self.changed = threading.Event()
        #: called when something else may be asked with
        self.then: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Take SIGHUP; a handler may take no lock, so it leaves one byte for the thread."""
        signal.signal(signal.SIGHUP, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of signals that nobody has seen to yet
            os.write(self._writer, b"!")

    def serve(self, *keyholders: SecretHolder) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, args=keyholders, name="hangup", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the credentials have changed."""
        self.changed.wait(seconds)
        self.changed.clear()

    def _run(self, *keyholders: SecretHolder) -> None:
        while True:
            try:
                self.look(*keyholders)
            except Exception:  # the next signal must find this thread alive
                logger.exception("secrets could not be read again")

    def look(self, *keyholders: SecretHolder) -> None:
        """Wait for a signal, or for the next time to look after a refused key."""
        rung = bool(select.select([self._reader], [], [], self._look_seconds)[0])
        if rung:
            os.read(self._reader, 4096)
            logger.info("hangup: secrets are read again")
        if not rung and not any(keyholder.key_refused for keyholder in keyholders):
            return
        renewed = [keyholder.renew() for keyholder in keyholders]  # of all, whatever the first says
        if rung or any(renewed):
            self.changed.set()
            self.then()
