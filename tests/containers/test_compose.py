"""compose/: images built from the clone, and a whole fleet brought up, with runs as processes and as containers."""

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest

from tests.container_engine import BUSYBOX, PYTHON, install
from tests.valkey import free_port
from tests.waiting import SCALE, until
from tests.world import World

ROOT = Path(__file__).parents[2]
PARTS = ("redis", "poller", "worker", "worker-docker")


class Compose:
    """One project of compose in a folder of its own."""

    def __init__(self, folder, engine, env):
        self.folder = folder
        self.project = f"fft{uuid.uuid4().hex[:8]}"
        self.made = folder / "compose" / ".env"
        self.env = {
            # it is no part of the make that may run these tests
            **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
            "DOCKER_HOST": engine.url,
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
            "COMPOSE_PROJECT_NAME": self.project,
            **env,
        }

    def __call__(self, *argv):
        file = str(self.folder / "compose" / "compose.yaml")
        return self.run("docker-compose", "-f", file, "--env-file", str(self.made), *argv)

    def run(self, *argv, seconds=300):
        done = subprocess.run(
            argv,
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds * SCALE,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    @property
    def password(self):
        (line,) = [line for line in self.made.read_text().splitlines() if line.startswith("REDIS_PASSWORD=")]
        return line.partition("=")[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Our wheel with all that it needs, and prefect for flows; nothing is fetched while an image is built."""
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("flowfleet-*.whl")
    venv = tmp_path_factory.mktemp("pip")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run(
        [str(venv / "bin" / "pip"), "download", "-q", "-d", str(folder), f"{wheel}[docker]", "prefect>=3.4,<4"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def redis_image(engine):
    """Debian's Redis in an image."""
    install(("redis-server",))
    return engine.image_of("redis:test", [shutil.which("redis-server"), shutil.which("redis-cli")])


@pytest.fixture
def compose(tmp_path, engine, wheels, redis_image, prefect_server):
    install(("docker-compose",))
    shutil.copytree(ROOT / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns(".env"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(wheels, tmp_path / "wheels")
    (wheel,) = (tmp_path / "wheels").glob("flowfleet-*.whl")
    made = Compose(
        tmp_path,
        engine,
        {
            "FLOWFLEET_IMAGE": "flowfleet:test",
            "FLOWFLEET_BASE": PYTHON,
            "FLOWFLEET_PACKAGE": f"flowfleet[docker] @ file:///src/wheels/{wheel.name}",
            "FLOWFLEET_PIP_OPTIONS": "--no-index --find-links /src/wheels",
            "REDIS_IMAGE": redis_image,
            "REDIS_PORT": str(free_port()),
            "POLLER_PORT": str(free_port()),
            "WORKER_PORT": str(free_port()),
            "WORKER_DOCKER_PORT": str(free_port()),
            "PREFECT_API_URL": prefect_server.api_url,
            "FLOWFLEET_FLEET": f"compose-{uuid.uuid4().hex[:8]}",
            "FLOWFLEET_POOL": f"pool-{uuid.uuid4().hex[:8]}",
            "FLOWFLEET_DOCKER_POOL": f"containers-{uuid.uuid4().hex[:8]}",
            "DOCKER_SOCKET": str(engine.socket),
            "DOCKER_GROUP": str(engine.socket.stat().st_gid),
        },
    )
    yield made
    if made.made.exists():
        made("--profile", "docker", "down", "-v", "-t", "5")


FLOW = """
from prefect import flow

@flow(log_prints=True)
def go(word: str):
    print("a flow says", word)
"""


def put(engine, container, folder, name, text):
    """A file of this text in that container, as `docker cp` puts it there."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.uid, info.gid = len(text), 4200, 4200
        tar.addfile(info, io.BytesIO(text.encode()))
    client = engine.client()
    client.api.put_archive(container, folder, data.getvalue())
    client.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the wheels, the engine and the images are made for it
def test_a_fleet_that_compose_brings_up_runs_flows_in_both_ways(compose, tmp_path, prefect_server, engine):
    compose.run("make", "compose-up", seconds=600)
    assert compose.made.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch("[0-9a-f]{32}", compose.password)
    compose("--profile", "docker", "up", "-d", "worker-docker")
    env = compose.env
    world = World(
        tmp_path / "world",
        prefect_server.api_url,
        f"redis://:{compose.password}@127.0.0.1:{env['REDIS_PORT']}/0",
        fleet=env["FLOWFLEET_FLEET"],
    )
    for pool in (env["FLOWFLEET_POOL"], env["FLOWFLEET_DOCKER_POOL"]):
        until(lambda pool=pool: world.api.pool(pool), 60, f"pool {pool}")

    # a real flow, by the prefect of the image
    put(engine, compose("ps", "-q", "worker").strip(), "/var/lib/flowfleet", "flow_of_compose.py", FLOW)
    deployment = world.api.deploy("flow", env["FLOWFLEET_POOL"], "flow_of_compose.py:go", "/var/lib/flowfleet")
    run_id = world.create_run(deployment, parameters={"word": "hello"})
    world.wait_state(run_id, "Completed", seconds=120)
    assert "a flow says hello" in compose("exec", "-T", "worker", "flowfleet", "logs", run_id)

    variables = {"command": "sh -c 'echo hello; exit 3'", "image": BUSYBOX}
    deployment = world.api.deploy("d", env["FLOWFLEET_DOCKER_POOL"], "none.py:go", "/", job_variables=variables)
    run_id = world.create_run(deployment)
    assert "exited with code 3" in world.wait_state(run_id, "Crashed", seconds=60)["message"]
    workers = {f"{row['name']}@{row['host']}": row["state"] for row in world.status()["workers"]}
    assert workers == {"worker@compose": "active", "docker@compose-docker": "active"}

    # a container that is made anew finds what the one before it had begun
    deployment = world.api.deploy(
        "long",
        env["FLOWFLEET_DOCKER_POOL"],
        "none.py:go",
        "/",
        job_variables={"command": "sh -c 'sleep 20; exit 4'", "image": BUSYBOX},
    )
    run_id = world.create_run(deployment)
    until(lambda: any(run["state"] == "running" for run in world.seen()["runs"]), 60, "the run to begin")
    compose("--profile", "docker", "up", "-d", "--force-recreate", "--no-deps", "worker-docker")
    state = world.wait_state(run_id, "Crashed", seconds=90)
    assert "exited with code 4" in state["message"]
    until(lambda: "healthy" in compose("--profile", "docker", "ps"), 60, "the parts to call themselves well")
    for part in PARTS:
        assert compose.password not in compose("--profile", "docker", "logs", part)
