"""Safe stream: the output of `up` for people, until its pipe or terminal is gone."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, TextIO

_STDERR = 2


class SafeStream:
    """A text stream that falls silent, instead of raising, once nobody reads it: the parts must end in order then.

    rich itself ends the program at a closed pipe, and a closed terminal is an error at each further word.
    """

    def __init__(self, stream: TextIO, gone: Callable[[], None]) -> None:
        self._stream = stream
        self._gone = gone

    def write(self, text: str) -> int:
        """Write the text; dropped when the stream is gone."""
        try:
            return self._stream.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        """Flush the stream; does nothing when the stream is gone."""
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self._gone()
        # what is still buffered goes to /dev/null too: else the interpreter would fail once more at its last flush
        with contextlib.suppress(OSError):
            ours = self._stream.fileno()
            dead = os.fstat(ours)
            null = os.open(os.devnull, os.O_WRONLY)
            for number in {ours, _STDERR}:
                if os.path.samestat(os.fstat(number), dead):
                    os.dup2(null, number)
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        """Every other attribute is the stream's own, such as `isatty` and `encoding`."""
        return getattr(self._stream, name)
