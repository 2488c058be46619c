"""Example: a flow whose code raises, so that its run ends as Failed."""

from prefect import flow


@flow
def failing() -> None:
    """Divide by a zero that came from somewhere."""
    stock = {"apples": 3, "pears": 0}
    print(stock["apples"] / stock["pears"])
