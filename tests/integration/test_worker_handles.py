"""Handles of deployers that are not ours: one that is too large for the ledger costs the worker nothing."""

import pytest

from tests.waiting import until
from workers.deployers.process import ProcessDeployer


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
def test_a_run_whose_handle_the_ledger_cannot_take_goes_on_and_so_does_its_worker(world, service):
    message = world.begin(5)
    claim = world.ledger.claims.get(message.run_id)
    assert claim.handle["kind"] == "process"
    assert "story" not in claim.handle
    renewed(world)
    until(lambda: any("handle" in line["message"] for line in world.api.logs), 10, "the sentence on the run")

    world.next_worker()
    renewed(world)
    world.end(message, 5)
