"""Guard: a fault in one turn is logged with its fields, and only an end of the process passes through."""

import logging

import pytest

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
