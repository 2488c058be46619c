"""A task over a list, and one over all its results."""

from prefect import Flow, task


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


with Flow("mapped") as flow:
    total(double.map(numbers()))
