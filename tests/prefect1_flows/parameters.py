"""Writes the sum of two parameters into the file that a third one names."""

from pathlib import Path

from prefect import Flow, Parameter, task


@task
def add(first, second, out):
    Path(out).write_text(str(first + second))


with Flow("parameters") as flow:
    add(Parameter("first", default=1), Parameter("second", default=2), Parameter("out"))
