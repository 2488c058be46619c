"""Makes the file `begun`, then waits until the file `until` is there (two minutes at most)."""

import time
from pathlib import Path

from prefect import Flow, Parameter, task


@task
def wait(begun, until):
    Path(begun).touch()
    deadline = time.monotonic() + 120
    while not Path(until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(until)
        time.sleep(0.05)


with Flow("waiting") as flow:
    wait(Parameter("begun"), Parameter("until"))
