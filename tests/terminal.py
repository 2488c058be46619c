"""Terminal: a program in a pseudo-terminal, the keys that are pressed there, and what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading

from tests import processes
from tests.waiting import until
from tests.world import BIN


class Terminal:
    """A program in a terminal of its own; what it has written, and the page that it shows now."""

    def __init__(self, *argv: str, columns: int = 80, rows: int = 24, **variables: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(theirs)
        env = processes.environment("COLUMNS", "LINES") | {"TERM": "xterm-256color"} | variables
        self.process = subprocess.Popen(
            [BIN / argv[0], *argv[1:]], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        self._theirs, self._written = theirs, bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self.ours, 65536):
                self._written += data

    @property
    def text(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def page(self) -> str:
        """What is on the screen: each page is drawn from the upper left corner on."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.text.rpartition("\x1b[H")[2])

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def shows(self, words: str, seconds: float = 20) -> None:
        until(lambda: words in self.page, seconds, f"{words!r} on the page\n{self.page}")

    def as_before(self) -> bool:
        """Whether the terminal is as the program has found it."""
        left = self.text.endswith("\x1b[?1049l") or "\x1b[?1049l" in self.text[-200:]
        return termios.tcgetattr(self._theirs) == self.settings and left

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(5)
        os.close(self.ours)
