"""Metrics: the counters and histograms of one worker, and its page of metrics."""

import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from flowfleet.monitor.metrics import build_info
from workers.deployment import Exit

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
        self.receipts = counter("flowfleet_receipts", "Engines' own words for their ends.", ["result"])
        self.ended = counter("flowfleet_runs_ended", "Runs that ended here, by who ended them.", ["by"])
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

    def count_receipt(self, result: str) -> None:
        """Count what has become of a receipt."""
        self.receipts.labels(result=result).inc()

    def arrived(self, sent_at: float) -> None:
        """Count a message that was sent at this Unix time."""
        self.queue_wait.observe(max(0.0, time.time() - sent_at))

    def run_started(self, since: float, due: datetime) -> None:
        """Count a run that was taken at this time of the monotonic clock and has been started."""
        self.started.inc()
        self.start_seconds.observe(time.monotonic() - since)
        self.lateness.observe(max(0.0, time.time() - due.timestamp()))

    def count_handed_back(self, reason: str) -> None:
        """Count a run that went back to the API."""
        self.handed_back.labels(reason=reason).inc()

    def settled(self, outcome: str, end: Exit | None) -> None:
        """Count a run that is settled, who ended it and how long it took, where that is known."""
        self.finished.labels(outcome=outcome).inc()
        if end is not None:
            self.ended.labels(by=end.ended_by.value).inc()
            if end.started_at and end.ended_at:
                self.duration.observe(max(0.0, end.ended_at - end.started_at))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return bytes(generate_latest(self.registry))
