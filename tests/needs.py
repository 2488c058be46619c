"""Needs: what a test asks of the machine; missing is a loud skip on a laptop and a failure where CI=true."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from workers import host_cgroups


def missing(reason: str) -> NoReturn:
    """Skip with the reason, or fail with it in CI, where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have what this test needs: {reason}")
    pytest.skip(reason)


def need(there: bool, reason: str) -> None:
    """Go on only if it is there."""
    if not there:
        missing(reason)


@cache
def namespaces() -> str:
    """Why network and UTS namespaces cannot be made here; "" when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare"):
        if not shutil.which(program):
            return f"network namespaces need the program {program}"
    name = f"ffneed{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def python39() -> str:
    """A real CPython 3.9, the oldest Python that the shim must run in."""
    told = os.environ.get("FLOWFLEET_TEST_PYTHON39")
    found = Path(told) if told else Path(__file__).parents[1] / ".python39" / "python"
    need(found.exists(), f"a Python 3.9 at {found}: make it by `make python39`")
    return str(found)


def control_groups() -> Path:
    """Where each run gets a control group of its own.

    Not every machine has such a place, CI neither: a test fails for the lack of one only where root sees the
    controller `memory` mounted for writing, so that there must be one.
    """
    groups = host_cgroups.find_parent()
    if groups is not None:
        return groups
    mounts = Path("/proc/self/mountinfo").read_text().splitlines() if Path("/proc/self/mountinfo").exists() else []
    writable = [line for line in mounts if " - cgroup " in line and "memory" in line.split(" - ")[1] and " rw," in line]
    if writable and os.geteuid() == 0:
        missing(f"a control group for each run, though this is mounted: {writable[0]}")
    pytest.skip(
        "NO CONTROL GROUP CAN BE MADE HERE: the verdict about memory is not tested (root, and cgroups writable)"
    )
