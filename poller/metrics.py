"""Metrics: the poller's own counters, histograms and gauges; those of the ledger belong to flowfleet/monitor."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class PollerMetrics:
    """The metrics of what this poller has done since it started, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.claimed = counter("flowfleet_runs_claimed", "Runs that the API accepted as Submitted by us")
        self.refused = counter(
            "flowfleet_claims_refused", "Claims that the API refused: somebody or something came first"
        )
        self.lost_runs = counter(
            "flowfleet_claims_lost", "Claims of runs that were held for lost, their hosts being away"
        )
        self.ended = counter("flowfleet_runs_ended", "Runs whose end was told here, by who ended them", ["by"])
        self.handed_back = counter("flowfleet_runs_handed_back", "Runs given back to the API", ["reason"])
        self.lapsed = counter("flowfleet_leases_lapsed", "Workers whose renewals have stopped")
        self.reinstated = counter(
            "flowfleet_runs_echoed",
            "Runs that the API had put back to Scheduled while they ran, and whose state was written again",
        )
        self.poll_seconds = Histogram(
            "flowfleet_poll_duration_seconds", "How long the API took to list due runs", registry=self.registry
        )
        self.poll_errors = counter("flowfleet_poll_errors", "Rounds that ended with an error")
        self.last_poll = gauge("flowfleet_last_poll_timestamp_seconds", "When the API last listed due runs")
        self.key_refused = gauge("flowfleet_key_refused", "1 while the API refuses our key")
        self.unknown = gauge(
            "flowfleet_runs_unknown",
            "Runs that the API shows as launched by this fleet and that the ledger does not know",
        )

    def text(self) -> bytes:
        """The text of the metrics page, in the exposition format of Prometheus."""
        return generate_latest(self.registry)
