"""Keyboard: the keys that somebody presses in a terminal, one by one and without Enter."""

import codecs
import os
import re
import termios
import tty
from types import TracebackType
from typing import Any, Self

#: what a terminal sends for a key that is no letter; both forms of the arrows are in use
_SEQUENCES = {
    "A": "up",
    "B": "down",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
    "5~": "page-up",
    "6~": "page-down",
    "7~": "home",
    "8~": "end",
}
_CONTROLS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x1b": "escape", "\x15": "clear"}
_ONE_KEY = re.compile(r"\x1b[\[O]([0-9;]*[A-Za-z~])|(.)", re.DOTALL)
_READ_BYTES = 1024


def keys(text: str) -> list[str]:
    """The keys by which this text was typed: letters as they are, others by name, and none that nobody needs."""
    found = []
    for sequence, letter in _ONE_KEY.findall(text):
        key = _SEQUENCES.get(sequence) if sequence else _CONTROLS.get(letter, letter if letter.isprintable() else None)
        if key:
            found.append(key)
    return found


class Keyboard:
    """The keys of a terminal, as a context: its settings are put back at the end. Ctrl-C stays a signal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor, termios.TCSANOW)
        settings = termios.tcgetattr(self._descriptor)
        # Ctrl-Z would leave the shell in a screen that is not its own
        settings[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._descriptor, termios.TCSANOW, settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def fileno(self) -> int:
        """The descriptor that turns readable when a key is pressed."""
        return self._descriptor

    def read(self) -> list[str] | None:
        """The keys that were pressed, once the descriptor is readable; None when the terminal is gone."""
        data = os.read(self._descriptor, _READ_BYTES)
        return keys(self._decoder.decode(data)) if data else None
