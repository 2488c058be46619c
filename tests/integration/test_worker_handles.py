"""Handles of deployers that are not ours: one that is too large for the ledger costs the worker nothing."""

from __future__ import annotations

import pytest

from tests.waiting import until
from tests.worker_world import WorkerWorld
from workers.deployers.process import ProcessDeployer


@pytest.fixture
def world(valkey, tmp_path):
    made = WorkerWorld(valkey.tcp_url, tmp_path)
    yield made
    made.close()


class Wordy:
    """A deployment with much to say about itself."""

    def __init__(self, inner, more):
        self._inner, self._more = inner, more

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def handle(self):
        return {**self._inner.handle, "story": self._more}


@pytest.fixture(params=["x" * 5000, {1, 2}], ids=["too large", "no JSON"])
def wordy(request, monkeypatch):
    start, adopt = ProcessDeployer.start, ProcessDeployer.adopt
    monkeypatch.setattr(ProcessDeployer, "start", lambda self, spec: Wordy(start(self, spec), request.param))

    def adopted(self, folder):
        found = adopt(self, folder)
        return found and Wordy(found, request.param)

    monkeypatch.setattr(ProcessDeployer, "adopt", adopted)


def renewed(world):
    beat = world._row().beat
    world.service.heartbeat.nudge()
    until(lambda: world._row().beat > beat, 10, "a renewal")


@pytest.mark.usefixtures("wordy")
def test_a_run_whose_handle_the_ledger_cannot_take_goes_on_and_so_does_its_worker(world, tmp_path):
    gate = tmp_path / "gate"
    world.start()
    message = world.submit(
        f"import os,time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)\nraise SystemExit(5)"
    )
    claim = world.wait_state(message, "running")
    assert claim.handle["kind"] == "process"
    assert "story" not in claim.handle
    renewed(world)
    until(lambda: any("handle" in line["message"] for line in world.api.logs), 10, "the sentence on the run")

    world.stop()
    world.start()
    renewed(world)
    gate.touch()
    world.wait_gone(message)
    assert "exited with code 5" in world.api.state(message.run_id)["message"]
