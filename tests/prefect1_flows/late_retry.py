"""Fails once, and is to be retried so late that its process ends meanwhile (over ten minutes)."""

from datetime import timedelta

import prefect
from prefect import Flow, task


@task(max_retries=1, retry_delay=timedelta(minutes=11))
def second_time():
    if prefect.context.task_run_count < 2:
        raise RuntimeError("the first time")


with Flow("late_retry") as flow:
    second_time()
