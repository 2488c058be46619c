"""Example: a flow with parameters."""

from prefect import flow


@flow(log_prints=True)
def greeting(name: str = "world", times: int = 1) -> str:
    """Greet somebody."""
    line = f"Hello {name}!"
    for _ in range(times):
        print(line)
    return line
