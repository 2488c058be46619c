"""Fixtures of the container tests: one private Docker engine for a session."""

import os
import shutil

import pytest

from tests.container_engine import DockerEngine, PodmanEngine
from tests.containers.deploying import Deploying
from tests.needs import need


@pytest.fixture(scope="session")
def engine():
    need(os.geteuid() == 0, "root, to bring up a container engine")
    need(shutil.which("dockerd") or shutil.which("apt-get"), "dockerd, or Debian's apt-get to install it")
    with DockerEngine.private() as made:
        yield made


@pytest.fixture(scope="session")
def podman():
    need(os.geteuid() == 0, "root, to bring up a container engine")
    need(shutil.which("podman") or shutil.which("apt-get"), "podman, or Debian's apt-get to install it")
    with PodmanEngine.private() as made:
        yield made


@pytest.fixture(params=["docker", "podman"])
def deploying(request, tmp_path):
    """On both engines; what differs on Podman is said in the test."""
    made = Deploying(request.getfixturevalue({"docker": "engine"}.get(request.param, request.param)), tmp_path)
    yield made
    made.close()


@pytest.fixture
def deployer(deploying):
    return deploying.deployer()


@pytest.fixture
def client(deploying):
    made = deploying.engine.client()
    yield made
    made.close()
