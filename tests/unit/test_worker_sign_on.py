"""Sign-on: whose name it is, and who has to be watched first."""

from __future__ import annotations

import dataclasses

import pytest

from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from tests.ledger_world import row
from workers.host import Host
from workers.lifecycle.sign_on import NameTaken, open_state, predecessor, sign_on
from workers.state.state_folder import state_root

HOST = Host(name="h", machine_id="m" * 32, boot_id="boot-1", pid_ns=1)


class FakeRoster:
    """A row that stands there, moving with each look or not, and the rows that were written."""

    def __init__(self, standing=None, *, moves=False, gone_after=None):
        self.standing = standing
        self.moves = moves
        self.gone_after = gone_after
        self.looks = 0
        self.written = []

    def sign_on(self, mine, over=None):
        if self.standing is None or self.standing == over or not self.standing.live:
            self.written.append(mine)
            return None
        return self.standing

    def rows(self):
        self.looks += 1
        if self.moves:
            self.standing = dataclasses.replace(self.standing, beat=self.standing.beat + 1)
        if self.gone_after is not None and self.looks > self.gone_after:
            self.standing = dataclasses.replace(self.standing, live=False)
        return [self.standing]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def signed(roster, **how):
    clock = Clock()
    sign_on(roster, row(nonce="mine"), clock=clock, wait=clock.sleep, **{"predecessor": None, **how})
    assert [one.nonce for one in roster.written] == ["mine"]
    return clock.now


def test_a_new_name_signs_on_at_once():
    assert signed(FakeRoster()) == 0


def test_our_own_dead_process_is_replaced_at_once_since_we_hold_its_lock():
    assert signed(FakeRoster(row(nonce="old")), predecessor="old") == 0


def test_another_process_of_this_name_is_watched_and_replaced_when_it_is_silent():
    assert signed(FakeRoster(row(nonce="other")), predecessor="old") == pytest.approx(20, abs=1)


def test_it_is_watched_for_the_leaders_ttl():
    assert signed(FakeRoster(row(nonce="other")), watch_seconds=60) == pytest.approx(60, abs=1)


def test_another_process_that_signs_off_meanwhile_is_not_waited_for():
    assert signed(FakeRoster(row(nonce="other"), gone_after=3)) < 5


def test_another_process_that_moves_keeps_its_name():
    roster = FakeRoster(row(nonce="other"), moves=True)
    with pytest.raises(NameTaken, match=r"w@h is alive in this fleet, give this one another --name") as caught:
        signed(roster)
    assert caught.value.exit_code == 2
    assert roster.written == []


def settings(folder, **changes):
    return WorkerSettings(host="h", state_dir=folder, **changes)


def test_the_state_folder_is_locked_for_life(tmp_path):
    state = open_state(settings(tmp_path), HOST, {})
    clock = Clock()
    with pytest.raises(NameTaken, match="--name"):
        open_state(settings(tmp_path), HOST, {}, clock=clock, wait=clock.sleep)
    other = open_state(settings(tmp_path, name="second"), HOST, {})
    state.close()
    other.close()
    open_state(settings(tmp_path), HOST, {}).close()


def test_a_sibling_that_looks_through_our_folder_is_waited_for(tmp_path):
    sibling = open_state(settings(tmp_path), HOST, {})
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            sibling.close()

    open_state(settings(tmp_path), HOST, {}, clock=lambda: 0.0, wait=wait).close()
    assert len(waits) == 3


def test_only_a_predecessor_of_this_boot_is_certainly_dead(tmp_path):
    state = open_state(settings(tmp_path), HOST, {})
    assert predecessor(state, HOST) is None
    state.remember(boot_id="boot-1", nonce="old")
    assert predecessor(state, HOST) == "old"
    assert predecessor(state, dataclasses.replace(HOST, boot_id="boot-2")) is None
    state.close()


def test_the_state_folder_is_found_by_option_or_by_xdg_or_at_home(tmp_path):
    assert state_root(settings(tmp_path), {}) == tmp_path
    bare = WorkerSettings(host="h")
    assert str(state_root(bare, {"XDG_STATE_HOME": "/s", "HOME": "/h"})) == "/s/flowfleet"
    assert str(state_root(bare, {"HOME": "/h"})) == "/h/.local/state/flowfleet"


def test_a_state_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="name another with --state-dir"):
        open_state(settings(tmp_path / "file"), HOST, {})
