"""Benchmarks: flowfleet beside Prefect's own worker."""
