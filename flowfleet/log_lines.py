"""Log lines: one event of the log laid out for people: at most 160 columns, ids at the end, colours on a terminal."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

#: the most columns of a line
COLUMNS = 160
#: the columns of time and level, below which the lines go on that hold the rest of an event
INDENT = 33
#: a line and its rest are read as two columns: to the left when and how bad, to the right who and what
_ROOM = COLUMNS - INDENT
_LEVELS = {"WARNING": "33", "ERROR": "1;31", "CRITICAL": "1;31"}
_BOLD, _FAINT = "1", "2"


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """One event: what is said of whom, with its fields as NAME=VALUE; no text of it has a control character."""

    at: str
    level: str
    subject: str
    said: str
    fields: Sequence[str] = ()
    #: the fields by which the lines of one run are found: the first stays beside what is said if there is room for one
    ids: Sequence[str] = ()

    def laid_out(self, *, coloured: bool = False) -> str:
        """The line, and below it, indented, what has no room in it; nothing is cut."""
        paint = _painted if coloured else _plain
        first, *more = _wrapped(f"{self.subject}: {self.said}")
        beside, below = ([], [*self.fields, *self.ids]) if more else self._seated(columns(first))
        name = f"{self.subject}:" if first.startswith(f"{self.subject}:") else ""  # a very long one is wrapped
        head = f"{paint(_FAINT, self.at)} {paint(_LEVELS.get(self.level, _FAINT), f'{self.level:<7}')} "
        told = [paint(_FAINT, field) if field in self.ids else field for field in beside]
        tail = f"  {' '.join(told)}" if told else ""
        # ids stand last, so a line that begins with one has nothing else
        rest = [*more, *(paint(_FAINT, line) if line.startswith(tuple(self.ids)) else line for line in _filled(below))]
        lines = (f"{head}{paint(_BOLD, name)}{first[len(name) :]}{tail}", *(" " * INDENT + line for line in rest))
        return "\n".join(lines)

    def _seated(self, used: int) -> tuple[list[str], list[str]]:
        """The fields with room in the first line, and those without: the first id chooses first, and ids stand last."""
        every = (*self.fields, *self.ids)
        first_id, left = len(self.fields), _ROOM - used - 1
        seated: set[int] = set()
        for place in sorted(range(len(every)), key=lambda place: place != first_id):
            if columns(every[place]) < left:
                seated.add(place)
                left -= columns(every[place]) + 1
        beside = [field for place, field in enumerate(every) if place in seated]
        return beside, [field for place, field in enumerate(every) if place not in seated]


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - few lines need it, and each process would load it

    return cell_len(text)


def takes_colours(stream: TextIO | None) -> bool:
    """Whether what is written to the stream is seen on a terminal that shows colours, and these are wanted."""
    # a process that was started with its stderr closed has none
    if stream is None or not stream.isatty():
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def _painted(style: str, text: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if text else ""


def _plain(_style: str, text: str) -> str:
    return text


def _filled(fields: Iterable[str]) -> list[str]:
    """Lines of as many whole fields as have room; one that has none in a line of its own is wrapped."""
    lines: list[str] = []
    left = 0
    for field in fields:
        if columns(field) < left:
            lines[-1] += f" {field}"
        else:
            lines += _wrapped(field)
        left = _ROOM - columns(lines[-1])
    return lines


def _wrapped(text: str) -> list[str]:
    """The text in lines that have room, broken at blanks, and inside a word only where the word is too long."""
    lines, begin = [], 0
    # looked at is one line's worth of it at a time: an error may hold megabytes
    while len(text) - begin > _ROOM or columns(text[begin:]) > _ROOM:
        most = _most(text[begin : begin + _ROOM])
        # of a blank just behind the last column, too
        at = text.rfind(" ", begin + 1, begin + most + 1)
        lines.append(text[begin : at if at > 0 else begin + most])
        begin = at + 1 if at > 0 else begin + most
    return [*lines, text[begin:]]


def _most(text: str) -> int:
    """How many characters of the text have room in a line."""
    if text.isascii():
        return min(len(text), _ROOM)
    return bisect_right(range(1, len(text) + 1), _ROOM, key=lambda most: columns(text[:most]))
