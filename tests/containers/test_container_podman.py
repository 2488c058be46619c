"""What differs at Podman, by name: each case is tried on both engines, on the engine's side and on ours."""

import itertools
import threading
import time

import docker.errors
import pytest

from flowfleet.errors import StartFailed
from tests.containers.deploying import sh
from tests.waiting import until
from workers.containers.request import CLAIM, FLEET
from workers.exit import EndedBy

MEMORY = 32 << 20
API = "http://127.0.0.1:4200/api"


def status_of(call):
    with pytest.raises(docker.errors.APIError) as refused:
        call()
    return refused.value.response.status_code


def host_gateway(deploying, deployer, client):
    """The name by which a container reaches its host."""
    ask = {"network_mode": "bridge", "env": {"API": API}, "api_variables": ("API",)}
    _, log = deploying.run(*sh("echo $API; cat /etc/hosts"), deployer=deployer, **ask)
    name = "host.containers.internal" if deploying.podman else "host.docker.internal"
    address, *hosts = log.splitlines()
    assert address == f"http://{name}:4200/api"
    assert any(name in line.split()[1:] for line in hosts)
    assert ("host-gateway" in log) is False


def oom_killed(deploying, deployer, client):
    """The engine's mark of a kill for memory: a Podman of this age has none, so that the end is a kill by anybody."""
    spec = deploying.spec(*sh("tail /dev/zero"), memory=MEMORY)
    run = deploying.start(deployer, spec)
    end = deploying.end(run)
    assert (end.oom, end.ended_by) == ((False, EndedBy.UNKNOWN) if deploying.podman else (True, EndedBy.OOM))


def destroy(deploying, deployer, client):
    """The event of a removal."""
    began = time.time()
    run = deploying.start(deployer, deploying.spec("sleep", "600"))
    # Podman tells of the past only by a stream that stays open. `since`, as the engine answers before it listens
    told = client.api.events(since=began - 1, decode=True, filters={"type": "container"})
    seen = set()
    client.api.remove_container(run.handle["id"], force=True)
    for event in told:
        if event.get("id") == run.handle["id"] or (event.get("Actor") or {}).get("ID") == run.handle["id"]:
            seen.add(event["Action"])
        if seen & {"destroy", "remove"} or time.time() > began + 60:
            break
    told.close()
    assert ("remove" if deploying.podman else "destroy") in seen
    end = deploying.end(run)
    assert end.unknown or end.code == 137


def since(deploying, deployer, client):
    """What a stream tells of the time before it was opened: all, on both, where the time is given with its fraction."""
    began = time.time()
    spec = deploying.spec("true")
    deploying.end(deploying.start(deployer, spec))
    told = client.api.events(since=began - 1, decode=True, filters={"label": f"{FLEET}={deploying.fleet}"})
    # a later end, so that there is something to be told in any case
    deploying.run("true", deployer=deployer)
    dies = itertools.islice((event for event in told if event["Action"] in ("die", "died")), 1)
    (first,) = (event["Actor"]["Attributes"][CLAIM] for event in dies)
    told.close()
    assert first == spec.claim


def conflict(deploying, deployer, client):
    """What the engine answers where a name is taken, or a container still runs."""
    spec = deploying.spec("sleep", "600", name="taken")
    run = deploying.start(deployer, spec)
    expected = 500 if deploying.podman else 409
    assert status_of(lambda: client.api.create_container(deploying.busybox, "true", name="taken")) == expected
    assert status_of(lambda: client.api.remove_container(run.handle["id"])) == expected
    other = deploying.start(deployer, deploying.spec("true", name="taken"))
    assert other.handle["name"] == "taken-1"
    assert deploying.end(other).code == 0
    run.kill()
    deploying.end(run)


def ulimits(deploying, deployer, client):
    """Limits that a run asks for."""
    spec = deploying.spec(*sh("ulimit -n"), options={"ulimits": [{"Name": "nofile", "Soft": 512, "Hard": 512}]})
    if deploying.podman:
        # it then sets the number of processes as well, to more than this host lets it
        with pytest.raises(StartFailed, match="error setting rlimit"):
            deploying.start(deployer, spec)
    else:
        assert deploying.end(deploying.start(deployer, spec)).code == 0
        assert deploying.log(spec) == "512\n"
    assert deploying.containers(spec) == []


def init(deploying, deployer, client):
    """A process above the command, which ends zombies: Podman has it only where catatonit is installed."""
    _, log = deploying.run("cat", "/proc/1/comm", deployer=deployer)
    assert log == ("cat\n" if deploying.podman else "docker-init\n")
    assert deployer.engine.ping().has_init is not deploying.podman


def _copied_by_many_workers(deploying, deployer, **options):
    script = "for i in 1 2 3; do head -c 3000000 /dev/zero | tr '\\0' $i; sleep 0.4; printf 'at %s\\n' $i; done"
    spec = deploying.spec(*sh(script), options=options)
    run = deploying.start(deployer, spec)
    watcher = f"container-{run.container.id[:12]}"
    while run.poll() is None:
        time.sleep(0.1)  # a part of the stimulus: each worker copies some of it
        run.close()
        until(lambda: watcher not in {thread.name for thread in threading.enumerate()}, 20, "the copier to end")
        run = deploying.deployer().adopt(spec.folder)
        deploying.started.append(run)
    assert deploying.log(spec) == "".join(f"{str(number) * 3_000_000}at {number}\n" for number in (1, 2, 3))


def output(deploying, deployer, client):
    """The output that several workers copy one after the other: it is whole on both."""
    _copied_by_many_workers(deploying, deployer)


def terminal(deploying, deployer, client):
    """The same of a terminal: no time of the engine stands in it."""
    _copied_by_many_workers(deploying, deployer, tty=True)


DIFFERENCES = (host_gateway, oom_killed, destroy, since, conflict, ulimits, init, output, terminal)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.__name__)
def test_a_difference_is_as_it_is_told(deploying, difference):
    client = deploying.engine.client()
    try:
        difference(deploying, deploying.deployer(), client)
    finally:
        client.close()
    until(lambda: deploying.containers() == [], 20, "no container to be left")
