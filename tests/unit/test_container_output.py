"""The output of a container, as the engine hands it over: cut anywhere, in two streams, once more after an outage."""

import errno
import os

import pytest

from workers.containers import output
from workers.containers.engine import StreamIdle
from workers.containers.output import _entries, _joined, _Place, _unseen


def stamp(number):
    return f"2026-11-30T01:02:03.{number:09d}Z"


def frame(stream, number, text):
    data = f"{stamp(number)} {text}".encode()
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def pieces(data, size=7, *, idle=False):
    for at in range(0, len(data), size):
        yield data[at : at + size]
    if idle:
        raise StreamIdle


def written(data, place=_Place(), *, tty=False, size=7):  # noqa: B008 - it is frozen
    return b"".join(part.data for part in _joined(_unseen(_entries(pieces(data, size), tty=tty), place))).decode()


def test_a_line_in_parts_is_not_cut_by_the_other_stream():
    data = frame(1, 1, "o1") + frame(2, 1, "e1\n") + frame(1, 1, "74\n") + frame(2, 2, "no end")
    assert written(data) == "e1\no174\nno end"


def test_what_a_silent_stream_has_held_back_is_written():
    parts = _joined(_unseen(_entries(pieces(frame(1, 1, "how far? "), idle=True), tty=False), _Place()))
    assert [next(parts).data, next(parts).data] == [b"", b"how far? "]
    with pytest.raises(StreamIdle):
        next(parts)


@pytest.mark.parametrize("second", ["b\nc\n", "b\n", "b"])
def test_what_was_copied_is_not_copied_again_however_the_engine_cuts_it(second):
    rest = "b\nc\n".removeprefix(second)
    data = frame(1, 1, "a\n") + frame(1, 1, second) + (frame(1, 1, rest) if rest else b"") + frame(1, 2, "d\n")
    for copied, left in ((2, "b\nc\nd\n"), (3, "\nc\nd\n"), (4, "c\nd\n"), (6, "d\n")):
        assert written(data, _Place(stamp(1), copied)) == left
    assert written(frame(1, 1, "a\n"), _Place(stamp(1), 2)) == ""


@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
def test_a_long_line_of_a_terminal_has_no_times_in_it(size):
    part = output._LONGEST_ENTRY
    data = f"{stamp(1)} {'x' * part}{stamp(2)} {'y' * part}{stamp(3)} z\n{stamp(4)} short\n".encode()
    assert written(data, tty=True, size=size) == "x" * part + "y" * part + "z\nshort\n"


def test_a_full_disk_takes_an_entry_whole_or_not_at_all(tmp_path, monkeypatch):
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    output._append(file, b"before\n")
    really, room = os.write, [3]

    def write(fd, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(fd, data[: room.pop()])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"):
        output._append(file, b"never\n")
    os.close(file)
    assert (tmp_path / "log").read_bytes() == b"before\n"
