"""One task."""

from prefect import Flow, task


@task
def one():
    return 1


with Flow("plain") as flow:
    one()
