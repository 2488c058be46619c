"""The log of a run: kept below its cap by a hole or by copying, and its last lines."""

from __future__ import annotations

import os

import pytest

from workers.shim import log_cap

LINES = b"".join(b"line %06d\n" % number for number in range(20_000))  # 240,000 bytes


@pytest.fixture(params=[True, False], ids=["holes", "copy"])
def cap(request, tmp_path):
    (tmp_path / "log").write_bytes(LINES)
    cap = log_cap.LogCap(str(tmp_path / "log"), 50_000, holes=request.param)
    yield cap
    cap.close()


def kept(path):
    return path.read_bytes().lstrip(b"\0")


def test_the_newest_whole_lines_stay(cap, tmp_path):
    cap.apply()

    text = kept(tmp_path / "log")
    assert LINES.endswith(text)
    assert 49_980 < len(text) <= 50_000
    assert text.startswith(b"line ")


def test_a_log_below_its_cap_is_left_alone(tmp_path):
    (tmp_path / "log").write_bytes(LINES)
    cap = log_cap.LogCap(str(tmp_path / "log"), len(LINES), holes=True)
    cap.apply()
    cap.close()

    assert (tmp_path / "log").read_bytes() == LINES


def test_what_is_written_after_a_cut_follows_what_was_kept(cap, tmp_path):
    with (tmp_path / "log").open("ab", buffering=0) as writer:
        for number in range(20_000, 30_000):
            writer.write(b"line %06d\n" % number)
            if number % 1000 == 0:
                cap.apply()
    cap.apply()

    lines = kept(tmp_path / "log").splitlines()
    assert lines == [b"line %06d" % number for number in range(30_000 - len(lines), 30_000)]
    assert len(lines) > 4000


def test_holes_leave_offsets_as_they_were(tmp_path):
    (tmp_path / "log").write_bytes(LINES)
    cap = log_cap.LogCap(str(tmp_path / "log"), 50_000, holes=True)
    cap.apply()
    cap.close()
    status = (tmp_path / "log").stat()
    if status.st_size < len(LINES):
        pytest.skip("this file system has no holes")

    with (tmp_path / "log").open("rb") as file:
        first = log_cap.first_offset(file.fileno())
        assert LINES[first:] == kept(tmp_path / "log")
    assert status.st_blocks * 512 <= 50_000 + 2 * 4096


def test_one_endless_line_is_cut_all_the_same(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 100_000)
    cap = log_cap.LogCap(str(tmp_path / "log"), 10_000, holes=False)
    cap.apply()
    cap.close()

    assert kept(tmp_path / "log") == b"x" * 10_000


def test_last_lines_are_bounded_and_whole(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(LINES)
    assert log_cap.last_lines(path, count=2) == ("line 019998", "line 019999")
    assert log_cap.last_lines(path, count=10, limit=30) == ("line 019998", "line 019999")

    path.write_bytes(b"\0" * 5000 + b"after the hole\nno newline \xff at the end")
    assert log_cap.last_lines(path) == ("after the hole", "no newline � at the end")
    assert log_cap.last_lines(tmp_path / "nowhere") == ()


def test_the_first_offset_of_an_empty_or_whole_log_is_its_beginning(tmp_path):
    path = tmp_path / "log"
    for text in (b"", b"hello\n"):
        path.write_bytes(text)
        fd = os.open(path, os.O_RDONLY)
        assert log_cap.first_offset(fd) == 0
        os.close(fd)
