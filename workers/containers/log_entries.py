"""Log entries: what an engine sends of a container's output, told apart: frames of two streams, or lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from workers.containers.container import moment

#: the one stream of a container with a terminal
TERMINAL = 0
#: what is longer is several entries for the engine, each with a time (docker 20.10)
LONGEST_ENTRY = 16 * 1024
_HEAD = 8
#: a line of a terminal without times is handed on in parts of that size
_LONGEST_LINE = 1 << 20
_TIMED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.?(\d{0,9})(Z|[+-]\d\d:\d\d) ")


@dataclass(frozen=True)
class Entry:
    """What the engine has kept as one piece, or a line of it."""

    #: of which stream it is
    stream: int
    #: the engine's time of the entry; empty for the rest of one that it has cut, and where no times are asked for
    time: str
    data: bytes


def entries_of(pieces: Iterator[bytes], *, tty: bool, times: bool = True) -> Iterator[Entry]:
    """The entries of a log: frames of a head and a text, or with a terminal the lines.

    Without times nothing tells the engine's entries of a terminal apart: of what has come, the last line is one entry
    and all before it another.
    """
    if times:
        return (Entry(stream, *_timed(text)) for stream, text in (_lines(pieces) if tty else _frames(pieces)))
    if tty:
        return (Entry(TERMINAL, "", lines) for lines in _but_last_line(pieces))
    return (Entry(stream, "", text) for stream, text in _frames(pieces))


def _frames(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    rest = b""
    for piece in pieces:
        rest += piece
        position = 0
        while len(rest) - position >= _HEAD:
            end = position + _HEAD + int.from_bytes(rest[position + 4 : position + _HEAD], "big")
            if len(rest) < end:
                break
            yield rest[position], rest[position + _HEAD : end]
            position = end
        rest = rest[position:]


def _lines(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines, and of a line that is longer than the engine keeps in one entry each of its parts."""
    rest = b""
    for piece in pieces:
        rest += piece
        position = 0
        while (end := _end_of_line(rest, position)) is not None:
            yield TERMINAL, rest[position:end]
            position = end
        rest = rest[position:]
    if rest:
        yield TERMINAL, rest


def _but_last_line(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, the last line as a piece of its own."""
    rest = b""
    for piece in pieces:
        rest += piece
        end = rest.rfind(b"\n", 0, len(rest) - 1) + 1 or max(0, len(rest) - _LONGEST_LINE)
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _end_of_line(data: bytes, position: int) -> int | None:
    found = _TIMED.match(data, position)
    begin = found.end() if found else position
    newline = data.find(b"\n", begin, begin + LONGEST_ENTRY)
    if newline >= 0:
        return newline + 1
    return begin + LONGEST_ENTRY if len(data) >= begin + LONGEST_ENTRY else None


def _timed(entry: bytes) -> tuple[str, bytes]:
    found = _TIMED.match(entry)
    if not found:
        return "", entry  # the rest of an entry that the engine has cut
    return found.group(0).decode().strip(), entry[found.end() :]


def since(text: str) -> str:
    """The engine's time as it takes one: seconds with nine digits behind the point."""
    found = _TIMED.match(f"{text} ".encode())
    assert found
    whole = moment(f"{found.group(1).decode()}{found.group(3).decode()}")
    return f"{int(whole or 0)}.{found.group(2).decode():0<9}"
