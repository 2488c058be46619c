"""A result that the next run takes from the cache."""

import os
from datetime import timedelta
from pathlib import Path

from prefect import Flow, task
from prefect.engine.results import LocalResult

RESULTS = str(Path(os.environ["HOME"]) / "results")


@task(cache_for=timedelta(hours=1), cache_key="costly", result=LocalResult(dir=RESULTS))
def costly():
    return 42


@task
def after(number):
    if number != 42:
        raise ValueError(number)


with Flow("cached") as flow:
    after(costly())
