"""Fixtures that several unit tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench_of_runs import FULL, BenchOfRuns, new_fork_client
from tests.unit.poller_world import World
from workers.deployers.fork_client import ForkClient
from workers.host import Abilities


@pytest.fixture
def world() -> World:
    """One worker of four slots."""
    return World.of()


@pytest.fixture(scope="module")
def fork_client() -> Iterator[ForkClient]:
    """One for all runs of a module."""
    fork_client = new_fork_client()
    yield fork_client
    fork_client.close()


@pytest.fixture(params=[FULL, Abilities.plain()], ids=["full", "plain"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, fork_client: ForkClient) -> Iterator[BenchOfRuns]:
    """Real runs, with all that this host can do and with nothing of it."""
    bench = BenchOfRuns(tmp_path, request.param, fork_client)
    yield bench
    bench.close()


@pytest.fixture
def full_bench(tmp_path: Path, fork_client: ForkClient) -> Iterator[BenchOfRuns]:
    """Real runs with all that this host can do."""
    if not (FULL.subreaper and FULL.pidfd):
        pytest.skip("this platform has no subreaper or no pidfd")
    bench = BenchOfRuns(tmp_path, FULL, fork_client)
    yield bench
    bench.close()
