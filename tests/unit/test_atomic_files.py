"""Records on disk: whole or not there, created once, locked while their creator lives."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.shim import atomic_files


def test_a_record_is_replaced_in_one_step_and_a_failed_write_leaves_the_old_one_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    for content in ({"a": 1}, {"a": 2}):
        atomic_files.write_json(path, content)
    assert atomic_files.read_json(path) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]

    def full(fd):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_files.write_json(path, {"a": 3})
    assert atomic_files.read_json(path) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_creators_one_wins(tmp_path, monkeypatch, links):
    def refuse(*_args):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, barrier = tmp_path / "start", threading.Barrier(8)

    def create(number):
        barrier.wait()
        fd = atomic_files.create_once(path, {"by": number})
        if fd is not None:
            os.close(fd)
        return fd is not None

    with ThreadPoolExecutor(8) as threads:
        (winner,) = [number for number, won in enumerate(threads.map(create, range(8))) if won]
    assert atomic_files.read_json(path) == {"by": winner}
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_the_lock_tells_whether_the_creator_lives(tmp_path):
    fd = atomic_files.create_once(tmp_path / "start", {})
    assert atomic_files.locked(tmp_path / "start")
    os.close(fd)
    assert not atomic_files.locked(tmp_path / "start")
    assert not atomic_files.locked(tmp_path / "nowhere")
