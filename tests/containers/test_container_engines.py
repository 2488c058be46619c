"""Which engine a worker asks: by option, variable, context of the `docker` command, or the socket that is there."""

import os
import shutil
import socket
import subprocess

import pytest

from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from tests.container_engine import DockerEngine
from workers.containers.engine import Engine, usual_socket
from workers.deployers.registry import check_wishes


@pytest.fixture
def command(tmp_path, monkeypatch, engine):
    """The `docker` command with a configuration of its own."""
    program = shutil.which("docker")
    assert program, "the package docker.io has it"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv):
        subprocess.run([program, *argv], check=True, capture_output=True)

    return run


def test_the_current_context_of_the_docker_command_is_asked(command, engine: DockerEngine):
    command("context", "create", "ours", "--docker", f"host={engine.url}")
    command("context", "use", "ours")
    found = Engine(None, {})
    assert found.address == engine.url
    assert found.ping().product == "docker"
    assert found.shares_files()


def test_docker_host_wins_over_a_context_and_the_option_over_both(command, engine: DockerEngine):
    command("context", "create", "dead", "--docker", "host=tcp://127.0.0.1:9")
    command("context", "use", "dead")
    assert Engine(None, {}).address == "tcp://127.0.0.1:9"
    assert not Engine(None, {}).shares_files()
    assert Engine(None, {"DOCKER_HOST": engine.url}).ping().product == "docker"
    assert Engine(engine.url, {"DOCKER_HOST": "tcp://127.0.0.1:9"}).ping().product == "docker"


def test_rootless_engines_are_found_by_their_sockets(tmp_path, monkeypatch):
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    monkeypatch.setattr(
        "workers.containers.engine._SOCKETS", ("/no/docker.sock", "{runtime}/d.sock", "{runtime}/p.sock")
    )
    assert usual_socket(environ) == "unix:///no/docker.sock"
    with socket.socket(socket.AF_UNIX) as podman, socket.socket(socket.AF_UNIX) as docker:
        podman.bind(str(tmp_path / "p.sock"))
        assert usual_socket(environ) == f"unix://{tmp_path}/p.sock"
        docker.bind(str(tmp_path / "d.sock"))
        assert usual_socket(environ) == f"unix://{tmp_path}/d.sock"


def test_podmans_socket_is_asked_as_dockers(podman):
    found = Engine(podman.url, {})
    assert found.ping().product == "podman"
    assert not found.ping().rootless


def test_what_the_engine_would_refuse_to_each_run_is_refused_at_the_start(deploying):
    engine = deploying.deployer().engine
    there = engine.facts().cpus
    assert there == os.cpu_count()
    check_wishes(WorkerSettings(cpus=there, networks=("bridge", "host", "container:x")), engine)
    with pytest.raises(SettingsError, match=f"--cpus {there + 1} is more than the {there} processors of the engine"):
        check_wishes(WorkerSettings(cpus=there + 1), engine)
    with pytest.raises(SettingsError, match="--network nowhere is not there: make it with docker network create"):
        check_wishes(WorkerSettings(networks=("bridge", "nowhere")), engine)
