"""Fixtures of the chaos suite: fleets on an API that takes every state from everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lawless_api import LawlessApi
from tests.valkey import Valkey
from tests.world import World


@pytest.fixture
def make_lawless(valkey: Valkey, tmp_path: Path) -> Iterator[Callable[[], World]]:
    """As many fleets as a test wants, each with a lawless API of its own as `world.lawless`."""
    made: list[tuple[World, LawlessApi]] = []

    def make() -> World:
        api = LawlessApi().start()
        folder = tmp_path / f"world{len(made)}"
        folder.mkdir()
        world = World(folder, api.api_url, valkey.tcp_url)
        made.append((world, api))
        return world

    try:
        yield make
        for world, _ in made:
            world.close()
    finally:
        for _, api in made:
            api.stop()


@pytest.fixture
def lawless(make_lawless: Callable[[], World]) -> World:
    """One such fleet."""
    return make_lawless()
