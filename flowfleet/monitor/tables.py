"""Tables: how answers are printed, with colour and cut to fit on a terminal, plain and whole elsewhere."""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowfleet.printable import printable

#: columns of a small terminal
PLAIN_WIDTH = 80
#: columns of a pipe or a file: nothing is cut there, since programs and people read names in it
WHOLE_WIDTH = 10_000
_GAP = 2
#: names are cut no further than this: a shorter piece says nothing
_SHORTEST_NAME = 8
#: before a name is cut further than this, columns that matter less are left out
_READABLE_NAME = 12
#: of the words for a state, in every table; other words have none
_COLOURS = {
    "active": "green",
    "open": "green",
    "paused": "yellow",
    "draining": "yellow",
    "shut": "red",
    "running": "green",
    "missing": "red",
    "lingers": "yellow",
    "judged": "red",
    "completed": "green",
    "failed": "red",
    "crashed": "red",
    "lost": "red",
    "cancelled": "yellow",
}


def console(file: IO[str] | None = None, environ: Mapping[str, str] = os.environ) -> Console:
    """The console of standard output: colour and the width of a terminal; a pipe gets plain lines, whole.

    `COLUMNS` is obeyed in both, and FORCE_COLOR colours a pipe.
    """
    found = Console(file=file, _environ=environ)
    if (file or sys.stdout).isatty():
        return found
    given = environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and int(given) else WHOLE_WIDTH
    return Console(file=file, width=width, no_color=not found.is_terminal, highlight=False, _environ=environ)


def span(seconds: float | None) -> str:
    """A time span for people: 4s, 3m 20s, 5h 10m, 2d 3h."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below}{small}"
    return f"{whole}s"


def took(seconds: float | None) -> str:
    """The time that a run took, or has taken so far: 0.4s, 12.0s, 3m 20s."""
    return f"{seconds:.1f}s" if seconds is not None and 0 <= seconds < 60 else span(seconds)


def filled(items: Sequence[str], width: int) -> str:
    """The items beside each other, in as many lines as they need; none of them is broken."""
    lines = [items[0]]
    for item in items[1:]:
        joined = f"{lines[-1]}   {item}"
        lines[-1:] = [joined] if cell_len(joined) <= width else [lines[-1], item]
    return "\n".join(lines)


def coloured(word: str) -> Text:
    """The word for a state in its colour."""
    return Text(printable(word), style=_COLOURS.get(word, ""))


Cell = str | Text


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    width: int,
    right: Sequence[str] = (),
    names: Sequence[str] = (),
    least: Sequence[str] = (),
) -> Table:
    """A plain table no wider than `width`: only the columns of `names` are cut, the widest of them first.

    Where that would leave no readable names, the columns of `least` are left out, one after the other. rich itself
    would shorten numbers and names alike.
    """
    columns, rows = _kept(columns, rows, width, names, least)
    widths = [max([cell_len(title), *(_width(row[place]) for row in rows)]) for place, title in enumerate(columns)]
    places = [place for place, title in enumerate(columns) if title in names]
    over = sum(widths) + _GAP * (len(columns) - 1) - width
    while over > 0 and max(widths[place] for place in places) > _SHORTEST_NAME:
        widths[max(places, key=lambda place: widths[place])] -= 1
        over -= 1
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for place, title in enumerate(columns):
        side: Literal["right", "left"] = "right" if title in right else "left"
        made.add_column(title, justify=side, no_wrap=True, overflow="ellipsis", width=widths[place])
    for row in rows:
        made.add_row(*map(_text, row))
    return made


def _kept(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, names: Sequence[str], least: Sequence[str]
) -> tuple[Sequence[str], Sequence[Sequence[Cell]]]:
    """The columns, and their cells, that a table of this width has room for."""
    needed = {
        title: min(widest, _READABLE_NAME) if title in names else widest
        for place, title in enumerate(columns)
        for widest in [max([cell_len(title), *(_width(row[place]) for row in rows)])]
    }
    kept = list(columns)
    for title in least:
        if sum(needed[one] for one in kept) + _GAP * (len(kept) - 1) <= width:
            break
        kept.remove(title)
    places = [place for place, title in enumerate(columns) if title in kept]
    return kept, [[row[place] for place in places] for row in rows]


def _text(cell: Cell) -> Text:
    # a plain str would be read as markup: a run may be named `[red]`
    return Text(printable(cell)) if isinstance(cell, str) else cell


def _width(cell: Cell) -> int:
    return cell_len(_text(cell).plain)
