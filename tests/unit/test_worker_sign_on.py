"""Sign-on: whose name it is, and who has to be watched first, on this host or under another boot of it."""

import dataclasses
from pathlib import Path

import pytest

from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from tests.ledger_world import row
from tests.unit.memory_ledger import HandClock, MemoryLedger
from workers.host import Host
from workers.lifecycle.sign_on import NameTaken, dead_predecessor, open_state, sign_on
from workers.state.state_folder import StateFolder, state_root

HOST = Host(name="h", machine_id="m" * 32, boot_id="boot-1", pid_ns=1)
REBOOTED = dataclasses.replace(HOST, boot_id="boot-2")


class Watch:
    """A roster, and a clock that lets its living workers beat as it goes."""

    def __init__(self, *, alive=(), leaves_at=None):
        self.roster, self.clock = MemoryLedger().roster, HandClock(0.0)
        self.alive, self.leaves_at = alive, leaves_at

    def sleep(self, seconds):
        self.clock.sleep(seconds)
        for worker in self.alive:
            self.roster.beat(worker)
        if self.leaves_at is not None and self.clock.now > self.leaves_at:
            self.roster.change("w@h", live=False)

    def sign_on(self, **how):
        """The seconds that it took."""
        how = {"predecessor": None, "clock": self.clock, "wait": self.sleep, **how}
        sign_on(self.roster, row("w@h", nonce="mine"), **how)
        assert self.roster.table["w@h"].nonce == "mine"
        return self.clock.now

    def dead(self, state, host=REBOOTED, worker="w@b"):
        """The nonce of the dead predecessor, and the seconds that it took."""
        how = {"watch_seconds": 30, "clock": self.clock, "wait": self.sleep}
        return dead_predecessor(self.roster, state, host, worker, **how), self.clock.now


@pytest.mark.parametrize(
    ("standing", "how", "seconds"),
    [
        pytest.param(None, {}, 0, id="at once with a new name"),
        pytest.param("old", {"predecessor": "old"}, 0, id="at once over our own dead process, whose lock we hold"),
        pytest.param("other", {"predecessor": "old"}, 20, id="over another one, when it was silent while watched"),
        pytest.param("other", {"watch_seconds": 60}, 60, id="the same, watched for the leader's TTL"),
        pytest.param("leaves", {}, 1.5, id="at once when the other signs off meanwhile"),
    ],
)
def test_a_worker_signs_on(standing, how, seconds):
    watch = Watch(leaves_at=1.4 if standing == "leaves" else None)
    if standing:
        watch.roster.add("w@h", nonce=standing)
    assert watch.sign_on(**how) == pytest.approx(seconds, abs=min(seconds, 1))


def test_another_process_that_moves_keeps_its_name():
    watch = Watch(alive=["w@h"])
    watch.roster.add("w@h", nonce="other")
    with pytest.raises(NameTaken, match=r"w@h is alive in this fleet; give this one another --name") as caught:
        watch.sign_on()
    assert caught.value.exit_code == 2
    assert watch.roster.table["w@h"].nonce == "other"


# under another boot


@pytest.fixture
def used(tmp_path):
    """A state folder that w@a has used under the first boot."""
    made = StateFolder.open(tmp_path, "m" * 32, "w")
    made.remember(boot_id="boot-1", nonce="old", worker="w@a")
    yield made
    made.close()


def test_the_first_start_in_a_folder_watches_nobody(tmp_path):
    fresh, watch = StateFolder.open(tmp_path, "m" * 32, "w"), Watch(alive=["w@a"])
    watch.roster.add("w@a", nonce="old")
    assert watch.dead(fresh) == (None, 0)
    fresh.close()


@pytest.mark.parametrize(
    ("facts", "alive", "how", "seconds"),
    [
        pytest.param({}, "w@a", {"host": HOST}, 0, id="its lock is proof enough under the same boot"),
        pytest.param({}, "x@c", {}, 30, id="it was watched, and silent, after a restart of the host"),
        pytest.param({"live": False}, "x@c", {}, 0, id="it lapsed or signed off"),
        # it may be this folder's own, on this host: no sign of a clone
        pytest.param({"nonce": "later"}, "w@a", {"worker": "w@a"}, 0, id="the sign-on deals with our own name"),
    ],
)
def test_the_process_before_us_is_dead_since(used, facts, alive, how, seconds):
    watch = Watch(alive=[alive])
    watch.roster.add("w@a", **{"nonce": "old", **facts})
    watch.roster.add("x@c", nonce="n")
    assert watch.dead(used, **how) == ("old", pytest.approx(seconds, abs=min(seconds, 1)))


@pytest.mark.parametrize("nonce", ["old", "of a later start"])
def test_a_clone_of_a_living_machine_is_refused_with_the_folder_and_the_remedies(used, nonce):
    watch = Watch(alive=["w@a"])
    watch.roster.add("w@a", nonce=nonce)
    with pytest.raises(NameTaken) as caught:
        watch.dead(used)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in (str(used.path), "w@a", "--name", "--state-dir"))


# the state folder


def settings(folder, **changes):
    return WorkerSettings(host="h", state_dir=folder, **changes)


def test_the_state_folder_is_locked_for_life(tmp_path):
    state = open_state(settings(tmp_path), HOST, {})
    clock = HandClock()
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


def test_the_state_folder_is_found_by_option_or_by_xdg_or_at_home_and_one_that_cannot_be_made_is_named(tmp_path):
    assert state_root(settings(tmp_path), {}) == tmp_path
    assert state_root(settings(Path("here")), {}) == Path.cwd() / "here", "shims have another folder"
    bare = WorkerSettings(host="h")
    assert str(state_root(bare, {"XDG_STATE_HOME": "/s", "HOME": "/h"})) == "/s/flowfleet"
    assert str(state_root(bare, {"HOME": "/h"})) == "/h/.local/state/flowfleet"

    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="name another with --state-dir"):
        open_state(settings(tmp_path / "file"), HOST, {})
