"""A deployer from another package, by the entry-point group `flowfleet.deployers`: its runs start and are adopted."""

from pathlib import Path

import pytest

from tests.prefect1_world import World1
from tests.waiting import until

#: as a package of somebody else brings it, with an interpreter of its own: only it knows where its runs go
MINE = """
import dataclasses, os
from workers.host import Abilities
from workers.deployers.process import ProcessDeployer
from workers.host import Host

class Mine:
    kind = "mine"

    def __init__(self, context):
        assert context.state_folder.is_dir() and context.limits.stop_grace == 30.0
        assert "MINE_NOTES" in context.environment
        host = dataclasses.replace(Host.probe(os.environ), name=context.host)
        self._below = ProcessDeployer(host=host, abilities=Abilities.probe(os.environ))

    def start(self, spec):
        self._note("started " + " ".join(spec.argv[1:]))
        return self._below.start(dataclasses.replace(spec, argv=(os.environ["MINE_PYTHON"], *spec.argv[1:])))

    def adopt(self, folder):
        self._note("adopted")
        return self._below.adopt(folder)

    def close(self):
        self._below.close()

    def _note(self, words):
        with open(os.environ["MINE_NOTES"], "a") as notes:
            notes.write(words + "\\n")
"""


def install(folder: Path) -> Path:
    """A package as an installer leaves it; the folder for PYTHONPATH."""
    packages = folder / "packages"
    described = packages / "mine-1.0.dist-info"
    described.mkdir(parents=True)
    (packages / "of_somebody_else.py").write_text(MINE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[flowfleet.deployers]\nmine = of_somebody_else:Mine\n")
    return packages


@pytest.fixture
def world(tmp_path, world1):
    world1.env |= {
        "PYTHONPATH": str(install(tmp_path)),
        "MINE_PYTHON": str(world1.tiny_python()),
        "MINE_NOTES": str(tmp_path / "mine"),
    }
    return world1


def start(world: World1):
    return world.start("worker", "w", ["--deploy", "mine", "--label", "x", "--no-hostname-label", "--slots", "1"])


def test_a_plugged_in_deployer_starts_runs_and_adopts_those_of_the_worker_before(world, tmp_path):
    world.start_poller()
    worker = start(world)
    run_id, _ = world.held(3, "x")
    worker.kill()
    start(world)
    until(lambda: "adopted" in (tmp_path / "mine").read_text(), 30, "the next worker to adopt the run")
    world.release()

    assert world.wait_end(run_id) == "Failed"
    assert "code 3" in world.message(run_id)
    assert (tmp_path / "mine").read_text().splitlines() == ["started -m prefect execute flow-run", "adopted"]
    assert world.words(run_id) == ["ran", "done"]


def test_a_run_that_only_a_plugged_in_deployer_can_judge_is_handed_to_it(world, tmp_path):
    world.start_poller()
    start(world)
    flow = world.api.add_flow("for-kubernetes", run_config={"type": "KubernetesRun", "labels": ["x"]})
    run_id = world.api.add_run(flow, labels=["x"])

    assert world.wait_end(run_id) == "Success"
    assert (tmp_path / "mine").read_text().startswith("started ")


def test_a_deployer_that_nobody_has_installed_is_one_sentence(world):
    worker = world.start("worker", "w", ["--deploy", "theirs"], wait=False)

    assert worker.wait(30) == 2
    assert worker.text().splitlines()[-1] == (
        "Error: --deploy theirs is unknown: use process, docker, or the name of an installed deployer."
    )
