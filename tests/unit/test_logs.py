"""Logs: the format, the fields, that no secret comes through, and that a guarded fault goes no further."""

import io
import json
import logging
import threading
import time

import pytest

from flowfleet import logs
from flowfleet.guard import guarded

logger = logging.getLogger(__name__)


def test_a_fault_is_logged_with_its_fields_and_goes_no_further(caplog):
    with guarded(logger, "a turn failed", run_id="r"):
        raise ZeroDivisionError

    (record,) = caplog.records
    assert (record.getMessage(), record.levelname, record.run_id) == ("a turn failed", "ERROR", "r")
    assert record.exc_info[0] is ZeroDivisionError


def test_an_end_of_the_process_passes_through(caplog):
    with pytest.raises(KeyboardInterrupt), guarded(logger, "a turn failed"):
        raise KeyboardInterrupt
    assert caplog.records == []


@pytest.fixture
def logged():
    """A logger whose lines of either style can be read."""

    def start(style="text", secrets=()):
        stream = io.StringIO()
        logs.configure("DEBUG", style, secrets=secrets, stream=stream)
        return logging.getLogger("workers.runs.launch"), stream

    return start


def test_a_text_line_has_time_level_place_message_fields_and_at_the_end_run_and_claim(logged):
    logger, stream = logged()
    fields = {"slots": 3, "claim": "c1", "run_id": "r1", "wait": 0.25, "why": "two words", "pid": None}
    logger.info("run taken", extra=fields)
    line = stream.getvalue()
    assert line.endswith('INFO    launch: run taken  slots=3 wait=0.25 why="two words" run_id=r1 claim=c1\n')
    assert line[:20].count(":") == 2

    logger, stream = logged()
    logger.info("quiet", extra={"run_id": None})
    assert stream.getvalue().endswith("launch: quiet\n")


def test_the_subject_is_the_run_where_there_is_one_else_the_part_or_a_library_by_its_whole_name(logged):
    logger, stream = logged()
    logger.info("run taken", extra={"run_id": "r1", "run_name": "calm otter"})
    logging.getLogger("workers.lifecycle.stop_signals").info("a stop is asked for")
    logging.getLogger("some.library").warning("late")
    assert [line[33:] for line in stream.getvalue().splitlines()] == [
        "calm otter: run taken  run_id=r1",
        "stop signals: a stop is asked for",
        "some.library: late",
    ]


def test_a_neighbour_that_the_message_names_is_no_field_of_the_text_and_one_of_the_json(logged):
    neighbour = {"neighbour": "the Prefect API"}
    for style in ("text", "json"):
        logger, stream = logged(style)
        logger.warning("the Prefect API answers again", extra=neighbour)
        logger.warning("a job was refused", extra=neighbour)
        first, second = stream.getvalue().splitlines()
        assert ("neighbour" in first, "neighbour" in second) == (style == "json", True)


def test_no_line_is_too_long_and_a_secret_is_gone_before_it_could_be_parted(logged):
    logger, stream = logged(secrets=["many words of a secret"])
    error = " ".join(["many words of a secret"] * 40)
    logger.warning("run could not be started", extra={"run_id": "r" * 36, "run_name": "calm-otter", "error": error})
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 160
    assert " ".join(line.strip() for line in lines).count("***") == 40
    assert "secret" not in stream.getvalue()


def test_colours_are_for_a_terminal_alone(monkeypatch):
    for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({}, False)):
        for name in ("TERM", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        logs.configure("INFO", stream=stream)
        logging.getLogger("poller.loop").warning("late", extra={"slots": 3})
        assert ("\x1b[33mWARNING" in stream.getvalue()) is coloured
        assert ("\x1b" in stream.getvalue()) is coloured


HEARD = {
    "TRACE": {"poller.loop", "celery.worker.strategy", "kombu.transport", "plug.in"},
    "DEBUG": {"poller.loop", "plug.in"},
    "ERROR": set(),
}


@pytest.mark.parametrize("level", HEARD)
def test_celerys_own_lines_come_with_trace_alone(level, logged):
    _, stream = logged()
    logs.set_level(level)
    for name in ("poller.loop", "celery.worker.strategy", "kombu.transport", "plug.in"):
        logging.getLogger(name).debug("a line")
    assert {line[33:].partition(": ")[0].replace("loop", "poller.loop") for line in stream.getvalue().splitlines()} == (
        HEARD[level]
    )


def test_of_an_outage_celery_says_nothing_since_our_own_lines_do_and_of_a_fault_it_does(logged):
    _, stream = logged()
    logs.set_level("INFO")
    logging.getLogger("celery.worker.consumer.consumer").error("consumer: Cannot connect to redis")
    logging.getLogger("celery.worker.consumer.connection").warning("Connected")
    logging.getLogger("celery.app.trace").error("Task raised unexpected")
    assert [line[33:] for line in stream.getvalue().splitlines()] == ["celery.app.trace: Task raised unexpected"]


def test_a_json_line_is_one_object_with_the_fields(logged):
    logger, stream = logged("json")
    logger.warning("late", extra={"run_id": "r1", "routes": {"a": 1}})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["run_id"], line["routes"]) == ("late", "WARNING", "r1", {"a": 1})


