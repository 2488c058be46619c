"""Fails."""

from prefect import Flow, task


@task
def fails():
    raise RuntimeError("on purpose")


with Flow("failing") as flow:
    fails()
