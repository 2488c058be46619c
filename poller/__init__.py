"""Poller: claims runs from the Prefect API and queues them in Redis."""
