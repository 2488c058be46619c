"""Crash matrix of containers: each failpoint of a worker x kill, freeze, raise, whose runs are containers.

CI has eight cells, `make stress` has all. Cells, seeds and oracle are those of tests/chaos.
"""

import os
import zlib

import pytest

from tests.chaos import oracle
from tests.chaos.arena import NUMBERS
from tests.chaos.cells import APIS, CASES, OF_PREFECT3, Case, Cell, runs
from tests.chaos.zygote import Zygote
from tests.containers.container_arena import ContainerArena

SEED = int(os.environ.get("FLOWFLEET_TEST_SEED", "0"))
#: of a flow's engine in a container there is no control session, and its hooks are told by a run that cancels nothing
NOT_HERE = ("hooks.after_start", "hooks.before_report")


def deaf_engine(cell):
    """A run that does not cancel itself is cancelled: after its end its hooks run in a container of their own."""
    cell.poller()
    cell.worker()
    run_id = cell.create("cancelled", "hold", engine=True, deaf=True)
    cell.begun(run_id)
    cell.arena.cancel(run_id)


CONTAINER_CASES = (
    *(case for case in CASES if case.process == "worker" and case.name not in NOT_HERE),
    *(
        Case(f"container.{step}", "worker", runs)
        for step in ("after_create", "after_start_file", "after_start", "after_exit_record")
    ),
    *(Case(name, "worker", deaf_engine, OF_PREFECT3) for name in NOT_HERE),
)


@pytest.fixture(scope="session")
def zygote():
    made = Zygote({**NUMBERS, "workers.containers.container_run:_AGAIN_SECONDS": 0.3})
    yield made
    made.close()


@pytest.fixture
def arenas(zygote, engine, valkey, tmp_path, request):
    made = []

    def make(kind):
        url = request.getfixturevalue("prefect_server").api_url if kind == "prefect3" else ""
        redis = ("127.0.0.1", valkey.port)
        made.append(ContainerArena(tmp_path / f"arena{len(made)}", redis, zygote, kind, url, engine=engine))
        return made[-1]

    yield make
    for arena in made:
        arena.close()


def cells():
    for case in CONTAINER_CASES:
        for action in case.actions:
            for kind in APIS:
                if kind not in case.apis:
                    continue
                name = f"{case.title}-{action}-{kind}"
                in_ci = zlib.crc32(f"containers {name}".encode()) % 40 == 0 and not SEED
                mark = pytest.mark.slow if in_ci else pytest.mark.stress
                yield pytest.param(case, action, kind, id=name, marks=mark)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("case", "action", "kind"), list(cells()))
def test_a_fault_at_any_step_of_a_worker_leaves_one_true_end_and_no_container(arenas, case, action, kind):
    arena = arenas(kind)
    cell = Cell(case, action, arena, SEED)
    print(f"FLOWFLEET_TEST_SEED={SEED}, second fault: {cell.second}")
    try:
        assert list(cell.run()) == []
    except AssertionError:
        print(oracle.describe(arena))
        raise
