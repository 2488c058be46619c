"""Example: a flow that takes a while, step by step; kill its worker and see it go on."""

import time

from prefect import flow, task


@task
def step(number: int, seconds: float) -> int:
    """One step of the work."""
    time.sleep(seconds)
    return number


@flow(log_prints=True)
def longer(steps: int = 8, seconds: float = 1.5) -> int:
    """Do the steps one after the other."""
    done = 0
    for number in range(1, steps + 1):
        done = step(number, seconds)
        print(f"step {done} of {steps} is done")
    return done
