"""Example: a flow whose process is killed in the middle, as by a kernel that is out of memory.

It cannot report its own end any more: the worker sees it and says Crashed.
"""

import os
import signal
import time

from prefect import flow


@flow(log_prints=True)
def killed() -> None:
    """Work a little, then be killed."""
    print("working, unaware of what is to come")
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
