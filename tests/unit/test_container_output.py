"""The output of a container, as the engine hands it over: cut anywhere, in two streams, once more after an outage."""

import contextlib
import errno
import io
import itertools
import os
import random
from types import SimpleNamespace

import pytest

from flowfleet.errors import EngineAway
from workers.containers import log_entries, output
from workers.containers.engine import StreamIdle
from workers.containers.log_entries import entries_of
from workers.containers.output import Output, _joined, _Place, _unseen


def stamp(number):
    return f"2026-11-30T01:02:03.{number:09d}Z"


def framed(stream, text):
    data = text.encode()
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def frame(stream, number, text):
    return framed(stream, f"{stamp(number)} {text}")


def pieces(data, size=7, *, idle=False):
    for at in range(0, len(data), size):
        yield data[at : at + size]
    if idle:
        raise StreamIdle


def written(data, place=_Place(), *, tty=False, size=7):  # noqa: B008 - it is frozen
    return b"".join(part.data for part in _joined(_unseen(entries_of(pieces(data, size), tty=tty), place))).decode()


def test_a_line_in_parts_is_not_cut_by_the_other_stream():
    data = frame(1, 1, "o1") + frame(2, 1, "e1\n") + frame(1, 1, "74\n") + frame(2, 2, "no end")
    assert written(data) == "e1\no174\nno end"


def test_what_a_silent_stream_has_held_back_is_written():
    parts = _joined(_unseen(entries_of(pieces(frame(1, 1, "how far? "), idle=True), tty=False), _Place()))
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
    part = log_entries.LONGEST_ENTRY
    data = f"{stamp(1)} {'x' * part}{stamp(2)} {'y' * part}{stamp(3)} z\n{stamp(4)} short\n".encode()
    assert written(data, tty=True, size=size) == "x" * part + "y" * part + "z\nshort\n"


class Engine:
    """An engine whose log is this data, cut off after so many bytes the first time."""

    request_seconds = 1.0
    product = "docker"

    def __init__(self, data, broken_after=None):
        self.data, self.broken_after = data, broken_after
        self.at_end = lambda: None

    def facts(self):
        return SimpleNamespace(product=self.product)

    def stream(self, path, params, *, idle_seconds):
        broken, self.broken_after = self.broken_after, None
        left = io.BytesIO(self.data[:broken])

        def read1(size):
            piece = left.read(7)
            if not piece and broken:
                raise EngineAway("the engine is gone")
            if not piece:
                self.at_end()
            return piece

        return SimpleNamespace(raw=SimpleNamespace(read1=read1, shutdown=lambda: None), close=lambda: None)

    def errors(self):
        return contextlib.nullcontext()


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").write_text("before\n")  # as that of hooks, which is their run's
    return tmp_path / "log"


def copier(engine, log):
    return Output(engine, "id", log, limit=0, holes=False)


class Podman(Engine):
    """Podman, which puts a time before each entry, and cuts the same output into other entries each time."""

    product = "podman"

    def __init__(self, texts, broken_after, *, tty):
        super().__init__(b"", broken_after)
        self.texts, self.tty, self.chance = texts, tty, random.Random(1)

    def stream(self, path, params, *, idle_seconds):
        assert "since" not in params
        assert not params["follow"]
        self.data = b"".join(self.entry(*one, timed=params["timestamps"]) for one in self.cut())
        return super().stream(path, params, idle_seconds=idle_seconds)

    def cut(self):
        for stream, text in self.texts:
            cuts = [0, *sorted(self.chance.sample(range(len(text)), min(3, len(text)))), len(text)]
            yield from ((stream, text[begin:end]) for begin, end in itertools.pairwise(cuts) if begin < end)

    def entry(self, stream, text, *, timed):
        text = f"{SECOND if timed else ''}{' ' if timed else ''}{text}"
        return text.encode() if self.tty else framed(stream, text)


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


SECOND = "2026-11-30T01:02:03Z"
#: as a flow may print it: times at the begin of a line and amid one, and lines that are longer than an entry
TEXTS = (
    *((1, f"{SECOND} first\r\n"), (1, f"{'x' * 60}{SECOND} "), (2, "other\r\n"), (1, f"{'y' * 60}\r\n\r\n")),
    *((2, "half "), (1, f"at {SECOND} done\r\n"), (2, "a line\r\n"), (1, "no end")),
)


