"""Metrics: the counters and histograms of one worker, and its page of metrics."""

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from flowfleet.monitor.metrics import build_info

_DURATIONS = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
_WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class _Build(Collector):
    def collect(self) -> Iterator[Metric]:
        yield build_info()


class WorkerMetrics:
    """The metrics of what happens on one worker.

    The leader shows the ledger's gauges of all workers, so no metric here may have the name of one of those.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        registry.register(_Build())
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self.started = counter("flowfleet_runs_started", "Runs started here.")
        self.finished = counter("flowfleet_runs_finished", "Runs settled here.", ["outcome"])
        self.handed_back = counter("flowfleet_runs_handed_back", "Runs given back to the API.", ["reason"])
        self.refused = counter("flowfleet_messages_refused", "Messages refused here.")
        self.queue_wait = histogram(
            "flowfleet_queue_wait_seconds", "From the sending of a message to its arrival.", buckets=_WAITS
        )
        self.start_seconds = histogram("flowfleet_start_seconds", "From taken to running.", buckets=_WAITS)
        self.lateness = histogram(
            "flowfleet_start_lateness_seconds",
            "From the scheduled time to running; 0 for an engine that waits by itself.",
            buckets=(*_WAITS, 300, 1800, 7200),
        )
        self.duration = histogram("flowfleet_run_duration_seconds", "From start to exit.", buckets=_DURATIONS)
        # about this worker's own disk and connection, which the ledger does not know
        self.outbox = Gauge("flowfleet_worker_outbox_length", "Reports on this worker's disk.", registry=registry)
        self.redis_up = Gauge("flowfleet_worker_redis_up", "Was the last renewal answered?", registry=registry)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return bytes(generate_latest(self.registry))
