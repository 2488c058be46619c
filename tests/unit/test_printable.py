"""Printable text, and tables made of names as others choose them."""

import io

import pytest
from rich.console import Console

from flowfleet.monitor.tables import WHOLE_WIDTH, console, table
from flowfleet.printable import printable

NAMES = {
    "plain-otter": "plain-otter",
    "two\nlines": "two\\nlines",
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "\u202egnp.exe": "\\u202egnp.exe",
    "a\u2028b\x85c\x9bd": "a\\u2028b\\x85c\\x9bd",
    "wide\u3000space": "wide space",
    "[red]x[/]": "[red]x[/]",
    "[/]": "[/]",
    "שלום": "שלום",
    '👩\u200d🚀 Müller\'s "run"': '👩\u200d🚀 Müller\'s "run"',
}


@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_a_name_of_others_stays_in_its_line_and_its_cell(name, shown):
    assert printable(name) == shown
    out = io.StringIO()
    console = Console(file=out, width=80, no_color=True)
    console.print(table(("NAME", "STATE"), [(name, "running"), ("other", "queued")], width=80, names=("NAME",)))
    head, first, second = out.getvalue().splitlines()
    assert first.split("  ")[0] == shown
    assert second.startswith("other")
    assert {line.split()[-1] for line in (head, first, second)} == {"STATE", "running", "queued"}


def test_a_table_is_as_wide_as_its_cells_are_on_a_terminal():
    out = io.StringIO()
    Console(file=out, width=30, no_color=True).print(
        table(("NAME", "STATE"), [("運転手" * 9, "running")], width=30, names=("NAME",))
    )
    assert "…" in out.getvalue()
    assert "running" in out.getvalue()


def test_a_pipe_gets_whole_names_and_columns_is_obeyed():
    assert console(io.StringIO(), {}).width == WHOLE_WIDTH
    assert console(io.StringIO(), {"COLUMNS": "72"}).width == 72
    out = io.StringIO()
    pipe = console(out, {"FORCE_COLOR": ""})
    name = "n" * 300
    pipe.print(table(("NAME", "STATE"), [(name, "running")], width=pipe.width, names=("NAME",)))
    assert out.getvalue().splitlines()[1] == f"{name}  running"
