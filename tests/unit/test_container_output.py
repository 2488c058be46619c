"""The output of a container, as the engine hands it over: cut anywhere, in two streams, once more after an outage."""

import contextlib
import errno
import io
import os
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flowfleet.errors import EngineAway
from workers.containers import output
from workers.containers.engine import StreamIdle
from workers.containers.output import Output, _entries, _joined, _Place, _unseen


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


class Engine:
    """An engine whose log is this data, cut off after so many bytes the first time."""

    request_seconds = 1.0

    def __init__(self, data, broken_after=None):
        self.data, self.broken_after = data, broken_after

    def stream(self, path, params, *, idle_seconds):
        broken, self.broken_after = self.broken_after, None
        left = io.BytesIO(self.data[:broken])

        def read1(size):
            piece = left.read(7)
            if not piece and broken:
                raise EngineAway("the engine is gone")
            return piece

        return SimpleNamespace(raw=SimpleNamespace(read1=read1), close=lambda: None)

    def errors(self):
        return contextlib.nullcontext()


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").write_text("before\n")  # as that of hooks, which is their run's
    return tmp_path / "log"


def copier(engine, log):
    return Output(engine, "id", log, limit=0, holes=False)


class Podman(Engine):
    """Podman with a terminal: a time, a whole second, before each piece that it has read; lines end where they do."""

    def __init__(self, pieces, broken_after):
        super().__init__(b"", broken_after)
        self.pieces = pieces

    def stream(self, path, params, *, idle_seconds):
        since = float(params.get("since", 0))
        self.data = b"".join(f"{second(at)} {text}".encode() for at, text in self.pieces if at >= since)
        return super().stream(path, params, idle_seconds=idle_seconds)


def second(at):
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


LINES = frame(1, 1, "half ") + frame(2, 1, "other\n") + frame(1, 1, "done\n") + frame(1, 2, "last\n")


@pytest.mark.parametrize("after", range(1, len(LINES), 5))
def test_an_engine_that_goes_amid_a_line_costs_none_and_doubles_none(log, after):
    engine = Engine(LINES, broken_after=after)
    with pytest.raises(EngineAway):
        copier(engine, log).copy(follow=True, tty=False)
    assert copier(engine, log).copy(follow=True, tty=False)
    assert log.read_text() == "before\nother\nhalf done\nlast\n"


@pytest.mark.parametrize("after", range(1, len(LINES), 5))
def test_a_worker_that_is_killed_before_it_could_note_anything_doubles_none(log, after, monkeypatch):
    engine = Engine(LINES, broken_after=after)
    with monkeypatch.context() as killed:
        killed.setattr(Output, "_capped", lambda _self, place, *_: place)
        noted = iter([None])  # the place at which the copy begins
        really = Output._note
        killed.setattr(Output, "_note", lambda self, place: next(noted, self) is None and really(self, place))
        with pytest.raises(EngineAway):
            copier(engine, log).copy(follow=True, tty=False)
    assert copier(engine, log).copy(follow=True, tty=False)
    assert log.read_text() == "before\nother\nhalf done\nlast\n"


LONG = "#" * 40
#: of second 3 there is a piece before the first line of it, and in the text there stand times too
TERMINAL = [
    *((1, "first\n"), (2, LONG), (2, LONG), (3, LONG), (3, "end\n"), (3, "third\n"), (3, "more\n")),
    *((4, "fourth\n"), (5, "fifth, at "), (6, f"{second(6)} yes\n"), (6, "sixth\n"), (7, "seventh\n")),
    *((7, f"{'-' * len(LONG)}{second(9)} told\n"), (8, "eighth\n")),
]


@pytest.mark.parametrize("longest", [29, 40, 64, 16 * 1024])
def test_a_terminal_of_podman_is_read_on_to_the_byte_though_its_lines_are_cut(tmp_path, longest, monkeypatch):
    monkeypatch.setattr(output, "_LONGEST_ENTRY", longest)
    whole = Output(Podman(TERMINAL, None), "id", tmp_path / "log", limit=0, holes=False)
    assert whole.copy(follow=True, tty=True)
    expected = (tmp_path / "log").read_text()
    assert expected.count("#") == 3 * len(LONG)
    assert f"-{second(9)} told\neighth\n" in expected
    for after in range(1, len(expected) + 200, 7):
        folder = tmp_path / str(after)
        folder.mkdir()
        engine = Podman(TERMINAL, broken_after=after)
        with contextlib.suppress(EngineAway):
            copier(engine, folder / "log").copy(follow=True, tty=True)
        for _again in range(2):
            assert copier(engine, folder / "log").copy(follow=False, tty=True)
            assert (folder / "log").read_text() == expected


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
