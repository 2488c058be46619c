"""Outages: API or Redis away for a while: each part says so, waits, and goes on."""

from urllib.parse import urlsplit

import pytest

from tests import folders
from tests.tcp_bridge import TcpBridge
from tests.waiting import until
from tests.world import World


@pytest.fixture
def bridged(prefect_server, valkey, tmp_path):
    """A fleet whose links to API and Redis can be cut."""
    api = TcpBridge(("127.0.0.1", urlsplit(prefect_server.api_url).port))
    redis = TcpBridge(("127.0.0.1", valkey.port))
    world = World(tmp_path, f"http://127.0.0.1:{api.port}/api", f"redis://127.0.0.1:{redis.port}/0")
    # the test itself asks the server by its own address
    world.api.api_url = prefect_server.api_url
    try:
        yield world, api, redis
        for bridge in (api, redis):
            if bridge.closed:
                bridge.mend()
        world.close()
    finally:
        api.close()
        redis.close()


def says(part, *words):
    """Wait until a new line of the part's log has all of these words."""
    seen = len(part.text())
    return lambda: any(all(word in line for word in words) for line in part.text()[seen:].splitlines())


def test_redis_away_for_a_while(bridged):
    world, _, redis = bridged
    poller, worker = world.start_poller(), world.start_worker()
    deployment, (run, _) = world.deploy_tiny(), world.held()
    until(lambda: world.seen()["counts"]["running"] == 1, 20, "it to run", pause=0.2)
    told = {part.name: says(part, "Redis") for part in (poller, worker)}
    redis.cut()
    for name, has in told.items():
        until(has, 30, f"{name} to say that Redis is away")
    # what runs goes on, and ends truly
    world.release()
    world.wait_state(run, "Completed")
    meanwhile = world.create_run(deployment)
    redis.mend()

    world.all_once([run, meanwhile], 90)
    world.wait_empty(seconds=60)
    assert poller.process.poll() is None
    assert worker.process.poll() is None


def test_the_api_away_for_a_while_keeps_the_report_on_disk_until_it_is_accepted(bridged):
    world, api, _ = bridged
    poller, worker = world.start_poller(), world.start_worker()
    deployment, (run, _) = world.deploy_tiny(), world.held(6)
    told = {part.name: says(part, "API") for part in (poller, worker)}
    api.cut()
    world.release()
    world.wait_note(run, "done")
    reports = until(lambda: folders.found(world.folder, "state/**/outbox/*.json"), 30, "the report on disk")
    assert run in reports[0].name
    for name, has in told.items():
        until(has, 60, f"{name} to say that the API is away")
    assert world.status()["counts"]["outbox"] == 1
    meanwhile = world.create_run(deployment)
    api.mend()

    assert "code 6" in world.wait_state(run, "Crashed", seconds=90)["message"]
    world.wait_state(meanwhile, "Completed", seconds=90)
    world.wait_empty(seconds=60)
    world.wait_told()
    assert world.words(run) == ["ran", "done"]


@pytest.mark.parametrize(("away", "seconds"), [("Redis", 40), ("API", 60)])
def test_parts_that_are_started_while_redis_or_the_api_is_away_wait_for_it(bridged, away, seconds):
    world, api, redis = bridged
    link = {"Redis": redis, "API": api}[away]
    link.cut()
    parts = [world.start_poller(wait=False), world.start_worker(wait=False)]
    for part in parts:
        until(lambda part=part: away in part.text(), seconds, f"{part.name} to say that {away} is away")
    if away == "Redis":
        done = world.command("flowfleet", "status")
        assert done.returncode == 4
        assert "Redis" in done.stderr
        assert "Traceback" not in done.stderr
    link.mend()
    for part in parts:
        part.wait_ready()
    world.wait_state(world.create_run(world.deploy_tiny()), "Completed")
