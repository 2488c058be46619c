"""Backlog: which runs are listed where limits, priorities and full answers hide some, and at what price."""

from collections.abc import Iterator

import pytest

from flowfleet.api.prefect3.backlog import NEAR_SECONDS
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import Offer
from poller.loop import Pace
from tests.lawless_api import LawlessApi

LISTED = "get_scheduled_flow_runs"


class Asked:
    """A pool with the queues `high` and `low` beside `default`, in this order."""

    def __init__(self, api: LawlessApi) -> None:
        self.api = api
        self.pool = api.add_pool()
        for priority, name in enumerate(("high", "low", "default"), start=1):
            api._queue("flowfleet", name)["priority"] = priority
        self.meet()

    def meet(self) -> None:
        """A client that knows nothing yet."""
        self.client = Prefect3(Session(Address(url=self.api.api_url)))
        self.offer = self.client.presence.resolve(Offer(backend="prefect3", pools=("flowfleet",)), create=True)

    def limit(self, runs: int) -> None:
        self.pool["concurrency_limit"] = runs
        self.meet()

    def add(self, queue: str, *due_in: float) -> None:
        for seconds in due_in:
            self.api.add_run(queue=queue, due_in=seconds)

    def due(self, limit: int = 200):
        return {
            each.route.name: each for each in self.client.backlog.due([self.offer], within_seconds=60.0, limit=limit)
        }


@pytest.fixture
def asked() -> Iterator[Asked]:
    with LawlessApi(honest=True) as api:
        yield Asked(api)


def test_what_counts_as_near_is_what_the_poller_claims_ahead():
    assert Pace().lead_seconds == NEAR_SECONDS


def test_a_queues_own_limit_is_kept_by_each_answer(asked):
    asked.limit(3)
    asked.api._queue("flowfleet", "low")["concurrency_limit"] = 1
    asked.add("high", -3, -2, -1)
    asked.add("low", -1, -1)
    assert {name: len(each.runs) for name, each in asked.due().items()} == {"high": 3, "low": 1}


def test_a_pool_at_its_limit_or_without_work_is_one_request(asked):
    asked.limit(1)
    for _ in range(3):
        assert asked.due() == {}
    assert asked.api.counted(LISTED) == 3
    assert asked.api.counted() == 5, "and the pool itself, when each client met it"


def test_a_pool_without_a_limit_is_one_request_each_time_and_is_read_every_five_minutes(asked):
    asked.add("high", -3)
    asked.add("low", -1, 40)
    for _ in range(3):
        assert {name: (each.due, each.room) for name, each in asked.due().items()} == {
            "high": (1, None),
            "low": (1, None),
        }
    assert asked.api.counted(LISTED) == 3
    assert asked.api.counted("GET /work_pools/flowfleet") == 1


def test_what_a_full_answer_shows_stays_whole_and_first(asked):
    """A share for each queue once cut the first of twenty to nine runs, and the least important ones came as soon."""
    for number in range(17):
        asked.api._create_queue("flowfleet", {"name": f"q{number}", "priority": 10 + number})
        asked.add(f"q{number}", -9)
    asked.add("high", *[-1] * 15)
    asked.add("low", *[-5] * 5)
    found = asked.due(limit=20)
    runs = [run for each in found.values() for run in each.runs]
    assert [run.route.name for run in runs[:20]] == ["high"] * 15 + ["low"] * 5
    assert len(found) == 19
    assert len(runs) <= 2 * 20
