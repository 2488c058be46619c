"""Waiting: conditions with deadlines, scaled by the speed of the machine; no test sleeps and hopes."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: how much slower this machine is than the reference one (import of prefect over 1.5 s, at least 1)
SCALE = max(1.0, float(os.environ.get("FLOWFLEET_TEST_SCALE", "1.5")))


def until(condition: Callable[[], T], seconds: float, what: str, *, pause: float = 0.02) -> T:
    """Ask until the answer is true; fails after `seconds` x SCALE with what was waited for and the last answer."""
    deadline = time.monotonic() + seconds * SCALE
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds * SCALE:.0f} s for {what}; last answer: {answer!r}")
        time.sleep(pause)


def is_quick(attempt: Callable[[], float], seconds: float) -> bool:
    """Whether one of three attempts takes less: the machine may keep any one waiting, and what is slow is so each time.

    `attempt` returns the seconds that it took; the bound is not scaled here.
    """
    return any(attempt() < seconds for _ in range(3))


def stays(condition: Callable[[], object], seconds: float, what: str, *, pause: float = 0.1) -> None:
    """Watch for `seconds` (not scaled: a watch, no deadline) that it stays true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        assert answer, f"{what} did not hold: {answer!r}"
        time.sleep(pause)
