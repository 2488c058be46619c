"""Fixtures of the container tests: one private Docker engine for a session."""

import os
import shutil

import pytest

from tests.container_engine import DockerEngine
from tests.containers.deploying import Deploying
from tests.needs import need


@pytest.fixture(scope="session")
def engine():
    need(os.geteuid() == 0, "root, to bring up a container engine")
    need(shutil.which("dockerd") or shutil.which("apt-get"), "dockerd, or Debian's apt-get to install it")
    with DockerEngine.private() as made:
        yield made


@pytest.fixture
def deploying(engine, tmp_path):
    made = Deploying(engine, tmp_path)
    yield made
    made.close()
