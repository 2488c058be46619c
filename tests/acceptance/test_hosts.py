"""Hosts: two workers on two hosts (network and UTS namespaces) that serve one pool."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import folders, processes
from tests.needs import namespaces, need
from tests.netns import NetnsHost
from tests.prefect_server import PrefectServer
from tests.tcp_bridge import TcpBridge
from tests.valkey import Valkey, free_port
from tests.waiting import until
from tests.world import Part, World

NAMES = ("east", "west")


@dataclass
class Machines:
    """A fleet over two hosts, each with its own way to the servers."""

    world: World
    hosts: dict[str, NetnsHost]
    links: dict[str, tuple[TcpBridge, TcpBridge]]

    def start(self, name: str, *options: str, slots: int = 2) -> Part:
        """The worker of one host; all are named `worker`, as with one shared environment file."""
        host, (api, redis) = self.hosts[name], self.links[name]
        return self.world.start_worker(
            "worker",
            *options,
            slots=slots,
            before=host.before,
            env=host.environment(api.port, redis.port),
            address=f"http://{host.inside}:{free_port()}",
        )


@pytest.fixture
def machines(prefect_server: PrefectServer, valkey: Valkey, tmp_path: Path) -> Iterator[Machines]:
    """Two hosts and a poller on this one."""
    need(not namespaces(), namespaces())
    world = World(tmp_path, prefect_server.api_url, valkey.tcp_url)
    made = Machines(world, {}, {})
    try:
        for name in NAMES:
            host = made.hosts[name] = NetnsHost(name, tmp_path)
            made.links[name] = (
                TcpBridge(("127.0.0.1", urlsplit(prefect_server.api_url).port or 0), host.outside),
                TcpBridge(("127.0.0.1", valkey.port), host.outside),
            )
        yield made
        world.close()
    finally:
        processes.sweep("FFTEST_WORLD", world.mark)
        for link in made.links.values():
            for bridge in link:
                bridge.close()
        for host in made.hosts.values():
            host.close()


def test_two_hosts_serve_one_pool_each_run_starts_once_and_a_host_adopts_its_own_and_no_others(machines):
    world = machines.world
    world.start_poller()
    workers = {name: machines.start(name) for name in NAMES}
    rows = world.status()["workers"]
    assert {(row["name"], row["host"]) for row in rows} == {("worker", host.name) for host in machines.hosts.values()}

    held = world.deploy_tiny("hold", 4)
    runs = [world.create_run(held) for _ in range(4)]
    notes = [world.wait_note(run, "ran") for run in runs]
    assert sorted(note[3] for note in notes) == sorted([host.name for host in machines.hosts.values()] * 2)
    until(lambda: world.seen()["counts"]["running"] == 4, 20, "all to run", pause=0.2)

    workers["east"].kill()
    machines.start("east")
    assert all(processes.alive(int(note[1])) for note in notes)
    owners = {run["worker"] for run in world.status()["runs"]}
    assert owners == {f"worker@{host.name}" for host in machines.hosts.values()}
    world.release()
    for run in runs:
        assert "code 4" in world.wait_state(run, "Crashed")["message"]
    assert [world.words(run) for run in runs] == [["ran", "done"]] * 4
    # a real flow on whichever host has room
    run, _ = world.run(
        """
        @flow
        def go():
            import socket
            note(socket.gethostname())
        """,
        "Completed",
    )
    assert world.words(run)[0] in [host.name for host in machines.hosts.values()]


def test_a_host_that_has_rebooted_reports_what_was_cut_off(machines):
    world = machines.world
    world.start_poller()
    worker = machines.start("east", slots=1)
    run, pid = world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run", pause=0.2)
    # what a power cut does: worker, shim and run at once (the shim first, since it must not see the run's end),
    # and another boot id
    worker.kill()
    processes.kill(processes.parent(pid))
    processes.sweep("FFTEST_WHO", machines.hosts["east"].name)
    assert not processes.alive(pid)
    machines.hosts["east"].reboot()

    machines.start("east", slots=1)
    assert "host restarted" in world.wait_state(run, "Crashed", seconds=120)["message"]
    assert world.words(run) == ["ran"]


def test_a_run_whose_host_is_lost_is_told_and_its_retry_waits_until_the_host_says_that_no_process_is_left(machines):
    world, east = machines.world, machines.hosts["east"].name
    world.start_poller("agent", "--lease-seconds", "6", "--renew-seconds", "1", "--adopt-grace", "3")
    machines.start("east", slots=1)
    run, pid = world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run", pause=0.2)
    for bridge in machines.links["east"]:
        bridge.cut()

    message = world.wait_state(run, "Crashed", seconds=6 + 3 + 15)["message"]
    assert f"its host {east} (worker worker@{east})" in message
    assert processes.alive(pid), "nobody has touched it"
    [lost] = until(lambda: world.seen()["lost"], 20, "the leader to be done with it, which tells the API first")
    assert (lost["run_id"], lost["host"]) == (run, east)

    # a retry in the UI, while another host has room
    machines.start("west", slots=2)
    world.api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "Scheduled"}})
    until(lambda: [line for line in world.api.logs(run) if f"may live on {east}" in line], 30, "a word on its log page")
    assert world.words(run) == ["ran"]

    # its process ends, and its host is back
    processes.kill(pid)
    for bridge in machines.links["east"]:
        bridge.mend()
    until(lambda: world.words(run) == ["ran", "ran"], 60, "the retry to be started")
    world.release()
    world.wait_state(run, "Completed")
    assert world.words(run) == ["ran", "ran", "done"]
    assert world.status()["lost"] == []
    assert len([line for line in world.api.logs(run) if "may live on" in line]) == 1


def test_a_run_under_requeue_whose_host_is_cut_off_ends_there_and_is_started_again_on_another(machines):
    world = machines.world
    lease = 15  # a run ends itself 3 s before its lease is over, and a machine that stalls is not to end it
    numbers = ("--lease-seconds", str(lease), "--renew-seconds", "1", "--adopt-grace", "2")
    world.start_poller("agent", "--on-lost-run", "requeue", *numbers)
    machines.start("east", slots=1)
    run, pid = world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run", pause=0.2)
    machines.start("west", slots=1)
    for bridge in machines.links["east"]:
        bridge.cut()

    until(lambda: not processes.alive(pid), lease + 5, "its own switch to end it", pause=0.05)
    until(lambda: world.words(run) == ["ran", "ran"], lease + 2 + 30, "it to be started again")
    assert [note[3] for note in world.notes(run)] == [machines.hosts[name].name for name in NAMES]
    (record,) = folders.found(machines.hosts["east"].state, f"**/runs/{run}.*/exit.json")
    ended_at = json.loads(record.read_text())["ended_at"]
    assert ended_at < float(world.notes(run)[1][2]), "nobody has started it before its end"
    for bridge in machines.links["east"]:
        bridge.mend()
    world.release()
    world.wait_state(run, "Completed")
    world.wait_empty()
    assert world.words(run) == ["ran", "ran", "done"]
    assert "Crashed" not in world.api.history(run)
    assert world.status()["lost"] == []
