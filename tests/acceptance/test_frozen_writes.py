"""A worker that is frozen between reading a run and writing its end: what others write meanwhile stays."""

import os
import signal
import time

import pytest

from tests import processes
from tests.lawless_api import LawlessApi
from tests.prefect1_api import Faults
from tests.prefect1_world import World1
from tests.waiting import stays, until
from tests.world import World

#: longer than a reading may be old, and than the lease
FROZEN_SECONDS = 6.0
LEASE = {"FLOWFLEET_RENEW_SECONDS": "0.5", "FLOWFLEET_LEASE_SECONDS": "4"}


class Frozen3(World):
    """On an API that has no lock and minds no filter: only reading again can help."""

    def __init__(self, folder, redis_url):
        self.lawless = LawlessApi().start()
        super().__init__(folder, self.lawless.api_url, redis_url)

    def worker(self, **how):
        return self.start_worker(**how)

    def restart(self, run_id):
        """By somebody, whose engine runs it now."""
        for kind, name in (("FAILED", None), ("SCHEDULED", None), ("PENDING", "Submitted"), ("RUNNING", None)):
            self.lawless.write(run_id, kind, name)

    def history(self, run_id):
        return self.lawless.history(run_id)

    def close(self):
        super().close()
        self.lawless.stop()


class Frozen1(World1):
    def __init__(self, folder, redis_url):
        super().__init__(folder, redis_url, faults=Faults.like_server())

    def worker(self, **how):
        return self.start_worker("worker", "x", tiny=True, **how)

    def held(self, code=0):
        return super().held(code, "x")

    def restart(self, run_id):
        for kind in ("Failed", "Scheduled", "Submitted", "Running"):
            self.api.write(run_id, kind, start_time="2099-01-01T00:00:00+00:00")

    def history(self, run_id):
        return self.api.history(run_id)


@pytest.fixture(params=[Frozen3, Frozen1], ids=["prefect3", "prefect1"])
def world(request, valkey, tmp_path):
    made = request.param(tmp_path, valkey.tcp_url)
    made.env |= LEASE
    yield made
    made.close()


def test_a_worker_that_was_frozen_with_a_report_in_hand_covers_nothing(world, tmp_path):
    world.start_poller()
    met = tmp_path / "met"
    met.mkdir()
    failpoint = {"FLOWFLEET_FAILPOINT": "report.between:freeze", "FLOWFLEET_FAILPOINT_FOLDER": str(met)}
    worker = world.worker(env=failpoint)
    run_id, _ = world.held(6)
    world.release()
    until(lambda: (met / "report.between").exists() and processes.stopped(worker.pid), 60, "the worker to be frozen")
    frozen = time.monotonic()
    world.restart(run_id)
    stays(lambda: world.history(run_id)[-1] == "Running", FROZEN_SECONDS, "the new attempt runs")
    assert time.monotonic() - frozen > FROZEN_SECONDS
    os.kill(worker.pid, signal.SIGCONT)
    until(lambda: "claimed anew" in worker.text(), 60, "the worker to see it")
    assert "exited with code 6" in next(line for line in worker.text().splitlines() if "claimed anew" in line)
    assert world.history(run_id)[-1] == "Running"
    world.wait_told()
