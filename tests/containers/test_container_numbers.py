"""Containers in numbers: kills for memory, a flood, a start beside `docker run -d`; `make stress` has them whole."""

import os
import random
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.container_engine import BUSYBOX
from tests.containers.deploying import Deploying, sh
from tests.waiting import until

LANES = 3
MEMORY = 32 << 20
SEED = 20261130
#: what a start may cost beside that of the `docker` command: so many times as much, or so many seconds more
TIMES, MORE_SECONDS = 1.15, 0.05


@pytest.fixture
def docker(engine, tmp_path):
    made = Deploying(engine, tmp_path)
    yield made
    made.close()


def ends_of(deploying, kinds, end_of):
    """How often each kind of end was told as whose, a few of them at once."""
    with ThreadPoolExecutor(LANES) as pool:
        ends = list(pool.map(end_of, kinds))
    found = Counter((kind, end.ended_by.value) for kind, end in zip(kinds, ends, strict=True))
    print(f"\nseed {SEED}, ends told: {dict(sorted(found.items()))}")
    assert deploying.containers() == []
    return found


SLOW, STRESS = pytest.mark.slow, pytest.mark.stress


@pytest.mark.parametrize("number", [pytest.param(6, marks=SLOW), pytest.param(32, marks=STRESS)])
def test_no_kill_for_memory_is_missed(docker, number):
    deployer = docker.deployer()
    told = ends_of(
        docker, ["oom"] * number, lambda _: docker.run("tail", "/dev/zero", deployer=deployer, memory=MEMORY)[0]
    )
    assert told == {("oom", "oom"): number}


@pytest.mark.parametrize("each", [pytest.param(2, marks=SLOW), pytest.param(25, marks=STRESS)])
def test_no_other_kill_is_told_as_one_for_memory(docker, each):
    deployer = docker.deployer()

    def killed(script, after=0.0):
        spec = docker.spec(*sh(script), memory=MEMORY)
        run = docker.start(deployer, spec)
        until(lambda: "ready" in docker.log(spec), 60, "it to be ready")
        time.sleep(after)
        client = docker.engine.client()
        pid = client.api.inspect_container(run.handle["id"])["State"]["Pid"]
        client.close()
        os.kill(pid, signal.SIGKILL)
        return docker.end(run, 60)

    def end_of(kind):
        if kind == "child, then killed":
            return killed("sh -c 'tail /dev/zero'; echo ready; sleep 60", after=2.0)
        if kind == "child, then 137":
            return docker.run(*sh("sh -c 'tail /dev/zero'; sleep 2; exit 137"), deployer=deployer, memory=MEMORY)[0]
        if kind == "beside another":
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(docker.run, "tail", "/dev/zero", deployer=deployer, memory=MEMORY)
                end = killed("echo ready; sleep 60")
                assert other.result()[0].oom
            return end
        return killed("echo ready; sleep 60")

    kinds = ["child, then killed", "child, then 137", "beside another", "killed"] * each
    random.Random(SEED).shuffle(kinds)
    # of a container nobody sees who has sent a KILL, and a shell may exit 137 by itself
    told = ends_of(docker, kinds, end_of)
    assert {kind for kind, _ in told} == set(kinds)
    assert not any(whose == "oom" for _, whose in told)


@pytest.mark.stress
def test_a_flood_of_200_mb_is_cut_and_its_end_is_whole(docker):
    limit = 50_000_000
    deployer = docker.deployer()
    spec = docker.spec(
        *sh("yes 0123456789012345678901234567890123456789 | head -n 5000000; echo last"), log_limit=limit
    )
    began = time.monotonic()
    run = docker.start(deployer, spec)
    assert docker.end(run, 600).code == 0
    log = spec.folder / "log"
    print(f"\n200 MB of output: {time.monotonic() - began:.0f} s, {log.stat().st_blocks * 512 / 1e6:.0f} MB are kept")
    assert log.stat().st_blocks * 512 <= limit + (2 << 20)
    with log.open("rb") as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == b"last\n"


# -- a start beside that of the `docker` command


class Starts:
    """When the engine began each container, by its own events."""

    def __init__(self, engine):
        self._client = engine.client()
        self._events = self._client.api.events(decode=True, filters={"type": "container", "event": "start"})
        self.seen = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for event in self._events:
            self.seen[event["Actor"]["ID"]] = event["timeNano"] / 1e9

    def of(self, container):
        return until(lambda: self.seen.get(container), 30, "the event of a start")

    def close(self):
        self._events.close()
        self._client.close()


@pytest.mark.slow
def test_a_start_costs_no_more_than_that_of_the_docker_command(docker, engine, tmp_path):
    command = shutil.which("docker", path=f"{os.environ['PATH']}:/usr/bin")
    assert command, "the package docker.io has it"
    deployer, starts = docker.deployer(), Starts(engine)
    client = engine.client()
    took = {"flowfleet": [], "docker run -d": []}
    try:
        for number in range(21):
            spec = docker.spec("sleep", "600")
            began = time.time()
            deployer.prepare(spec, lambda: True)
            run = docker.start(deployer, spec)
            ours = starts.of(run.handle["id"]) - began
            run.kill()
            docker.end(run)

            argv = [command, "-H", engine.url, "run", "-d", "--init", "--network", "host", BUSYBOX, "sleep", "600"]
            began = time.time()
            made = subprocess.run(
                argv, capture_output=True, text=True, check=True, env={**os.environ, "DOCKER_CONFIG": str(tmp_path)}
            )
            theirs = starts.of(made.stdout.strip()) - began
            client.api.remove_container(made.stdout.strip(), force=True)
            if number:  # the first pair fills the caches of both
                took["flowfleet"].append(ours)
                took["docker run -d"].append(theirs)
    finally:
        starts.close()
        client.close()
    ours, theirs = (statistics.median(took[name]) for name in ("flowfleet", "docker run -d"))
    print(
        f"\nmedian of 20 alternating pairs, from the call to the start: ours {ours:.3f} s, docker run -d {theirs:.3f} s"
    )
    assert ours <= max(theirs * TIMES, theirs + MORE_SECONDS)
