"""Two fleets of one name at one API, each with a Redis of its own: none tells a run of the other one as lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfleet.ledger.ledger_id import ledger_of
from tests import processes
from tests.valkey import Valkey
from tests.waiting import stays, until
from tests.world import World

RENEW, LEASE, GRACE = 0.5, 4.0, 3.0
#: of what the leader does beside waiting, with room for a slow machine
ROUNDS = 15.0
NUMBERS = tuple(map(str, ("--lease-seconds", LEASE, "--renew-seconds", RENEW, "--adopt-grace", GRACE)))


@pytest.fixture
def namesake(lawless: World, tmp_path: Path) -> Iterator[tuple[World, Valkey]]:
    """The other fleet, and its Redis."""
    with Valkey.private(tcp=True) as server:
        world = World(tmp_path / "namesake", lawless.api_url, server.tcp_url, fleet=lawless.fleet)
        world.pool = lawless.pool
        yield world, server
        world.close()


def ids(world: World) -> tuple[str, ...]:
    with world.ledger() as ledger:
        return ledger.gate.ledgers()


def empty(world: World) -> None:
    """Redis has lost all of this fleet."""
    with world.ledger() as ledger:
        ledger.store.client.delete(*ledger.store.client.keys(ledger.store.key("*")))


def test_a_run_of_the_other_fleet_is_left_alone_after_a_restart_of_our_redis_and_told_after_one_of_its_own(
    lawless, namesake
):
    lawless.start_poller("agent", *NUMBERS)
    worker = lawless.start_worker(env={"FLOWFLEET_HOST": "gone"})
    run, pid = lawless.held()
    states = lawless.api.call("GET", f"/flow_run_states/?flow_run_id={run}")
    (submitted,) = [state for state in states if state["name"] == "Submitted"]
    assert (ledger_of(submitted["state_details"]["transition_id"]),) == ids(lawless)

    other, server = namesake
    leader = other.start_poller("agent", *NUMBERS)
    until(lambda: "left alone" in leader.text(), LEASE + ROUNDS, "the other leader to find the run")
    before = ids(other)
    server.restart()
    until(lambda: other.seen()["gate"] == "open", LEASE + ROUNDS, "the gate to open", pause=0.1)
    alone = lambda: (other.seen()["runs"], lawless.api.state(run)["type"]) == ([], "RUNNING")  # noqa: E731
    stays(alone, LEASE + GRACE + 2, "the run to be left alone")
    assert ids(other) == before, "its leader has remembered the id"
    assert leader.text().count("left alone") == 1
    assert processes.alive(pid)

    worker.kill()
    processes.kill(processes.parent(pid))
    processes.kill(pid)
    empty(lawless)
    message = lawless.wait_state(run, "Crashed", seconds=LEASE + RENEW + GRACE + ROUNDS)["message"]
    assert "its host gone (worker worker@gone) has not been heard of since" in message
