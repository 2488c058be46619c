"""Fails once, and is retried by its own process."""

from datetime import timedelta

import prefect
from prefect import Flow, task


@task(max_retries=1, retry_delay=timedelta(seconds=1))
def second_time():
    if prefect.context.task_run_count < 2:
        raise RuntimeError("the first time")


with Flow("retry") as flow:
    second_time()
