"""The Prefect API in trouble under a whole fleet: what ends meanwhile is told once, and work goes on when it is back.

`make stress` has all kinds at full length, and prints how long after the end of each the next run began, and the end
that had waited was told.
"""

import time
from datetime import datetime

import pytest

from tests.lawless_api import LawlessApi
from tests.run_oracle import wrong
from tests.waiting import stays, until
from tests.world import World

KINDS = {
    "in maintenance": {"status": 503, "Prefect_Maintenance": "true", "Retry_After": "1"},
    "asking for patience": {"status": 429, "Retry_After": "2"},
    "failing": {"status": 500},
    "behind a proxy that has lost it": {"status": 502},
    "answered by a proxy's page": {"kind": "page", "status": 200},
    "silent": {"kind": "mute"},
}
IN_CI = ("in maintenance", "silent")
#: what both parts say of it when they meet it
SAID = {"in maintenance": "says that it is in maintenance"}


class Troubled:
    """A fleet on an API that minds its rules, and that can be made to fail at every request."""

    def __init__(self, folder, redis_url):
        self.api = LawlessApi(honest=True).start()
        self.world = World(folder, self.api.api_url, redis_url)
        self.world.env |= {"FLOWFLEET_API_READ_SECONDS": "5", "FLOWFLEET_RENEW_SECONDS": "1"}
        self.folder = folder
        self.parts = [self.world.start_poller(), self.world.start_worker()]

    def add(self, command):
        return self.api.add_run(self.world.pool, job_variables={"command": f"sh -c '{command}'"})

    def alive(self):
        return all(part.process.poll() is None for part in self.parts)

    def meet(self, kind, seconds):
        """How long after its end the next run began, and the end that had waited was told."""
        number = len(self.api.runs)
        began, gate, next_began = (self.folder / f"{word}-{number}" for word in ("began", "gate", "next"))
        ending = self.add(f"touch {began}; until [ -e {gate} ]; do sleep 0.05; done; exit 3")
        until(began.exists, 60, "the run to begin")
        how = dict(KINDS[kind])
        self.api.fail("", how.pop("kind", "status"), times=-1, **how)
        gate.touch()
        later = self.add(f"touch {next_began}; exit 3")
        stays(self.alive, seconds, f"the parts live through {kind}")
        said = SAID.get(kind, "")
        until(lambda: all(said in part.text() for part in self.parts), 60, f"both parts to meet an API that is {kind}")
        assert not next_began.exists()
        self.api.heal()
        back = time.time()
        until(next_began.exists, 60, "the next run to begin")
        for run_id in (ending, later):
            until(lambda run_id=run_id: self.api.state(run_id)["type"] == "CRASHED", 60, "its end to be told")
            assert "exited with code 3" in self.api.state(run_id)["message"]
            assert wrong(run_id, [], self.api.history(run_id)) == []
        told = datetime.fromisoformat(self.api.state(ending)["timestamp"]).timestamp()
        return next_began.stat().st_mtime - back, told - back

    def close(self):
        try:
            self.world.close()
        finally:
            self.api.stop()


@pytest.fixture
def troubled(tmp_path, valkey):
    made = Troubled(tmp_path, valkey.tcp_url)
    try:
        yield made
    finally:
        made.close()


def test_a_fleet_comes_through_the_trouble_of_its_api(troubled):
    for kind in IN_CI:
        troubled.meet(kind, 4.0)
    troubled.world.wait_empty()


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fleet_comes_through_long_trouble_of_its_api(troubled, kind):
    began, told = troubled.meet(kind, 30.0)
    print(
        f"API {kind} for 30 s: {began:.1f} s after it was back the next run began, after {told:.1f} s the end was told"
    )
    troubled.world.wait_empty()