@pytest.mark.parametrize("longest", [16, 50, 16 * 1024])
@pytest.mark.parametrize("tty", [True, False])
def test_podman_is_read_on_to_the_byte_and_no_time_of_its_own_is_copied(tmp_path, longest, tty, monkeypatch):
    monkeypatch.setattr(log_entries, "LONGEST_ENTRY", longest)
    monkeypatch.setattr(output, "LONGEST_ENTRY", longest)
    for after in range(1, 300, 3):
        folder = tmp_path / str(after)
        folder.mkdir()
        engine = Podman(TEXTS, after, tty=tty)
        with contextlib.suppress(EngineAway):
            copier(engine, folder / "log").copy(follow=False, tty=tty)
        for _again in range(2):
            assert copier(engine, folder / "log").copy(follow=False, tty=tty)
            written = (folder / "log").read_bytes().decode()
            assert sorted(written) == sorted("".join(text for _, text in TEXTS))
            if tty:
                assert written == "".join(text for _, text in TEXTS)
            elif longest > 1000:
                assert written.endswith(f"at {SECOND} done\r\nhalf a line\r\nno end")


class GrowingPodman(Engine):
    """Podman, whose log is longer at each reading; its last entry may be half, and looks like a whole line."""

    product = "podman"

    def __init__(self, readings, *, tty=False):
        super().__init__(b"")
        self.readings, self.tty = list(readings), tty
        self.at_last = lambda: None

    def stream(self, path, params, *, idle_seconds):
        assert not params["follow"]
        lines = self.readings.pop(0)
        if not self.readings:
            self.at_last()
        self.data = b"".join(line.encode() if self.tty else framed(1, line) for line in lines)
        return super().stream(path, params, idle_seconds=idle_seconds)


@pytest.mark.parametrize("tty", [True, False])
def test_a_line_that_podman_reads_amid_its_write_is_copied_once_it_is_whole(log, tty, monkeypatch):
    monkeypatch.setattr(output, "_PAUSE_LEAST", 0.001)
    whole = ["one\n", "two\n", "three\n"]
    engine = GrowingPodman([[], ["one\n", "t\n"], whole[:2], ["one\n", "two\n", "thr\n"], whole], tty=tty)
    copy = copier(engine, log)
    engine.at_last = copy.container_ended
    assert not copy.copy(follow=True, tty=tty)
    assert log.read_text() == "before\none\ntwo\n"
    engine.readings = [whole]
    assert copier(engine, log).copy(follow=False, tty=tty)
    assert log.read_text() == "before\none\ntwo\nthree\n"


@pytest.mark.parametrize("tty", [True, False])
def test_the_last_line_that_podman_has_is_copied_when_nothing_follows(log, tty, monkeypatch):
    monkeypatch.setattr(output, "_PAUSE_LEAST", 0.001)
    engine = GrowingPodman([["how far? "], ["how far? "], ["how far? ", "ten\n"]], tty=tty)
    copy = copier(engine, log)
    engine.at_last = copy.container_ended
    seen = []
    really = Output._take
    monkeypatch.setattr(Output, "_take", lambda *how: (really(*how), seen.append(log.read_text())))
    copy.copy(follow=True, tty=tty)
    assert seen == ["before\n", "before\nhow far? ", "before\nhow far? "]


def test_the_last_line_of_a_log_that_takes_long_to_read_is_copied_when_nothing_follows(log, monkeypatch):
    """One reading and its pause are then all that goes into the time after which the container is looked at."""
    monkeypatch.setattr(output, "_LOOK_SECONDS", 0.0005)
    monkeypatch.setattr(output, "_PAUSE_LEAST", 0.001)
    engine = GrowingPodman([["one\n"]] * 4)
    copy = copier(engine, log)
    for _look in range(2):
        assert not copy.copy(follow=True, tty=False)
    assert log.read_text() == "before\none\n"


def test_readings_of_podman_are_apart_by_many_times_what_one_takes_and_end_at_once_with_the_container(log, monkeypatch):
    pauses = []
    monkeypatch.setattr(output.time, "monotonic", iter([0, 0, 0.01, 1, 1, 1.5, 4, 4, 9, 40]).__next__)
    engine = GrowingPodman([["a\n"]] * 4)
    copy = copier(engine, log)
    monkeypatch.setattr(copy._ended, "wait", pauses.append)
    assert not copy.copy(follow=True, tty=False)
    assert pauses == [1.0, 10.0, 30.0]


def test_what_ends_since_it_is_closed_is_not_taken_for_the_end_of_the_output(log):
    engine = Engine(frame(1, 1, "whole\n") + frame(1, 2, "amid an entry\n")[:20])
    copy = copier(engine, log)
    engine.at_end = copy.close
    assert not copy.copy(follow=True, tty=False)


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
