"""Kinds: the form that each setting of a container has, as the SDK takes it.

A run's settings are JSON that anybody may have written. What has another form is told here, so that neither the SDK
nor we meet it half way through a start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from flowfleet.errors import UnsupportedRun
from flowfleet.settings import values

#: the value as the SDK takes it; raises `OtherForm`
Kind = Callable[[Any], Any]

_SIGNAL = re.compile(r"SIG[A-Z0-9]+([+-]\d+)?|\d{1,2}")
#: the most bytes that an engine can be told
_MOST_BYTES = 1 << 62


class OtherForm(Exception):
    """What the value must be."""


def text(value: Any) -> str:
    """A text, or a number as one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise OtherForm("a text")
    if "\0" in str(value):
        raise OtherForm("a text without a zero byte")
    return str(value)


def number(value: Any) -> int:
    """A whole number, or a text of one."""
    given = value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value.strip()):
        given = int(value)
    if isinstance(given, float) and math.isfinite(given) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise OtherForm("a whole number")
    return given


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise OtherForm("true or false")
    return value


def size(value: Any) -> int | None:
    """Bytes, by a number or a text such as 512m; None for 0 and -1, by which nothing is asked for."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise OtherForm("a size such as 512m")
    if str(value).strip() in ("0", "-1", "0.0", ""):
        return None
    try:
        found = values.size(str(value))
    except (ValueError, OverflowError) as exc:
        raise OtherForm("a size such as 512m") from exc
    if not 1 <= found <= _MOST_BYTES:
        raise OtherForm("a size such as 512m")
    return found


def signal(value: Any) -> str:
    """The name or number of a signal."""
    if not isinstance(value, str | int) or not _SIGNAL.fullmatch(str(value)):
        raise OtherForm("the name of a signal such as SIGINT")
    return str(value)


def texts(value: Any) -> list[str]:
    """A list of texts."""
    if not isinstance(value, list | tuple):
        raise OtherForm("a list of texts")
    return [text(each) for each in value]


def lists_of_texts(value: Any) -> list[list[str]]:
    """A list of lists of texts."""
    if not isinstance(value, list | tuple):
        raise OtherForm("a list of lists of texts")
    return [texts(each) for each in value]


def words(value: Any) -> str | list[str]:
    """A command as one text, or as a list of its words."""
    return text(value) if isinstance(value, str) else texts(value)


def table(value: Any) -> dict[str, Any]:
    """A table of names and values."""
    if not isinstance(value, Mapping):
        raise OtherForm("a table of names and values")
    return {text(name): each for name, each in value.items()}


def tables(value: Any) -> list[dict[str, Any]]:
    """A list of tables."""
    if not isinstance(value, list | tuple):
        raise OtherForm("a list of tables")
    return [table(each) for each in value]


def texts_by_name(value: Any) -> dict[str, str]:
    """A table of names and texts; nothing (None) is left out."""
    return {name: text(each) for name, each in table(value).items() if each is not None}


def pairs(value: Any) -> dict[str, str] | list[str]:
    """A table of names and texts, or a list such as NAME=VALUE."""
    return texts_by_name(value) if isinstance(value, Mapping) else texts(value)


def ports(value: Any) -> dict[str, Any]:
    """A table of ports inside, and for each a port of the host, a list of them, or ADDRESS and port."""
    bound = table(value)
    for each in bound.values():
        for one in each if isinstance(each, list | tuple) else [each]:
            if one is not None and not isinstance(one, str | int):
                raise OtherForm("a table such as {'8080/tcp': 8080}")
    return {name: tuple(each) if isinstance(each, list) and _is_address(each) else each for name, each in bound.items()}


def _is_address(each: list[Any]) -> bool:
    # the SDK takes an address and a port as a pair, which JSON does not have
    return len(each) == 2 and isinstance(each[0], str) and "." in each[0]


def given(name: str, kind: Kind, value: Any, where: str) -> Any:
    """The value in its form; raises `UnsupportedRun`. `where` is where the run has it."""
    try:
        return kind(value)
    except OtherForm as exc:
        raise UnsupportedRun(f"it has {name}={_shown(name, value)} in its {where}, which must be {exc}") from exc


def made(where: str, what: str, parts: Mapping[str, Kind], value: Any) -> dict[str, Any]:
    """A table made anew of these parts, each in its form; raises `UnsupportedRun` for a name that is none of them."""
    found = given(what, table, value, where)
    unknown = [name for name in found if name not in parts]
    if unknown:
        raise UnsupportedRun(f"it has a {what} with {unknown[0][:60]!r}: give {', '.join(parts)}")
    return {name: given(name, parts[name], each, where) for name, each in found.items() if each is not None}


def _shown(name: str, value: Any) -> str:
    # tables and variables may have a secret in them
    if isinstance(value, Mapping):
        return "{…}"
    if isinstance(value, list | tuple):
        return "[…]"
    return "…" if name == "environment" else repr(value)[:60]
