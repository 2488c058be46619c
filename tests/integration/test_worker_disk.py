"""A worker whose disk is full: no end is lost, and none waits for another."""

import errno
import os

import pytest

from tests.waiting import until
from workers import background as background_module
from workers.reporting import endings as endings_module
from workers.shim import atomic_files


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(endings_module, "DISK_SECONDS", 0.2)
    monkeypatch.setattr(background_module, "backoff", lambda _tries, **_: 0.05)


class FullDisk:
    """No report of this run can be kept until there is room again."""

    def __init__(self, outbox, run_id):
        self.outbox, self.run_id, self.refused = outbox, run_id, 0
        self.put, outbox.put = outbox.put, self

    def __call__(self, run_id, claim, report):
        if run_id == self.run_id:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.put(run_id, claim, report)

    def empty(self):
        self.outbox.put = self.put


def test_a_report_that_finds_no_room_holds_no_other_up_and_is_told_once_there_is_room(world, service):
    full, other = (world.begin(code, gate=str(code)) for code in (3, 4))
    disk = FullDisk(world.state.outbox, full.run_id)
    world.release("3")
    until(lambda: disk.refused, 10, "the first try")
    world.release("4")
    world.wait_gone(other)
    tried = disk.refused
    until(lambda: disk.refused > tried + 3, 20, "more tries")
    assert world.ledger.claims.get(full.run_id).state == "ended"
    disk.empty()
    world.wait_gone(full)

    assert "exited with code 3" in world.told(full)
    assert "exited with code 4" in world.told(other)


def test_while_the_api_is_away_one_report_without_room_leaves_the_others_kept(world, service):
    full, other = (world.begin(code, gate=str(code)) for code in (3, 4))
    disk = FullDisk(world.state.outbox, full.run_id)
    world.api.fail("", "status", times=-1, status=503)
    world.release("3")
    until(lambda: disk.refused, 30, "the first try")
    world.release("4")
    (kept,) = until(lambda: list(world.state.outbox), 90, "the other report to be on disk")
    assert kept["run_id"] == other.run_id
    world.api.heal()
    disk.empty()
    world.wait_gone(full, 60)
    world.wait_gone(other, 60)

    assert "exited with code 3" in world.told(full)


class NoRoomToStart:
    """No start file can be written by the worker until there is room again."""

    def __init__(self, monkeypatch):
        self.full, self.refused, self.create = True, 0, atomic_files.create_once
        monkeypatch.setattr(atomic_files, "create_once", self)

    def __call__(self, path, record):
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.create(path, record)


def test_a_start_that_fails_on_a_full_disk_gives_claim_and_slot_back_once_there_is_room(world, service, monkeypatch):
    disk = NoRoomToStart(monkeypatch)
    message = world.claim(world.create("no-such-program"))
    world.publisher.publish(message)
    until(lambda: disk.refused > 3, 20, "more tries")
    assert world.ledger.claims.get(message.run_id).state == "starting"
    disk.full = False
    until(lambda: world.ledger.claims.get(message.run_id) is None, 10, "the claim to be handed back")
    world.wait_handed_back(message)

    assert world.api.state(message.run_id)["type"] == "SCHEDULED"
