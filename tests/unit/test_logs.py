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


def test_a_text_line_has_time_level_place_message_and_run_and_claim_first_and_no_field_that_is_none(logged):
    logger, stream = logged()
    logger.info("run taken", extra={"slots": 3, "claim": "c1", "run_id": "r1", "wait": 0.25, "why": "two words"})
    line = stream.getvalue()
    assert line.endswith(
        'INFO    workers.runs.launch: run taken  run_id=r1 claim=c1 slots=3 wait=0.25 why="two words"\n'
    )
    assert line[:20].count(":") == 2

    logger, stream = logged()
    logger.info("quiet", extra={"run_id": None})
    assert stream.getvalue().endswith("quiet\n")


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
        "mine run claimed  run_id=r url=redis://:***@h",
        "mine agent starts  key=***",
        "mine pass-word",
    ]


def test_a_program_without_logs_of_its_own_gets_ours(program, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logs.join("INFO")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler.formatter, logs.TextFormatter)
