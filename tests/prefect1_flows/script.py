"""Stored as this file, not pickled."""

from prefect import Flow, task
from prefect.storage import Local


@task
def where():
    return __file__


with Flow("script") as flow:
    where()

flow.storage = Local(path=__file__, stored_as_script=True, add_default_labels=False)
