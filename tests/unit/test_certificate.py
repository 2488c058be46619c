"""The death certificate: who ended a run, what it took, and what of it goes to the ledger and to people."""

import dataclasses
import json

import pytest

from flowfleet import certificate
from flowfleet.certificate import EndedBy
from workers.exit import Exit, StopReason


@pytest.mark.parametrize(
    ("end", "by"),
    [
        (Exit(code=0), EndedBy.ITSELF),
        (Exit(code=137), EndedBy.ITSELF),
        (Exit(signal=11), EndedBy.ITSELF),
        (Exit(signal=9), EndedBy.UNKNOWN),
        (Exit(signal=15), EndedBy.UNKNOWN),
        (Exit(signal=9, oom=True), EndedBy.OOM),
        (Exit(signal=9, oom_on_host=True), EndedBy.UNKNOWN),
        (Exit(signal=9, oom=True, stopped_by="term", stop_reason="cancelled"), EndedBy.OOM),
        (Exit(unknown=True), EndedBy.UNKNOWN),
        (Exit(unknown=True, rebooted=True), EndedBy.HOST_REBOOT),
        (Exit(let_go="it cannot be reached"), EndedBy.UNKNOWN),
        (Exit(error="there is no command x"), EndedBy.NOT_STARTED),
        (Exit(signal=9, stopped_by="kill"), EndedBy.UNKNOWN),
        (Exit(signal=9, stopped_by="kill", stop_reason="of-a-later-version"), EndedBy.UNKNOWN),
        (Exit(signal=9, stopped_by="kill", stop_reason="dead-mans-switch"), EndedBy.SWITCH),
        (Exit(signal=15, stopped_by="term", stop_reason=StopReason.CANCEL), EndedBy.CANCEL),
        (Exit(code=0, stopped_by="term", stop_reason=StopReason.WORKER), EndedBy.DRAIN),
        (Exit(signal=15, stopped_by="term", stop_reason=StopReason.TIMEOUT), EndedBy.TIMEOUT),
        (Exit(unknown=True, stopped_by="kill", stop_reason=StopReason.FENCE), EndedBy.FENCED),
        (Exit(signal=9, stopped_by="kill", stop_reason=StopReason.LINGER), EndedBy.LINGER),
    ],
)
def test_who_ended_a_run_follows_from_the_facts_of_its_end(end, by):
    assert end.ended_by is by
    assert end.certificate()["ended_by"] == by.value


def test_each_reason_of_a_stop_has_somebody_who_ended_the_run():
    ends = [Exit(signal=15, stopped_by="term", stop_reason=reason.value) for reason in StopReason]
    assert EndedBy.UNKNOWN not in {end.ended_by for end in ends}


def test_a_record_of_an_earlier_version_still_reads():
    old = {"v": 1, "begun": True, "code": None, "signal": 9, "oom": False, "stopped_by": None, "max_rss_kib": 9}
    end = Exit.from_record(old)
    assert (end.signal, end.max_rss_kib, end.tree_peak_kib, end.oom_on_host) == (9, 9, None, None)
    assert end.ended_by is EndedBy.UNKNOWN
    assert str(end) == "was killed by SIGKILL (often the kernel's out-of-memory killer)"


def test_a_record_reads_back_as_the_same_end():
    end = Exit(signal=9, oom=True, oom_kills=1, wall_seconds=2.0, tree_peak_kib=4, last_lines=("a", "b"))
    assert Exit.from_record(json.loads(json.dumps(end.to_record()))) == end
    assert Exit.from_record({**end.certificate(), "a_later_fact": 1}) == dataclasses.replace(end, last_lines=())


def test_the_certificate_is_bounded_and_has_of_the_output_the_last_line_only_and_redacted():
    lines = ("first", "x redis://user:secret@redis.example.com:6379/0 " + "y" * 9000, "  ")
    record = Exit(code=3, why="w" * 9000, last_lines=lines).certificate()
    assert "last_lines" not in record
    assert len(json.dumps(record)) < 2500
    assert "secret" not in json.dumps(record)
    assert record["last_line"].startswith("x redis://")
    assert Exit(code=0, last_lines=("all is well",)).certificate()["last_line"] is None, "nobody is told of it"


def test_the_wall_time_is_the_clocks_that_nobody_sets_and_else_that_of_the_dates():
    assert Exit(code=0, started_at=5.0, ended_at=9.0).certificate()["wall_seconds"] == 4.0
    assert Exit(code=0, started_at=5.0, ended_at=9.0, wall_seconds=3.5).certificate()["wall_seconds"] == 3.5
    assert Exit(code=0, started_at=9.0, ended_at=5.0).certificate()["wall_seconds"] == 0.0, "the date was set back"


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (Exit(signal=9, oom=True), "was killed by SIGKILL: the kernel ran out of memory for it"),
        (
            Exit(signal=9, oom_on_host=True),
            "was killed by SIGKILL; the kernel killed something for memory on this host then",
        ),
        (Exit(signal=9, oom_on_host=False), "was killed by SIGKILL"),
        (Exit(signal=15, oom_on_host=True), "was killed by SIGTERM"),
        (Exit(code=1, oom_on_host=True), "exited with code 1"),
        (Exit(code=137, oom_kills=1), "exited with code 137; the kernel had killed a process of it for memory"),
        (
            Exit(signal=9, oom_kills=2, oom_on_host=True),
            "was killed by SIGKILL; the kernel had killed 2 processes of it for memory",
        ),
        (Exit(code=0, oom_kills=2), "exited with code 0"),
    ],
)
def test_what_the_kernel_has_killed_for_memory_is_told_as_far_as_it_is_known(end, sentence):
    assert str(end) == sentence


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, ""),
        ({"wall_seconds": 200.4}, "It took 3 min 20 s."),
        ({"wall_seconds": 0.041, "cpu_seconds": 41.0}, "It took 41 ms and 41 s of CPU time."),
        ({"max_rss_kib": 524288}, "It took up to 512 MiB of memory."),
        (
            {"wall_seconds": 60.0, "cpu_seconds": 1.23, "max_rss_kib": 3500, "tree_peak_kib": 1572864},
            "It took 1 min, 1.2 s of CPU time and up to 3.4 MiB of memory (1.5 GiB with all its processes and files).",
        ),
        ({"max_rss_kib": 5000, "tree_peak_kib": 4000}, "It took up to 4.9 MiB of memory."),
    ],
)
def test_what_a_run_took_is_a_sentence_with_units_for_people(facts, sentence):
    assert certificate.usage(facts) == sentence


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0004, "less than 1 ms"),
        (0.0057, "6 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_time_for_people_has_two_units_at_most_and_no_long_fraction(seconds, words):
    assert certificate.duration(seconds) == words


def test_who_ended_a_run_is_read_from_the_ledger_as_far_as_it_is_known():
    assert EndedBy.of(Exit(signal=9, oom=True).certificate()) is EndedBy.OOM
    assert {EndedBy.of(facts) for facts in (None, {}, {"ended_by": "a later word"}, {"ended_by": 3})} == {
        EndedBy.UNKNOWN
    }


def test_an_end_is_shown_under_names_that_stay():
    assert certificate.shown(None) is None
    shown = certificate.shown(Exit(code=3).certificate())
    assert tuple(shown) == certificate.NAMES
    assert (shown["ended_by"], shown["code"], shown["tree_peak_kib"]) == ("itself", 3, None)
    assert certificate.shown({"code": 3})["ended_by"] is None, "a record of an earlier version"
