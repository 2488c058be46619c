"""The log of a run: kept below its cap by a hole or by copying, and its last lines."""

import pytest

from flowfleet.monitor.run_output import read_local
from workers.shim import log_cap

LINES = b"".join(b"line %06d\n" % number for number in range(20_000))  # 240,000 bytes


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture(params=[True, False], ids=["holes", "copy"])
def cap(request, log):
    log.write_bytes(LINES)
    cap = log_cap.LogCap(str(log), 50_000, holes=request.param)
    yield cap
    cap.close()


def cut(log, text, limit, *, holes):
    log.write_bytes(text)
    cap = log_cap.LogCap(str(log), limit, holes=holes)
    cap.apply()
    cap.close()


def kept(path):
    return path.read_bytes().lstrip(b"\0")


def test_the_newest_whole_lines_stay(cap, log):
    cap.apply()
    text = kept(log)
    assert LINES.endswith(text)
    assert 49_980 < len(text) <= 50_000
    assert text.startswith(b"line ")


def test_a_log_below_its_cap_is_left_alone_and_one_endless_line_is_cut_all_the_same(log):
    cut(log, LINES, len(LINES), holes=True)
    assert log.read_bytes() == LINES
    cut(log, b"x" * 100_000, 10_000, holes=False)
    assert kept(log) == b"x" * 10_000


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


def test_holes_leave_offsets_as_they_were(log):
    cut(log, LINES, 50_000, holes=True)
    status = log.stat()
    if status.st_size < len(LINES):
        pytest.skip("this file system has no holes")
    shown = b"".join(read_local(log, follow=False, ended=lambda: True))
    assert LINES[-len(shown) :] == shown == kept(log)
    assert status.st_blocks * 512 <= 50_000 + 2 * 4096


def test_last_lines_are_bounded_and_whole(log):
    log.write_bytes(LINES)
    assert log_cap.last_lines(log, count=2) == ("line 019998", "line 019999")
    assert log_cap.last_lines(log, count=10, limit=30) == ("line 019998", "line 019999")

    log.write_bytes(b"\0" * 5000 + b"after the hole\nno newline \xff at the end")
    assert log_cap.last_lines(log) == ("after the hole", "no newline � at the end")
    assert log_cap.last_lines(log.parent / "nowhere") == ()


@pytest.mark.parametrize("text", [b"", b"hello\n"])
def test_an_empty_or_whole_log_is_shown_from_its_beginning(log, text):
    log.write_bytes(text)
    assert b"".join(read_local(log, follow=False, ended=lambda: True)) == text
