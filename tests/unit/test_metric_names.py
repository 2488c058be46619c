"""Metric names: each that people are promised is shown by exactly the part where it happens."""

from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from flowfleet.monitor.metrics import LedgerCollector, our_version
from flowfleet.monitor.snapshot import Snapshot
from poller.metrics import PollerMetrics
from tests.unit.test_status import _claim, _snapshot
from workers.exit import Exit
from workers.metrics import WorkerMetrics

LEADER = {
    "flowfleet_queue_length": {"route"},
    "flowfleet_queue_oldest_age_seconds": {"route"},
    "flowfleet_runs_due": {"route"},
    "flowfleet_runs_due_oldest_seconds": {"route"},
    "flowfleet_workers_wanted": {"route"},
    "flowfleet_runs_active": {"worker"},
    "flowfleet_worker_slots": {"worker"},
    "flowfleet_worker_up": {"worker"},
    "flowfleet_outbox_length": set(),
    "flowfleet_outbox_oldest_seconds": set(),
    "flowfleet_redis_up": set(),
    "flowfleet_gate_open": set(),
}
POLLER = {
    "flowfleet_runs_claimed_total": set(),
    "flowfleet_claims_lost_total": set(),
    "flowfleet_claims_refused_total": set(),
    "flowfleet_runs_echoed_total": set(),
    "flowfleet_leases_lapsed_total": set(),
    "flowfleet_poll_duration_seconds": set(),
    "flowfleet_poll_errors_total": set(),
    "flowfleet_last_poll_timestamp_seconds": set(),
    "flowfleet_key_refused": set(),
}
WORKER = {
    "flowfleet_runs_started_total": set(),
    "flowfleet_runs_finished_total": {"outcome"},
    "flowfleet_receipts_total": {"result"},
    "flowfleet_queue_wait_seconds": set(),
    "flowfleet_start_seconds": set(),
    "flowfleet_start_lateness_seconds": set(),
    "flowfleet_run_duration_seconds": set(),
}
#: counted by whoever gives back, and by whoever tells an end
BOTH = {"flowfleet_runs_handed_back_total": {"reason"}, "flowfleet_runs_ended_total": {"by"}}
EVERYWHERE = {"flowfleet_build_info": {"version"}}


def leader_registry(take: Callable[[], Snapshot]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LedgerCollector(take))
    return registry


def shown(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Names as Prometheus has them, with the labels that their samples carry."""
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


@pytest.fixture
def parts():
    """The names of each part, after everything has happened once."""
    poller, worker = PollerMetrics(), WorkerMetrics()
    poller.handed_back.labels("queued").inc()
    poller.ended.labels("host-lost").inc()
    worker.handed_back.labels("not started").inc()
    worker.receipts.labels("believed").inc()
    worker.settled("completed", Exit(code=0))
    leader = leader_registry(lambda: _snapshot(claims=[_claim()], due=1))
    return shown(leader), shown(poller.registry), shown(worker.registry)


def test_each_promised_name_is_shown_where_it_happens_with_its_labels(parts):
    for promised, registry in zip((LEADER, POLLER | BOTH, WORKER | BOTH), parts, strict=True):
        assert {name: registry.get(name) for name in promised} == promised


def test_no_gauge_of_the_ledger_is_shown_twice_and_no_run_is_ever_a_label(parts):
    leader, poller, worker = parts
    assert set(leader) & set(worker) == set(EVERYWHERE)
    assert set(leader) & set(poller) == set()
    assert set(poller) & set(worker) == set(BOTH)

    assert {label for registry in parts for labels in registry.values() for label in labels} <= {
        "route", "worker", "reason", "outcome", "version", "result", "by",
    }  # fmt: skip


def test_every_part_tells_its_version_in_the_same_way(parts):
    leader, _, worker = parts  # a poller's page is the leader's registry and its own in one
    assert leader["flowfleet_build_info"] == worker["flowfleet_build_info"] == {"version"}
    assert f'flowfleet_build_info{{version="{our_version()}"}} 1.0' in WorkerMetrics().page().decode()


def test_ends_are_counted_by_who_ended_the_run():
    worker = WorkerMetrics()
    for end in (Exit(code=0), Exit(signal=9, oom=True), Exit(code=1), None):
        worker.settled("crashed", end)
    page = worker.page().decode()
    assert 'flowfleet_runs_ended_total{by="itself"} 2.0' in page
    assert 'flowfleet_runs_ended_total{by="oom"} 1.0' in page
    assert 'flowfleet_runs_finished_total{outcome="crashed"} 4.0' in page
