"""Benchmarks: flowfleet beside Prefect's own worker, and the tests against seeded faults."""