@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_are_blackened_in_messages_fields_and_traces(logged, style):
    logger, stream = logged(style, ['s3cr"t/x', "s3cr"])
    try:
        int('bad s3cr"t/x')
    except ValueError:
        logger.exception('at s3cr"t/x', extra={"url": "redis://me:hidden@box/0", "deep": {"a": ["s3cr%22t%2Fx"]}})
    text = stream.getvalue()
    assert "s3cr" not in text
    assert "t%2Fx" not in text
    assert "hidden" not in text
    assert "me:***@box" in text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://:p@w@h/0", "redis://:***@h/0"),
        ("http://token@h/api", "http://***@h/api"),
        ("http://h/api?x=a@b", "http://h/api?x=a@b"),
        ("see http://a:b@h and c@d", "see http://a:***@h and c@d"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
    ],
)
def test_credentials_in_addresses_and_headers_are_blackened_unknown_or_not(text, clean):
    assert logs.Redactor()(text) == clean


def test_a_secret_found_later_is_kept_too(logged):
    logger, stream = logged()
    logs.keep_secret("found-later")
    logger.info("key is found-later")
    assert "found-later" not in stream.getvalue()


def test_a_secret_that_is_found_while_another_one_is_being_kept_is_not_lost():
    class Slow(str):
        """A secret whose length is asked for, for the last time when the others are about to be replaced."""

        __slots__ = ()
        asked, meanwhile = 0, {}

        def __len__(self):
            Slow.asked += 1
            self.meanwhile.get(Slow.asked, bool)()
            return super().__len__()

    logs.Redactor().keep(Slow("first-secret"))
    redact = logs.Redactor()
    other = threading.Thread(target=redact.keep, args=("second-secret",))
    Slow.meanwhile[2 * Slow.asked] = lambda: (other.start(), other.join(0.2))
    redact.keep(Slow("first-secret"))
    other.join()
    assert redact("first-secret second-secret") == "*** ***"


def test_a_second_configure_replaces_the_first(logged):
    _, first = logged()
    logger, second = logged()
    logger.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


@pytest.mark.parametrize("piece", ["x", "a.b-c+", "http://", "http://u:", "bearer "])
def test_a_megabyte_without_a_break_is_looked_through_in_a_moment(piece):
    begun = time.process_time()
    logs.redact(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begun < 20  # by a square law it would be hours


@pytest.fixture
def program(monkeypatch):
    """The root logger of a program with one handler of its own, and what that has written."""
    stream, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("mine %(message)s"))
    monkeypatch.setattr(root, "handlers", [handler])
    levels = {name: logging.getLogger(name).level for name in (*logs._OWN_LOGGERS, "agent", None)}
    root.setLevel("WARNING")
    yield stream
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_program_with_logs_of_its_own_gets_each_line_of_ours_once_and_whole_and_keeps_its_own(program):
    for _ in range(2):  # an agent may be started again
        logs.join("INFO", secrets=["pass-word"], also="agent")
    logs.set_level("INFO")
    logs.keep_secret("found-later")
    logging.getLogger("poller.loop").info("run %s", "claimed", extra={"run_id": "r", "url": "redis://:pass-word@h"})
    logging.getLogger("agent").info("agent starts", extra={"key": "found-later"})
    logging.getLogger("theirs").warning("pass-word", extra={"run_id": "r"})
    logging.getLogger("theirs").info("below their level")
    assert program.getvalue().splitlines() == [
        "mine run claimed  url=redis://:***@h run_id=r",
        "mine agent starts  key=***",
        "mine pass-word",
    ]


def test_a_program_without_logs_of_its_own_gets_ours(program, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.join("INFO")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler.formatter, logs.TextFormatter)
