"""Signal pipe: every signal to a shim as a byte in a pipe, which its loop reads.

Standard library only: part of the shim.
"""

from __future__ import annotations

import os
import signal

#: signals that would end the shim; a worker never sends them
_STRAY = ("SIGQUIT", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGPOLL", "SIGPWR", "SIGSTKFLT")


def catch_signals() -> int:
    """Catch all signals that a worker sends or that would end this process; returns the reading end of the pipe."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    strays = [getattr(signal, name) for name in _STRAY if hasattr(signal, name)]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, *strays):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return reader
