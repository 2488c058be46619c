"""Fixtures that several unit tests share."""

from __future__ import annotations

import pytest

from tests.unit.poller_world import World


@pytest.fixture
def world() -> World:
    """One worker of four slots."""
    world = World()
    world.roster.add()
    return world
