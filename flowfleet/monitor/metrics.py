"""Metrics: the ledger's gauges for Prometheus, read anew at each scrape."""

import math
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flowfleet.errors import LedgerError
from flowfleet.ledger.claims import State
from flowfleet.monitor.snapshot import RUNNING, WAITING, RouteQueue, Snapshot


class LedgerCollector(Collector):
    """Collector of all gauges that come from the ledger; no run id is ever a label."""

    def __init__(self, take: Callable[[], Snapshot], leads: Callable[[], bool] = lambda: True) -> None:
        """Only a poller that `leads` shows the ledger's gauges: two pollers would count everything twice."""
        self._take = take
        self._leads = leads

    def describe(self) -> Iterator[Metric]:
        """No gauges: without this method a registry would ask Redis while the process is put together."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The gauges of this moment; when Redis does not answer, only the version and that Redis is away."""
        yield build_info()
        if not self._leads():
            return
        try:
            snapshot = self._take()
        except LedgerError:
            yield GaugeMetricFamily("flowfleet_redis_up", "1 while Redis answers.", value=0)
            return
        yield GaugeMetricFamily("flowfleet_redis_up", "1 while Redis answers.", value=1)
        yield GaugeMetricFamily("flowfleet_gate_open", "1 while runs may start.", value=int(snapshot.gate_open))
        yield from _of_queues(snapshot)
        yield from _of_workers(snapshot)
        yield from _of_outbox(snapshot)


def our_version() -> str:
    """The installed version, or `unknown` in a tree that was never installed."""
    try:
        return version("flowfleet")
    except PackageNotFoundError:
        return "unknown"


def build_info() -> Metric:
    """The gauge that names the running version, the same in poller and worker."""
    info = GaugeMetricFamily("flowfleet_build_info", "The version that runs.", labels=["version"])
    info.add_metric([our_version()], 1)
    return info


def _of_queues(snapshot: Snapshot) -> Iterator[Metric]:
    families: dict[str, tuple[str, Callable[[RouteQueue], float | None]]] = {
        "flowfleet_queue_length": ("Messages in Redis.", lambda queue: queue.depth),
        "flowfleet_queue_oldest_age_seconds": ("Age of the oldest message.", lambda queue: queue.oldest_age_seconds),
        "flowfleet_runs_due": ("Runs that wait at the API.", lambda queue: queue.due),
        "flowfleet_runs_due_oldest_seconds": (
            "How long the oldest of them has waited.",
            lambda queue: queue.oldest_due_seconds,
        ),
        "flowfleet_workers_wanted": (
            "Workers of this fleet's usual size that would run all of it at once.",
            lambda queue: workers_wanted(snapshot, queue),
        ),
    }
    for name, (meaning, value) in families.items():
        family = GaugeMetricFamily(name, meaning, labels=["route"])
        for queue in snapshot.queues:
            family.add_metric([str(queue.route)], value(queue) or 0)
        yield family


def workers_wanted(snapshot: Snapshot, queue: RouteQueue) -> int:
    """Number of workers that this route could use: its running, claimed and due runs over a usual worker's slots."""
    serving = [
        worker.row.slots for worker in snapshot.workers if worker.row.live and worker.row.offer.serves(queue.route)
    ]
    usual = sum(serving) / len(serving) if serving else 1.0
    states = RUNNING | WAITING | {State.TAKEN}
    ours = sum(claim.route == queue.route and claim.state in states for claim in snapshot.claims)
    return math.ceil((queue.due + ours) / usual)


def _of_workers(snapshot: Snapshot) -> Iterator[Metric]:
    active = GaugeMetricFamily("flowfleet_runs_active", "Runs that hold a slot.", labels=["worker"])
    slots = GaugeMetricFamily("flowfleet_worker_slots", "Slots of a worker.", labels=["worker"])
    up = GaugeMetricFamily("flowfleet_worker_up", "1 while a worker lives.", labels=["worker"])
    for worker in snapshot.workers:
        name = [worker.row.worker]
        active.add_metric(name, worker.busy)
        slots.add_metric(name, worker.row.slots)
        up.add_metric(name, int(worker.row.live))
    yield from (active, slots, up)


def _of_outbox(snapshot: Snapshot) -> Iterator[Metric]:
    since: list[float] = [claim.since for claim in snapshot.claims if claim.state == State.ENDED]
    yield GaugeMetricFamily("flowfleet_outbox_length", "Ends that the API has not accepted yet.", value=len(since))
    oldest = max(0.0, snapshot.at - min(since)) if since else 0.0
    yield GaugeMetricFamily("flowfleet_outbox_oldest_seconds", "Age of the oldest of them.", value=oldest)
