"""Clone: a state folder that was last used under another boot id, and who still moves with its nonce."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ledger_world import row
from workers.host import Host
from workers.lifecycle.sign_on import NameTaken, dead_predecessor
from workers.state.state_folder import StateFolder

BEFORE = Host(name="a", machine_id="m" * 32, boot_id="boot-1", pid_ns=1)
NOW = dataclasses.replace(BEFORE, boot_id="boot-2")


class FakeRoster:
    """Rows of which one moves with each look."""

    def __init__(self, *rows, moving=None):
        self._rows = list(rows)
        self._moving = moving
        self.looks = 0

    def rows(self):
        self.looks += 1
        self._rows = [
            dataclasses.replace(one, beat=one.beat + (one.worker == self._moving), nonce=one.nonce)
            for one in self._rows
        ]
        return self._rows


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def state(tmp_path):
    made = StateFolder.open(tmp_path, "m" * 32, "w")
    made.remember(boot_id="boot-1", nonce="old", worker="w@a")
    yield made
    made.close()


def watched(roster, state, host=NOW, worker="w@b"):
    clock = Clock()
    found = dead_predecessor(roster, state, host, worker, watch_seconds=30, clock=clock, wait=clock.sleep)
    return found, clock.now


def test_the_first_start_in_a_folder_watches_nobody(tmp_path):
    fresh = StateFolder.open(tmp_path, "m" * 32, "w")
    assert watched(FakeRoster(row("w@a", nonce="old"), moving="w@a"), fresh) == (None, 0)
    fresh.close()


def test_under_the_same_boot_the_lock_is_proof_enough(state):
    assert watched(FakeRoster(row("w@a", nonce="old"), moving="w@a"), state, BEFORE) == ("old", 0)


def test_after_a_restart_of_the_host_the_old_process_is_watched_once_and_silent(state):
    found, seconds = watched(FakeRoster(row("w@a", nonce="old"), row("x@c", nonce="n"), moving="x@c"), state)
    assert found == "old"
    assert seconds == pytest.approx(30, abs=1)


def test_a_process_that_lapsed_or_signed_off_needs_no_watching(state):
    gone = dataclasses.replace(row("w@a", nonce="old"), live=False)
    assert watched(FakeRoster(gone), state) == ("old", 0)


@pytest.mark.parametrize("nonce", ["old", "of a later start"])
def test_a_clone_of_a_living_machine_is_refused_with_the_folder_and_the_remedies(state, nonce):
    with pytest.raises(NameTaken) as caught:
        watched(FakeRoster(row("w@a", nonce=nonce), moving="w@a"), state)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in (str(state.path), "w@a", "--name", "--state-dir"))


def test_our_own_name_is_left_to_the_sign_on(state):
    """A later process that has our name is no sign of a clone: it may be this folder's own, on this host."""
    assert watched(FakeRoster(row("w@a", nonce="later"), moving="w@a"), state, worker="w@a") == ("old", 0)
