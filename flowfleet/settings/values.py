"""Values: the kinds of value that settings have, each parsed by one function and described by one phrase."""

from __future__ import annotations

import math
import re
from pathlib import Path
from urllib.parse import urlsplit

from flowfleet import logs
from flowfleet.settings.option import ValueKind

#: in characters; routes are made of labels, and the messages that carry them must stay short
LABEL_LENGTH = 255
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(text)
    return text


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _above_zero(text: str) -> float:
    if not (math.isfinite(float(text)) and float(text) > 0):
        raise ValueError(text)
    return float(text)


def _number(text: str) -> int:
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def _from_zero(text: str) -> float:
    if not (math.isfinite(float(text)) and float(text) >= 0):
        raise ValueError(text)
    return float(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise ValueError(text)
    return int(found[1]) * _SIZES[found[2]]


def _address(text: str) -> str:
    """An address where a page can be served: plain HTTP, with a port; raises ValueError for others."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or parts.port is None:
        raise ValueError(text)
    return text


def _pair(text: str) -> str:
    if "=" not in text.lstrip("="):
        raise ValueError(text)
    return text


def _pair_masked(text: str) -> str:
    """A NAME=VALUE text with its value masked; a text without a name is masked whole."""
    name, equals, _ = text.partition("=")
    return f"{name}={logs.MASK}" if equals else logs.MASK


def label(text: str) -> str:
    """A label that Prefect 1 accepts: any text that is not empty or too long; raises ValueError for others."""
    if not text.strip() or len(text) > LABEL_LENGTH:
        raise ValueError(text)
    return text


def shown_as(name: str) -> ValueKind:
    """The kind of any text but an empty one; `name` stands for the value in the help."""
    return ValueKind(parse=_some, wants="some text", metavar=name)


def _some(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text


def between(least: int, most: int, *, what: str = "a whole number", metavar: str = "N") -> ValueKind:
    """The kind of a whole number in this range, both ends included."""

    def parse(text: str) -> int:
        if not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return ValueKind(parse=parse, wants=f"{what} from {least} to {most}", metavar=metavar)


def one_of(*choices: str) -> ValueKind:
    """The kind of a value that is one of these words."""
    return ValueKind(choices=choices)


NAME = ValueKind(parse=_name, wants="letters, digits, dots, dashes and underscores (at most 64)", metavar="NAME")
COUNT = ValueKind(parse=_count, wants="a whole number from 1 up", metavar="N")
NUMBER = ValueKind(parse=_number, wants="a whole number from 0 up", metavar="N")
SECONDS = ValueKind(parse=_above_zero, wants="a number of seconds above 0", metavar="SECONDS")
GRACE = ValueKind(parse=_from_zero, wants="a number of seconds from 0 up", metavar="SECONDS")
DAYS = ValueKind(parse=_from_zero, wants="a number of days from 0 up", metavar="DAYS")
PORT = between(1, 65535, what="a port", metavar="PORT")
ADDRESS = ValueKind(
    parse=_address,
    wants="http://HOST:PORT with the port, for example http://127.0.0.1:8080",
    metavar="http://HOST:PORT",
)
SIZE = ValueKind(parse=_size, wants="a size such as 500M or 1G", metavar="SIZE")
LABEL = ValueKind(parse=label, wants=f"some text of at most {LABEL_LENGTH} characters", metavar="LABEL")
PAIR = ValueKind(parse=_pair, wants="NAME=VALUE", metavar="K=V", masked=_pair_masked)
FILE = ValueKind(parse=Path, wants="a path", metavar="FILE")
FOLDER = ValueKind(parse=Path, wants="a path", metavar="FOLDER")
SWITCH = ValueKind(switch=True)
