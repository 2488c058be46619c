"""Records on disk: whole or not there, created once, locked while their creator lives."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from workers.shim import atomic_files


def test_a_record_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "record.json"
    atomic_files.write_json(path, {"a": 1})
    atomic_files.write_json(path, {"a": 2})

    assert atomic_files.read_json(path) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    atomic_files.write_json(path, {"a": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_files.write_json(path, {"a": 2})

    assert atomic_files.read_json(path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_creators_one_wins(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_args):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "start"
    won: list[int] = []
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        fd = atomic_files.create_once(path, {"by": number})
        if fd is not None:
            won.append(number)
            os.close(fd)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert atomic_files.read_json(path) == {"by": won[0]}
    assert len(won) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_the_lock_tells_whether_the_creator_lives(tmp_path):
    fd = atomic_files.create_once(tmp_path / "start", {})
    assert atomic_files.locked(tmp_path / "start")

    os.close(fd)

    assert not atomic_files.locked(tmp_path / "start")
    assert not atomic_files.locked(tmp_path / "nowhere")
