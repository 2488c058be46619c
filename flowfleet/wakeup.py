"""Wakeup: the one self-pipe, by which another thread or a signal handler wakes a thread that waits."""

import contextlib
import os
import select


class Wakeup:
    """A descriptor that turns readable when somebody wakes it, and stays readable until it is cleared; it has no lock.

    After `close` its numbers may be those of other files, so whoever closes it sees to it that nobody wakes it then.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """The descriptor that turns readable."""
        return self._reader

    def wake(self) -> None:
        """Wake whoever waits; safe in a signal handler."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wakes that nobody has cleared yet
            os.write(self._writer, b"!")

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a wake, at most for this time; whether one came. It is not cleared."""
        poll = select.poll()  # `select.select` takes no descriptor above 1023
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def clear(self) -> None:
        """Empty the pipe: every wake so far is answered."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)
