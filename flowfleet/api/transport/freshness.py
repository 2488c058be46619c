"""Freshness: how old a state that was read may be when the write that follows from it is sent."""

import time

from flowfleet.errors import ApiUnavailable

#: a process may be frozen between reading and sending, and somebody else may have written meanwhile
FRESH_SECONDS = 5.0
#: an API that answers so slowly that nothing is ever fresh is written to all the same, after so many readings
READINGS = 3


def boot_clock() -> float:
    """Seconds of the clock that goes on while this process is frozen, and while its host sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ReadTooOld(ApiUnavailable):
    """A write that was not sent, since what it follows from was read too long ago: read again."""
