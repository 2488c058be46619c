"""Oldest: cancels, hooks and ends of flows whose environment has the oldest Prefect 3 that flowfleet asks for.

    make oldest

Poller, worker and server are those of this environment; only the interpreter of the flows is older. Its engine has no
control session, so it is not told of a cancel before its TERM, and gives no receipt of its end.
"""

import sys

from tests.newest import run_all, versions
from tests.world import flows_prefect

SESSIONS = {
    "cancels and hooks": ("tests/acceptance/test_cancels.py",),
    # what a host lacks in plain mode is the shim's, whatever the engine
    "ends": ("tests/acceptance/test_ends.py", "-k", "not plain"),
    # a TERM ends an engine of 3.4.0 before it writes anything: the end is told by us
    "a worker that dies, and its next one": ("tests/acceptance/test_adoption.py", "-k", "not end_of_its_own_at_a_stop"),
}


if __name__ == "__main__":
    sys.exit(run_all(SESSIONS, {**versions(), "flows' prefect": flows_prefect()}, sys.argv[1:]))
