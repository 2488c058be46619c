"""Log lines: their layout, in 160 columns and without a loss."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfleet.log_lines import COLUMNS, INDENT, LoggedEvent, columns, takes_colours
from tests.waiting import SCALE

AT = "2026-01-31T12:00:00.000Z"
RUN, CLAIM = f"run_id={'r' * 36}", f"claim={'c' * 36}"


def lines_of(said="run started", fields=(), ids=(), subject="calm-otter", **options):
    """The line of an event and those below it, without time and level or the indent of the same width."""
    line = LoggedEvent(at=AT, level="INFO", subject=subject, said=said, fields=fields, ids=ids)
    first, *more = line.laid_out(**options).split("\n")
    assert all(each.startswith(" " * INDENT) for each in more)
    return [each[INDENT:] for each in (first, *more)]


def test_what_has_room_stands_in_one_line_with_the_ids_at_its_end():
    assert lines_of(fields=["pid=7"], ids=[RUN, CLAIM]) == [f"calm-otter: run started  pid=7 {RUN} {CLAIM}"]
    assert lines_of() == ["calm-otter: run started"]


@pytest.mark.parametrize("text", ["x" * 1_000_000, "😀" * 50_000, "e\u0301" * 50_000], ids=["ascii", "wide", "none"])
def test_a_text_of_any_length_is_laid_out_in_no_time(text):
    began = time.process_time()
    assert "".join(lines_of(text, subject="x")).replace(" ", "") == f"x:{text}"
    assert time.process_time() - began < 2 * SCALE


def test_a_process_without_stderr_has_no_colours():
    assert takes_colours(None) is False


def test_what_has_no_room_goes_on_below_and_the_run_stays_beside_what_is_said_of_it():
    said = "run has ended and its process has not: it is killed"
    error = f"error={'e' * 100}"
    assert lines_of(said, ["pid=7", error], [RUN, CLAIM]) == [f"calm-otter: {said}  pid=7 {RUN}", error, CLAIM]
    # a message that leaves no room for the run's id either
    assert lines_of("x" * 100, ["pid=7"], [RUN]) == [f"calm-otter: {'x' * 100}  pid=7", RUN]


def test_of_two_fields_alike_the_one_without_room_goes_on_below():
    assert lines_of("x" * 40, ids=["y" * 41] * 2) == [f"calm-otter: {'x' * 40}  {'y' * 41}", "y" * 41]


def test_a_long_text_is_broken_at_blanks_and_a_word_only_where_it_is_too_long_for_a_line():
    assert lines_of("word " * 40) == ["calm-otter: " + "word " * 22 + "word", "word " * 17]
    error = 'error="' + "word " * 20 + "/path" * 30 + '"'
    (first, *more) = lines_of(fields=[error])
    assert (first, " ".join(more[:1])) == ("calm-otter: run started", 'error="' + "word " * 19 + "word")
    assert "".join(more[1:]) == "/path" * 30 + '"'


def test_wide_letters_count_as_the_columns_that_they_take():
    assert columns("\u6d77\u8c79-1") == 6
    assert lines_of(subject="\u6d77" * 60, ids=[RUN]) == ["\u6d77" * 60 + ": run", "started", RUN]


def test_colours_change_nothing_but_the_colour():
    fields = ["pid=7", f"error={'e' * 200}"]
    line = LoggedEvent(at=AT, level="WARNING", subject="calm-otter", said="late " * 40, fields=fields, ids=[RUN])
    coloured = line.laid_out(coloured=True)
    assert "\x1b[33mWARNING\x1b[0m \x1b[1mcalm-otter:\x1b[0m late" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == line.laid_out()


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z", "M"), include_characters=" "), max_size=300)


@given(subject=TEXT, said=TEXT, fields=st.lists(TEXT, max_size=5), ids=st.lists(TEXT, max_size=2))
def test_whatever_is_said_no_line_is_too_long_and_nothing_is_lost(subject, said, fields, ids):
    lines = lines_of(said, fields, ids, subject=subject)
    assert max(columns(line) for line in lines) <= COLUMNS - INDENT
    given = sorted("".join([subject, ":", said, *fields, *ids]).replace(" ", ""))
    assert sorted("".join(lines).replace(" ", "")) == given
