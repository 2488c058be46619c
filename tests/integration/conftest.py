"""Fixtures of the integration suite: worlds of one worker, and servers with our client of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.one_pool import OnePool
from tests.integration.one_server import OneServer
from tests.prefect1_api import Faults, Prefect1Api
from tests.prefect1_plain import Prefect1Plain
from tests.prefect_server import PrefectServer
from tests.valkey import Valkey
from tests.worker_world import WorkerWorld
from workers.service import WorkerService


@pytest.fixture
def world(valkey: Valkey, tmp_path: Path) -> Iterator[WorkerWorld]:
    """One worker in this process."""
    made = WorkerWorld(valkey.tcp_url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def service(world: WorkerWorld) -> WorkerService:
    """What that is, once it serves its route."""
    return world.start()


@pytest.fixture
def pool(prefect_server: PrefectServer) -> OnePool:
    """A fresh pool at a real Prefect 3 server."""
    return OnePool(prefect_server.api_url).open()


@pytest.fixture
def api() -> Iterator[Prefect1Api]:
    """A local Prefect 1 API with Cloud's locks."""
    with Prefect1Api() as served:
        yield served


@pytest.fixture
def run(api: Prefect1Api) -> str:
    """A run at it that is due."""
    return api.add_run(api.add_flow())


@pytest.fixture
def asker(api: Prefect1Api) -> Prefect1Plain:
    """Asks it by plain requests."""
    return Prefect1Plain(api.url)


@pytest.fixture
def loose_api() -> Iterator[Prefect1Api]:
    """One that is as the open-source Server is."""
    with Prefect1Api(faults=Faults.like_server()) as served:
        yield served


@pytest.fixture(params=["cloud", "server"])
def server(request: pytest.FixtureRequest) -> OneServer:
    """Each of the two, with our client."""
    return OneServer(request.getfixturevalue("api" if request.param == "cloud" else "loose_api"))


@pytest.fixture
def loose(loose_api: Prefect1Api) -> OneServer:
    """The latter, with our client."""
    return OneServer(loose_api)
