"""Example: a flow with tasks, some side by side, one of which fails once and is tried again."""

import time

from prefect import flow, get_run_logger, task


@task
def fetch(order: int) -> int:
    """Stands for a call to some shop."""
    time.sleep(1.0)
    return order * 10


@task(retries=2, retry_delay_seconds=1)
def charge(amount: int) -> int:
    """Fails at its first try, as card services do."""
    from prefect.runtime import task_run

    if task_run.run_count < 2:
        raise ConnectionError("the card service did not answer")
    return amount


@flow(log_prints=True)
def orders(count: int = 4) -> int:
    """Fetch some orders side by side, then charge their sum."""
    amounts = [future.result() for future in fetch.map(range(count))]
    total = charge(sum(amounts))
    get_run_logger().info("charged %s for %s orders", total, count)
    return total
