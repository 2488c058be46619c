"""`--show-flow-logs`: whole lines behind the run's name, none lost, none twice; and lines of ours for the API."""

import errno
import io
import logging
import os
from types import SimpleNamespace

import pytest

from tests.waiting import until
from workers.reporting import show_output
from workers.reporting.run_log import RunLog
from workers.reporting.show_output import OutputFollower


@pytest.mark.parametrize(("enabled", "sent"), [(True, ["one", "two"]), (False, [])])
def test_lines_are_sent_together_or_not_at_all(enabled, sent):
    lines, jobs = [], []
    api = SimpleNamespace(log=lines.extend)

    def post(job, *, after):
        jobs.append(job)

    run_log = RunLog(api, SimpleNamespace(post=post), enabled=enabled)
    run_log.say("r", "one")
    run_log.say("r", "two")
    assert len(jobs) == (1 if enabled else 0)
    for job in jobs:
        job()
    assert [line.message for line in lines] == sent


class Followed:
    """The output of a run, and what is shown of it."""

    def __init__(self, log):
        self.log, self.stream = log, io.StringIO()
        self.output = OutputFollower(self.stream)

    def follow(self, name="a", text=None, **how):
        if text is not None:
            self.log.write_bytes(text)
        self.output.follow(self.log, name, **how)
        self.output.copy()
        return self.shown()

    def shown(self, text=None):
        """All that is shown, after the output has become this."""
        if text is not None:
            self.log.write_bytes(text)
            self.output.copy()
        return self.stream.getvalue()


@pytest.fixture
def followed(tmp_path):
    return Followed(tmp_path / "log")


def test_lines_come_whole_and_prefixed_and_the_last_one_without_its_end_too(followed):
    followed.follow("blue-fox")
    assert followed.shown(b"one\ntw") == "blue-fox | one\n"
    with followed.log.open("ab") as file:
        file.write("o\nünï".encode() + b"\xff")
    followed.output.copy()
    followed.output.finish(followed.log)
    followed.output.copy()
    followed.output.copy()
    assert followed.shown() == "blue-fox | one\nblue-fox | two\nblue-fox | ünï\ufffd\n"


def test_an_adopted_run_is_followed_from_now_and_a_cut_file_from_its_start(followed):
    assert followed.follow(text=b"old line\n", from_now=True) == ""
    assert followed.shown(b"new\n") == "a | new\n"
    assert followed.shown(b"\0" * 4096 + b"after a hole\n") == "a | new\na | after a hole\n"


def test_the_login_of_an_address_is_blackened_as_in_our_own_lines(followed):
    shown = followed.follow(text=b"for url: http://ann:secret@h:4200/\n")
    assert shown == "a | for url: http://ann:***@h:4200/\n"


def test_two_runs_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(show_output, "_LAST_LINES_SECONDS", 60.0)
    stream = io.StringIO()
    output = OutputFollower(stream)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(f"of {name}\n".encode())
        output.follow(tmp_path / name, name)
    output.start()
    output.close()
    assert sorted(stream.getvalue().splitlines()) == ["a | of a", "b | of b"]


class Broken(io.StringIO):
    """A stdout that takes nothing for a while."""

    def __init__(self, number):
        super().__init__()
        self.number, self.refused = number, 0

    def write(self, text):
        if self.number:
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


def test_a_stdout_that_takes_nothing_is_said_once_and_tried_again_at_each_look(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(show_output, "_LOOK_SECONDS", 0.01)
    stream = Broken(errno.ENOSPC)
    output = OutputFollower(stream)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"1\n")
        output.follow(tmp_path / name, name)
    with caplog.at_level(logging.WARNING):
        output.start()
        until(lambda: stream.refused == 2, 20, "both to be tried")
        stream.number = 0
        with (tmp_path / "b").open("ab") as file:
            file.write(b"2\n")
        until(lambda: "b | 2" in stream.getvalue(), 20, "the thread to go on")
    output.close()
    assert [record.error for record in caplog.records] == [f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"]


def test_a_stdout_of_another_encoding_shows_what_it_can(tmp_path):
    raw = io.BytesIO()
    output = OutputFollower(io.TextIOWrapper(raw, encoding="ascii"))
    (tmp_path / "log").write_bytes("grün\n".encode())
    output.follow(tmp_path / "log", "a")
    output.copy()
    assert raw.getvalue() == b"a | gr?n\n"


def test_a_line_without_an_end_is_shown_in_pieces(followed, monkeypatch):
    monkeypatch.setattr(show_output, "_LONGEST_LINE", 100_000)
    assert len(followed.follow(text=b"x" * 200_000)) > 100_000
    followed.output.finish(followed.log)
    followed.output.copy()
    assert followed.shown().count("x") == 200_000
