"""The first words of a poller at Prefect 1."""

import io
import logging

from poller.banner import BANNER, greet


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_letters_are_for_terminals_and_the_two_lines_for_all(caplog):
    caplog.set_level(logging.INFO)
    screen, pipe, asked = Terminal(), io.StringIO(), io.StringIO()
    greet("agent@host", ["y", "x"], out=screen)
    greet("agent@host", [], out=pipe)
    greet("agent@host", [], out=asked, shown=True)
    assert (screen.getvalue().rstrip("\n"), pipe.getvalue()) == (BANNER.rstrip("\n"), "")
    assert asked.getvalue() == screen.getvalue()
    assert max(map(len, BANNER.splitlines())) < 60
    assert [record.message for record in caplog.records[:2]] == ["Starting the poller", "Waiting for flow runs..."]
    assert caplog.records[0].labels == ["x", "y"]
    assert caplog.records[2].labels == "those of its workers"
