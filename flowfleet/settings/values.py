"""Values: the kinds of value that settings have, each parsed by one function and described by one phrase."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowfleet import logs

#: in characters; routes are made of labels, and the messages that carry them must stay short
LABEL_LENGTH = 255
#: of names that may be any text
NAME_LENGTH = 255
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """A kind of value: how it is parsed from text, and how it is described to people."""

    #: raises ValueError for a text that is no such value
    parse: Callable[[str], Any] = str
    #: what a right value looks like, for the error about a wrong one
    wants: str = "text"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    switch: bool = False
    #: None = one value; else the text that separates several values in the variable
    separator: str | None = None
    #: gives what people may see of a value that may hold a secret; None = the whole value
    masked: Callable[[str], str] | None = None
    #: True when the value may stand in a file that the variable with _FILE at its end names
    by_file: bool = False


def _as_it_is(accepts: Callable[[str], object]) -> Callable[[str], str]:
    """The parser of a text that stays as it is."""

    def parse(text: str) -> str:
        if not accepts(text):
            raise ValueError(text)
        return text

    return parse


def fitting(name: str) -> str:
    """A name that may be any text as keys and folders can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "agent"


def size(text: str) -> int:
    """The bytes of a size such as 500M or 1g; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise ValueError(text)
    return int(float(found[1]) * _SIZES[found[2]])


def _enough_memory(text: str) -> int:
    found = size(text)
    if found < _LEAST_MEMORY:
        raise ValueError(text)
    return found


def _is_address(text: str) -> bool:
    """Whether a page can be served at this address: plain HTTP, with a port."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    return parts.scheme == "http" and parts.port is not None


def _pair_masked(text: str) -> str:
    """A NAME=VALUE text with its value masked; a text without a name is masked whole."""
    name, equals, _ = text.partition("=")
    return f"{name}={logs.MASK}" if equals else logs.MASK


def _secret_masked(text: str) -> str:
    return logs.redact_url(text) if "://" in text else logs.MASK


def secret(name: str, *, by_file: bool = True) -> ValueKind:
    """The kind of any text that is a secret, or an address that may have one in it."""
    return replace(text_as(name), masked=_secret_masked, by_file=by_file)


def text_as(name: str, separator: str | None = None) -> ValueKind:
    """The kind of any text but an empty one; `name` stands for the value in the help."""
    return ValueKind(parse=_as_it_is(str.strip), wants="some text", metavar=name, separator=separator)


def between(least: float, most: float = math.inf, of: Callable[[str], float] = int) -> ValueKind:
    """The kind of a number in this range, both ends included."""

    def parse(text: str) -> float:
        number = of(text)
        if not least <= number <= most or number == math.inf:
            raise ValueError(text)
        return number

    end = "up" if most == math.inf else f"to {most}"
    return ValueKind(parse=parse, wants=f"a whole number from {least} {end}", metavar="N")


def one_of(*choices: str) -> ValueKind:
    """The kind of a value that is one of these words."""
    return ValueKind(choices=choices, metavar="|".join(choices))


def some_of(*choices: str) -> ValueKind:
    """The kind of a value that is one of these words, or several of them with commas; it is parsed to a tuple."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in text.split(","))
        if not set(words) <= set(choices):
            raise ValueError(text)
        return words

    return ValueKind(
        parse=parse, wants=f"{', '.join(choices[:-1])} or {choices[-1]}, several with commas", metavar="|".join(choices)
    )


NAME = ValueKind(
    parse=_as_it_is(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch),
    wants="letters, digits, dots, dashes and underscores (at most 64)",
    metavar="NAME",
)
#: of a poller or worker, which Prefect 1 shows as it is; `fitting` makes of it what keys and folders can have
ANY_NAME = ValueKind(
    parse=_as_it_is(lambda text: text.strip() and text.isprintable() and len(text) <= NAME_LENGTH),
    wants=f"some text in one line, of at most {NAME_LENGTH} characters",
    metavar="NAME",
)
NAMES = text_as("NAME", ",")
COUNT = between(1)
NUMBER = between(0)
PORT = replace(between(1, 65535), wants="a port from 1 to 65535", metavar="PORT")
GRACE = replace(between(0, of=float), wants="a number of seconds from 0 up", metavar="SECONDS")
SECONDS = replace(between(math.nextafter(0, 1), of=float), wants="a number of seconds above 0", metavar="SECONDS")
CPUS = replace(between(math.nextafter(0, 1), of=float), wants="a number above 0, such as 1.5", metavar="N")
DAYS = replace(between(0, of=float), wants="a number of days from 0 up", metavar="DAYS")
ADDRESS = ValueKind(
    parse=_as_it_is(_is_address),
    wants="http://HOST:PORT with the port, for example http://127.0.0.1:8080",
    metavar="http://HOST:PORT",
)
SIZE = ValueKind(parse=size, wants="a size such as 500M or 1G", metavar="SIZE")
#: engines of containers refuse less, and no Python starts in it
_LEAST_MEMORY = 6 << 20
MEMORY = ValueKind(parse=_enough_memory, wants="a size of at least 6M, such as 500M or 1G", metavar="SIZE")
USER = ValueKind(
    parse=_as_it_is(re.compile(r"[^:\s]+(:[^:\s]+)?").fullmatch),
    wants="USER or USER:GROUP, each a name or a number",
    metavar="USER",
)
LABELS = ValueKind(
    # what Prefect 1 accepts
    parse=_as_it_is(lambda text: text.strip() and len(text) <= LABEL_LENGTH),
    wants=f"some text of at most {LABEL_LENGTH} characters",
    metavar="LABEL",
    separator=",",
)
PAIRS = ValueKind(
    parse=_as_it_is(lambda text: "=" in text.lstrip("=")),
    wants="NAME=VALUE",
    metavar="K=V",
    separator="\n",  # values hold commas
    masked=_pair_masked,
)
#: in the variable a line each, since a source may have a comma
VOLUMES = text_as("SOURCE:PATH", "\n")
PATH = ValueKind(parse=Path, wants="a path", metavar="PATH")
FILE = ValueKind(parse=Path, wants="a path", metavar="FILE")
FOLDER = ValueKind(parse=Path, wants="a path", metavar="FOLDER")
SWITCH = ValueKind(switch=True)
#: of a variable that only tests set; it is not shown to people
FOR_TESTS = ValueKind()
SECRET = ValueKind(masked=_secret_masked, by_file=True)
