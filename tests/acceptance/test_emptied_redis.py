"""Redis loses everything: what a living worker runs is told to it again; what a lost host ran is told as lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tests.prefect_server import PrefectServer
from tests.valkey import Valkey
from tests.waiting import stays, until
from tests.world import Part, World

RENEW, LEASE, GRACE = 0.5, 4.0, 4.0
#: of what the leader does beside waiting, with room for a slow machine
ROUNDS = 15.0
HOLD = """
@flow
def go():
    note("ran")
    while not (Path(os.environ["FFTEST_NOTES"]) / "release").exists():
        time.sleep(0.1)
    note("done")
"""


@dataclass
class Emptied:
    """A fleet on a Redis of its own, and a worker whose host is `gone`."""

    world: World
    server: Valkey
    host: str = "gone"

    def start(self, grace: float = GRACE, lease: float = LEASE) -> Part:
        numbers = ("--lease-seconds", lease, "--renew-seconds", RENEW, "--adopt-grace", grace)
        self.leader = self.world.start_poller("agent", *map(str, numbers))
        return self.world.start_worker("worker", slots=2, env={"FLOWFLEET_HOST": self.host})

    def running(self) -> tuple[str, int]:
        """A run of the real engine that stays, and its process; the API and the ledger show it as running."""
        run = self.world.create_run(self.world.deploy(HOLD))
        pid = int(self.world.wait_note(run, "ran")[1])
        self.world.wait_state(run, "Running")
        until(lambda: self.world.seen()["counts"]["running"] == 1, 20, "it to run", pause=0.2)
        return run, pid

    def empty(self) -> None:
        with self.server.client() as redis:
            redis.flushall()

    def lose_host(self, worker: Part, pid: int) -> None:
        """What a power cut does, for good: worker, shim (first, since it must not see the run's end) and engine."""
        worker.kill()
        processes.kill(processes.parent(pid))
        processes.kill(pid)
        until(lambda: not processes.alive(pid), 10, "the engine to be dead")

    def leaves_alone(self, run: str) -> None:
        """Wait until its leader has said that it knows of the run and does nothing about it."""
        said = lambda: [line for line in self.leader.text().splitlines() if "left alone" in line]  # noqa: E731
        until(said, LEASE + RENEW + ROUNDS, "the leader to find the run")
        assert all(run in line and "claimed through another Redis" in line for line in said()), said()

    def states(self) -> dict[str, str]:
        return {run["run_id"]: run["state"] for run in self.world.seen()["runs"]}


@pytest.fixture
def emptied(prefect_server: PrefectServer, tmp_path: Path) -> Iterator[Emptied]:
    with Valkey.private(tcp=True) as server:
        world = World(tmp_path, prefect_server.api_url, server.tcp_url)
        try:
            yield Emptied(world, server)
            world.close()
        finally:
            processes.sweep("FFTEST_WORLD", world.mark)


@pytest.fixture
def namesake(emptied: Emptied, tmp_path: Path) -> Iterator[Emptied]:
    """Another fleet of the same name at the same API and pool, with a Redis and a host of its own."""
    with Valkey.private(tcp=True) as server:
        world = World(tmp_path / "namesake", emptied.world.api_url, server.tcp_url, fleet=emptied.world.fleet)
        world.pool = emptied.world.pool
        try:
            yield Emptied(world, server, host="elsewhere")
            world.close()
        finally:
            processes.sweep("FFTEST_WORLD", world.mark)


def test_a_run_of_another_fleet_of_this_name_is_left_alone_when_our_redis_is_new_and_told_when_its_own_is(
    emptied, namesake
):
    world = emptied.world
    worker = emptied.start()
    run, pid = emptied.running()
    namesake.start()
    namesake.leaves_alone(run)
    namesake.server.restart()
    until(lambda: namesake.world.seen()["gate"] == "open", LEASE + ROUNDS, "the gate to open", pause=0.2)
    alone = lambda: (namesake.states(), world.api.state(run)["type"]) == ({}, "RUNNING")  # noqa: E731
    stays(alone, LEASE + GRACE + 2, "it is not taken for lost")
    assert processes.alive(pid)

    emptied.lose_host(worker, pid)
    emptied.empty()
    message = world.wait_state(run, "Crashed", seconds=LEASE + RENEW + GRACE + ROUNDS)["message"]
    assert "its host gone (worker worker@gone) has not been heard of since" in message
    assert namesake.states() == {}


def test_a_run_of_a_fleet_of_this_name_that_is_gone_is_ended_by_the_command_that_the_leader_names(emptied, namesake):
    world = emptied.world
    worker = emptied.start()
    run, pid = emptied.running()
    emptied.leader.kill()
    emptied.lose_host(worker, pid)
    namesake.start()
    namesake.leaves_alone(run)
    assert f"`flowfleet cancel --now {run}`" in namesake.leader.text()
    doctor = namesake.world.command("flowfleet", "doctor", seconds=60)
    assert (
        " was claimed through another Redis, or before this one was emptied. Give each fleet a name of its own"
        in doctor.stdout
    ), doctor.stderr

    done = namesake.world.command("flowfleet", "cancel", "--now", run, seconds=60)
    assert (done.returncode, "is Cancelled" in done.stdout) == (0, True), done.stderr
    message = world.wait_state(run, "Cancelled", seconds=ROUNDS)["message"]
    assert message.startswith("Cancelled by ")
    assert message.endswith(". No worker of its fleet held the run: its process may still run on gone.")


def test_a_run_of_a_living_worker_is_known_again_and_nothing_is_told(emptied):
    world, lease = emptied.world, 12.0  # a machine that stalls for less makes no run missing
    emptied.start(lease=lease)
    run, pid = emptied.running()
    emptied.empty()

    until(lambda: emptied.states() == {run: "running"}, 20, "the worker to tell of it", pause=0.2)
    until(lambda: world.seen()["gate"] == "open", lease + ROUNDS, "the gate to open", pause=0.2)
    stays(lambda: emptied.states() == {run: "running"}, lease + 2, "it is not missing, so it is not told either")
    assert processes.alive(pid)
    world.release()
    world.wait_state(run, "Completed")
    assert "Crashed" not in world.api.history(run)
    world.wait_empty()


def test_a_run_whose_host_is_lost_with_the_data_of_redis_is_told_and_runs_of_others_are_not(emptied):
    world = emptied.world
    worker = emptied.start()
    run, pid = emptied.running()
    stock = f"{world.pool}-stock"
    world.api.call("POST", "/work_pools/", {"name": stock, "type": "process"})
    theirs = world.api.create_run(world.deploy(HOLD, pool=stock))
    world.api.call("POST", f"/flow_runs/{theirs}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    emptied.lose_host(worker, pid)
    emptied.empty()

    message = world.wait_state(run, "Crashed", seconds=LEASE + RENEW + GRACE + ROUNDS)["message"]
    assert "The flow run was lost: its host gone (worker worker@gone) has not been heard of since" in message
    assert "bring the host back, or, if it is gone for good, run `worker forget " in message
    until(lambda: world.seen()["lost"], 20, "the leader to be done with it, which tells the API first", pause=0.2)
    assert [(lost["run_id"], lost["host"]) for lost in world.status()["lost"]] == [(run, "gone")]
    assert world.api.state(theirs)["type"] == "RUNNING"
    assert world.words(run) == ["ran"]


def test_a_host_that_redis_has_lost_is_forgotten_by_its_name_and_the_retry_starts_elsewhere(emptied):
    world = emptied.world
    worker = emptied.start(grace=600.0)
    run, pid = emptied.running()
    emptied.lose_host(worker, pid)
    emptied.empty()
    until(lambda: emptied.states() == {run: "missing"}, LEASE + ROUNDS, "it to be missing", pause=0.2)
    assert world.seen()["workers"] == []

    refused = world.command("flowfleet", "worker", "forget", "worker@elsewhere", "--yes")
    assert (refused.returncode, "known are worker@gone" in refused.stderr) == (1, True)
    done = world.command("flowfleet", "worker", "forget", "worker@gone", "--yes", seconds=60)
    assert done.returncode == 0, done.stderr
    assert "1 run of it is given up" in done.stdout
    assert "given up by worker forget" in world.wait_state(run, "Crashed", seconds=ROUNDS)["message"]

    world.start_worker(
        "other", slots=1, env={"FLOWFLEET_HOST": "here", "XDG_STATE_HOME": str(world.folder / "state-2")}
    )
    world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "Scheduled"}})
    until(lambda: world.words(run) == ["ran", "ran"], 60, "the retry to be started")
    world.release()
    world.wait_state(run, "Completed")
