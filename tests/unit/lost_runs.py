"""Runs that the leader does not hear of any more: words for its unit tests."""

import uuid

from flowfleet.api.client import StateType
from flowfleet.ledger.claims import State
from tests.unit.memory_ledger import a_claim
from tests.unit.poller_world import World

TTL, GRACE = 20.0, 120.0
WORKER = "worker@a"


def started(world: World, name: str = "run", *, worker: str = WORKER, **facts: object) -> str:
    """A run of this worker that the API and the ledger show as running."""
    run_id = world.api.add(name=name)
    world.api.be(run_id, StateType.RUNNING, "Running")
    given = {"worker": worker, "boot_id": "boot-1", "machine": "m"} | facts
    world.claims.by_run[run_id] = a_claim(run_id, claim=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), **given)
    return run_id


def lonely(**facts: object) -> tuple[World, str]:
    """A world whose one worker falls silent, and its one run."""
    world = World.of(boot_id="boot-1", machine="m")
    world.rounds(2.0)
    return world, started(world, **facts)


def state(world: World, run_id: str) -> State | None:
    claim = world.claims.get(run_id)
    return claim.state if claim else None
