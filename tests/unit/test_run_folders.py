"""The state folder: its lock, run folders, outbox, and what is pruned."""

import json
import os
import stat

import pytest

from workers.deployment import Exit
from workers.state.run_folders import RunFolders
from workers.state.state_folder import StateFolder, StateLocked

DAY = 24 * 3600.0


@pytest.fixture
def state(tmp_path):
    state = StateFolder.open(tmp_path, "machine", "worker")
    yield state
    state.close()


NOW = 100 * DAY


def settled(records: RunFolders, run_id: str, *, age: float, size: int = 0):
    folder = records.create(run_id, "c", {})
    folder.log.write_bytes(b"x" * size)
    folder.settle()
    os.utime(folder.path / "settled", (NOW - age, NOW - age))
    return folder


def prune(state, **how):
    return state.runs.prune(**{"now": NOW, "keep_seconds": 7 * DAY, "keep_bytes": 1 << 30, **how})


def test_settled_folders_go_after_seven_days(state):
    settled(state.runs, "old", age=7 * DAY + 1)
    settled(state.runs, "young", age=7 * DAY - 1)
    state.runs.create("live", "c", {})
    assert prune(state) == ["old.c"]
    assert [folder.run_id for folder in state.runs.scan()] == ["live", "young"]


def test_the_oldest_go_first_when_all_take_too_much_room_and_a_hole_takes_none(state):
    for number in range(4):
        settled(state.runs, f"r{number}", age=1000.0 - number, size=1_000_000)
    assert prune(state, keep_bytes=2_500_000) == ["r0.c", "r1.c"]

    with settled(state.runs, "r", age=10.0).log.open("wb") as file:
        file.truncate(10_000_000_000)
    assert prune(state) == []


def test_busy_and_unsettled_folders_are_never_pruned(state):
    settled(state.runs, "busy", age=50 * DAY, size=1000)
    state.runs.create("unsettled", "c", {}).write_exit(Exit(code=0), begun=True)
    assert prune(state, keep_bytes=0, busy={"busy.c"}) == []
    assert len(state.runs.scan()) == 2


def test_a_state_folder_is_for_its_owner_only_and_locked_for_life(state, tmp_path):
    assert state.path == tmp_path / "machine" / "worker"
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    with pytest.raises(StateLocked, match="named worker is running") as refusal:
        StateFolder.open(tmp_path, "machine", "worker")
    assert "--name" in str(refusal.value)
    StateFolder.open(tmp_path, "machine", "other").close()


def test_another_boot_id_is_noticed(state, tmp_path):
    assert not state.boot_changed("boot-1")
    state.remember(boot_id="boot-1", nonce="n1", fleet="default")
    state.close()
    again = StateFolder.open(tmp_path, "machine", "worker")
    state._lock = os.dup(again._lock)
    again.close()
    assert again.last["nonce"] == "n1"
    assert not again.boot_changed("boot-1")
    assert again.boot_changed("boot-2")


def test_siblings_are_the_other_names_of_the_same_machine(state, tmp_path):
    StateFolder.open(tmp_path, "machine", "second").close()
    StateFolder.open(tmp_path, "elsewhere", "third").close()
    assert [path.name for path in state.siblings()] == ["second"]


@pytest.fixture
def folder(state):
    return state.runs.create("run", "claim", {"name": "merry-fox"})


def test_a_run_folder_is_made_once(state, folder):
    assert state.runs.create("run", "claim", {}) is None
    assert (folder.run_id, folder.claim, folder.key) == ("run", "claim", "run.claim")
    assert folder.intent() == {"v": 1, "run_id": "run", "claim": "claim", "name": "merry-fox"}


def test_an_exit_survives_the_way_to_disk_and_back(folder):
    end = Exit(code=3, max_rss_kib=4, last_lines=("a", "b"))
    assert folder.exit() is None
    folder.write_exit(end, begun=True)
    assert folder.exit() == end


@pytest.mark.parametrize("torn", ["", "{", "[]", "\0\0"])
def test_a_torn_record_counts_as_none(folder, torn):
    (folder.path / "exit.json").write_text(torn)
    assert folder.exit() is None


def test_a_folder_of_another_version_is_left_alone_and_named(state, folder, caplog):
    folder.note(v=2)
    with caplog.at_level("WARNING"):
        assert state.runs.scan() == []
    assert [(record.folder, record.v) for record in caplog.records] == [("run.claim", 2)]
    folder.settle()
    assert prune(state, now=1e12) == []


def test_only_unsettled_folders_are_looked_at_at_start(state):
    state.runs.create("old", "c", {}).settle()
    live = state.runs.create("live", "c", {})
    assert state.runs.unsettled() == [live]


def test_a_report_stays_in_the_outbox_until_it_is_accepted(state):
    state.outbox.put("run", "claim", {"state": "Crashed"})
    (state.outbox.path / "torn.json").write_text("{")
    assert list(state.outbox) == [{"v": 1, "run_id": "run", "claim": "claim", "state": "Crashed"}]
    state.outbox.remove("run", "claim")
    state.outbox.remove("run", "claim")
    assert list(state.outbox) == []
    assert state.outbox.get("run", "claim") is None


def test_the_certificate_of_an_end_lies_beside_it_with_its_last_lines_redacted(folder, caplog):
    lines = ("first", "redis://user:secret@redis.example.com:6379/0")
    folder.certify(Exit(code=3, wall_seconds=2.0, last_lines=lines))
    record = json.loads((folder.path / "certificate.json").read_text())
    assert (record["ended_by"], record["sentence"], record["wall_seconds"]) == ("itself", "exited with code 3", 2.0)
    assert record["last_lines"][0] == "first"
    assert "secret" not in json.dumps(record)

    folder.remove()
    folder.certify(Exit(code=3))
    assert "certificate of an end cannot be written" in caplog.text
