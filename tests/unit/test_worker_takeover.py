"""Takeover: whose run it is when several names of one host have been at it, told by the disk alone."""

import os
import time

import pytest

from workers.runs.takeover import Takeover
from workers.state.pruner import Pruner
from workers.state.state_folder import StateFolder

ROUTE = "prefect3/11111111-1111-4111-8111-111111111111/default"


class Host:
    """State folders of one machine."""

    def __init__(self, root):
        self.root = root

    def open(self, name, *, boot="boot-1", host="h"):
        state = StateFolder.open(self.root, "machine", name)
        state.remember(boot_id=boot, nonce=f"n-{name}", fleet="f", api="http://api", worker=f"{name}@{host}")
        return state

    def run(self, state, run_id="r", **facts):
        return state.runs.create(run_id, "c", {"route": ROUTE, "fleet": "f", "api": "http://api", **facts})

    def dead(self, *, boot="boot-1", host="h", **facts):
        """The folder of a run whose worker is dead."""
        state = self.open("dead", boot=boot, host=host)
        folder = self.run(state, **facts)
        state.close()
        return folder

    def kept(self, state=None, *, may_live=False, scopes=frozenset()):
        takeover = Takeover(
            own=state or self.open("own"), worker="own@h", fleet="f", api="http://api", scopes=frozenset(scopes),
            take_reports=lambda outbox: len(list(outbox)), may_live=lambda _last: may_live,
        )  # fmt: skip
        return {(folder.state_folder.name, folder.key) for folder in takeover.take_over()}


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_a_run_goes_on_to_a_third_name_when_its_keeper_dies_and_not_while_it_lives(host):
    host.dead()
    second = host.open("second")
    assert host.kept(second) == {("dead", "r.c")}
    first = host.open("dead")
    assert host.kept(first) == set()
    second.close()
    assert host.kept(host.open("third")) == {("dead", "r.c")}


def test_a_keeper_whose_folder_was_removed_keeps_nothing(host):
    first = host.open("first")
    host.run(first).keep_for("nobody")
    assert host.kept(first) == {("first", "r.c")}


def test_a_run_that_was_begun_under_another_host_name_has_its_worker_named_as_its_keeper(host):
    own = host.open("own")
    before, ours = host.run(own, "before", worker="own@before"), host.run(own, "ours", worker="own@h")
    assert host.kept(own) == {("own", "before.c"), ("own", "ours.c")}
    assert [folder.changed_hands() for folder in (before, ours)] == [True, False]


@pytest.mark.parametrize(
    ("facts", "scopes", "taken"),
    [
        ({"fleet": "other"}, (), False),
        ({"api": "http://other"}, (), False),
        ({"api": "http://other"}, (ROUTE.rpartition("/")[0],), True),
        ({}, (), True),
    ],
)
def test_only_runs_of_our_fleet_and_our_api_are_taken_over(host, facts, scopes, taken):
    host.dead(**facts)
    assert bool(host.kept(scopes=scopes)) is taken


def test_what_is_settled_stays_where_it_is(host):
    host.dead().settle()
    assert host.kept() == set()


@pytest.mark.parametrize("may_live", [True, False])
def test_of_another_boot_only_what_no_living_worker_may_have_is_taken(host, may_live):
    host.dead(boot="boot-0")
    assert bool(host.kept(may_live=may_live)) is not may_live


def test_what_a_worker_of_another_host_name_has_left_stays_with_it_for_it_may_be_another_container(host):
    folder = host.dead(host="container-2")
    assert host.kept() == set()
    assert folder.keeper() == "dead"


def settled(host, state, run_id, *, days_ago):
    folder = host.run(state, run_id)
    folder.settle()
    then = time.time() - days_ago * 86400
    os.utime(folder.path / "settled", (then, then))
    return folder


def test_old_outputs_of_a_name_that_does_not_come_back_are_pruned_and_a_living_ones_are_its_own(host):
    dead, living, own = host.open("dead"), host.open("living"), host.open("own")
    old = [settled(host, state, "old", days_ago=8) for state in (dead, living, own)]
    new = settled(host, dead, "new", days_ago=1)
    kept_by_us = host.run(dead, "open")
    dead.close()
    pruner = Pruner(own, keep_days=7, keep_bytes=1 << 30, busy=frozenset)
    assert pruner.prune() == ["old.c", "old.c"]
    assert [folder.path.exists() for folder in old] == [False, True, False]
    assert new.path.exists()
    assert kept_by_us.path.exists()
    host.open("dead").close()  # its lock is free again
