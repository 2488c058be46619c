"""Flows of every kind; each is registered and stored by itself."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import prefect
from prefect import Flow, Parameter, task
from prefect.engine.results import LocalResult

RESULTS = str(Path(os.environ["HOME"]) / "results")


@task
def one():
    return 1


@task
def fails():
    raise RuntimeError("on purpose")


def fails_once():
    if prefect.context.task_run_count < 2:
        raise RuntimeError("the first time")


@task
def numbers():
    return [1, 2, 3]


@task
def double(number):
    return number * 2


@task
def total(doubled):
    if sum(doubled) != 12:
        raise ValueError(doubled)


@task(cache_for=timedelta(hours=1), cache_key="costly", result=LocalResult(dir=RESULTS))
def costly():
    return 42


@task
def after(number):
    if number != 42:
        raise ValueError(number)


@task
def add(first, second, out):
    Path(out).write_text(str(first + second))


@task
def write(out):
    seen = {"environ": dict(os.environ), "cwd": str(Path.cwd()), "argv": sys.argv, "path": sys.path, "pid": os.getpid()}
    Path(out).write_text(json.dumps(seen))


@task
def wait(begun, until):
    Path(begun).touch()
    deadline = time.monotonic() + 120
    while not Path(until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(until)
        time.sleep(0.05)


with Flow("plain") as plain:
    one()

with Flow("failing") as failing:
    fails()

# retried by its own process
with Flow("retry") as retry:
    task(fails_once, name="second_time", max_retries=1, retry_delay=timedelta(seconds=1))()

# so late that its process ends meanwhile (over ten minutes)
with Flow("late_retry") as late_retry:
    task(fails_once, name="second_time", max_retries=1, retry_delay=timedelta(minutes=11))()

# a task over a list, and one over all its results
with Flow("mapped") as mapped:
    total(double.map(numbers()))

# a result that the next run takes from the cache
with Flow("cached") as cached:
    after(costly())

# writes the sum of two parameters into the file that a third one names
with Flow("parameters") as parameters:
    add(Parameter("first", default=1), Parameter("second", default=2), Parameter("out"))

# writes its environment, working folder and arguments, as JSON, into the file that a parameter names
with Flow("environment") as environment:
    write(Parameter("out"))

# makes the file `begun`, then waits until the file `until` is there (two minutes at most)
with Flow("waiting") as waiting:
    wait(Parameter("begun"), Parameter("until"))
