"""Metrics: the poller's own counters, histograms and gauges; those of the ledger belong to flowfleet/monitor."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class PollerMetrics:
    """The metrics of what this poller has done since it started, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.claimed = Counter(
            "flowfleet_runs_claimed", "Runs that the API accepted as Submitted by us", registry=self.registry
        )
        self.lost = Counter(
            "flowfleet_claims_lost",
            "Claims that the API refused: somebody or something came first",
            registry=self.registry,
        )
        self.handed_back = Counter(
            "flowfleet_runs_handed_back", "Runs given back to the API", ["reason"], registry=self.registry
        )
        self.lapsed = Counter("flowfleet_leases_lapsed", "Workers whose renewals have stopped", registry=self.registry)
        self.reinstated = Counter(
            "flowfleet_runs_echoed",
            "Runs that the API had put back to Scheduled while they ran, and whose state was written again",
            registry=self.registry,
        )
        self.poll_seconds = Histogram(
            "flowfleet_poll_duration_seconds", "How long the API took to list due runs", registry=self.registry
        )
        self.poll_errors = Counter("flowfleet_poll_errors", "Rounds that ended with an error", registry=self.registry)
        self.last_poll = Gauge(
            "flowfleet_last_poll_timestamp_seconds", "When the API last listed due runs", registry=self.registry
        )
        self.key_refused = Gauge("flowfleet_key_refused", "1 while the API refuses our key", registry=self.registry)
        self.unknown = Gauge(
            "flowfleet_runs_unknown",
            "Runs that the API shows as launched by this fleet and that the ledger does not know",
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The text of the metrics page, in the exposition format of Prometheus."""
        return generate_latest(self.registry)
