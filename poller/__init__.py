"""poller: from the Prefect API to Redis."""
