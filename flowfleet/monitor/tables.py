"""Tables: how answers are printed, with colour and cut to fit on a terminal, plain and whole elsewhere."""

import math
import os
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


def console(file: IO[str] | None = None, environ: Mapping[str, str] = os.environ) -> Console:
    """The console of standard output: colour and the width of a terminal; a pipe gets plain lines, whole.

    `COLUMNS` is obeyed in both.
    """
    found = Console(file=file, _environ=environ)
    if found.is_terminal:
        return found
    given = environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and int(given) else WHOLE_WIDTH
    return Console(file=file, width=width, no_color=True, highlight=False)


def span(seconds: float | None) -> str:
    """A time span for people: 4s, 3m 20s, 5h 10m, 2d 3h."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = int(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // below}{small}"
    return f"{whole}s"


Cell = str | Text


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    width: int,
    right: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Table:
    """A plain table no wider than `width`: only the columns of `names` are cut, the widest of them first.

    rich itself would shorten numbers and names alike.
    """
    widths = [
        max([cell_len(title), *(_width(row[place]) for row in rows)]) if rows else cell_len(title)
        for place, title in enumerate(columns)
    ]
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


def _text(cell: Cell) -> Text:
    # a plain str would be read as markup: a run may be named `[red]`
    return Text(printable(cell)) if isinstance(cell, str) else cell


def _width(cell: Cell) -> int:
    return cell_len(_text(cell).plain)
