"""`--show-flow-logs`: whole lines behind the run's name, none lost at the end, none twice."""

from __future__ import annotations

import io

from workers.flow_output import FlowOutput


def test_lines_come_whole_and_prefixed_and_the_last_one_without_its_end_too(tmp_path):
    stream, log = io.StringIO(), tmp_path / "log"
    output = FlowOutput(stream)
    output.follow(log, "blue-fox")
    output.copy()
    log.write_bytes(b"one\ntw")
    output.copy()
    assert stream.getvalue() == "blue-fox | one\n"
    with log.open("ab") as file:
        file.write("o\nünï".encode() + b"\xff")
    output.copy()
    output.finish(log)
    output.copy()
    output.copy()
    assert stream.getvalue() == "blue-fox | one\nblue-fox | two\nblue-fox | ünï\ufffd\n"


def test_an_adopted_run_is_followed_from_now_and_a_cut_file_from_its_start(tmp_path):
    stream, log = io.StringIO(), tmp_path / "log"
    log.write_bytes(b"old line\n")
    output = FlowOutput(stream)
    output.follow(log, "a", from_now=True)
    output.copy()
    assert stream.getvalue() == ""
    log.write_bytes(b"new\n")
    output.copy()
    log.write_bytes(b"\0" * 4096 + b"after a hole\n")
    output.copy()
    assert stream.getvalue() == "a | new\na | after a hole\n"


def test_two_runs_are_told_apart(tmp_path):
    stream = io.StringIO()
    output = FlowOutput(stream)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(f"of {name}\n".encode())
        output.follow(tmp_path / name, name)
    output.start()
    output.close()
    assert sorted(stream.getvalue().splitlines()) == ["a | of a", "b | of b"]
