"""Oracle of the crash matrix: overlaps of two processes of a run, and the one of them that is no fault."""

from dataclasses import dataclass

import pytest

from tests.chaos import oracle
from tests.waiting import SCALE

RUN = "run"


@dataclass
class FakeArena:
    """One run, by what it has marked: `WORD CLAIM PID TIME [CLAIM]` each."""

    lines: str
    last: str = "COMPLETED"

    def states(self, _run):
        return [{"type": name, "name": name, "message": ""} for name in ("SCHEDULED", self.last)]

    def marks(self, _run):
        return [line.split() for line in self.lines.splitlines() if line]


FROZEN = """
start a 1 10.0
lives a 1 11.0
start b 2 20.0
overlap b 2 20.0 a
{late}
told b 2 30.0
end b 2 30.0
"""


def judged(lines, frozen=None, expected="again"):
    return oracle.judge(FakeArena(lines), RUN, expected, frozen=frozen)


def kinds(found):
    return {line.partition(":")[0] for line in found}


def test_an_overlap_after_a_thaw_is_counted_apart_and_is_no_fault():
    found = judged(FROZEN.format(late="lives a 1 25.5"), {"a": 25.0})
    assert list(found) == []
    assert len(found.thawed) == 1
    # the later one has seen it, though it has marked nothing since
    assert len(judged(FROZEN.format(late=""), {"a": 25.0}).thawed) == 1


def test_an_overlap_of_a_run_whose_host_was_not_frozen_is_doubled():
    found = judged(FROZEN.format(late="lives a 1 25.5"))
    assert kinds(found) == {"doubled"}
    assert found.thawed == []


def test_a_process_that_goes_on_for_long_after_the_thaw_is_doubled():
    late = 25.0 + oracle.THAW_SECONDS * SCALE + 0.1
    found = judged(FROZEN.format(late=f"lives a 1 {late}"), {"a": 25.0})
    assert kinds(found) == {"doubled"}
    assert "after the thaw" in found.doubled[0]


def test_two_later_processes_at_once_are_doubled_though_the_first_was_frozen():
    third = "start c 3 26.0\noverlap c 3 26.0 b"
    found = judged(FROZEN.format(late=third).replace("told b", "told c"), {"a": 25.0})
    assert kinds(found) == {"doubled"}
    assert len(found.thawed) == 1


def test_an_overlap_shows_in_the_marks_alone_where_the_later_process_has_not_seen_it():
    lines = "start a 1 10\nstart b 2 20\nrunning a 1 21\ntold b 2 30\nend b 2 30"
    assert kinds(judged(lines)) == {"doubled"}
    assert list(judged(lines.replace("running a 1 21", "running a 1 11"))) == []


@pytest.mark.parametrize("lines", ["start a 1 10\ntold a 1 12", "start a 1 10\ntold a 1 12\nstart b 2 20"])
def test_a_run_that_was_to_be_started_again_has_the_end_of_its_last_start(lines):
    assert kinds(judged(lines)) == {"false"}


def test_of_the_signs_of_life_only_the_last_one_of_each_process_is_told():
    marks = FakeArena("start a 1 1\nlives a 1 2\nlives a 1 3\nlives b 2 4\nend a 1 5").marks(RUN)
    assert [mark[3] for mark in oracle.shortened(marks)] == ["1", "3", "4", "5"]
