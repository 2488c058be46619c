"""Argument kinds: what may be given for each argument of an agent, and the sentence about what may not."""

import os
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

_TEXT, _LIST, _PATHS = "a text", "a list of texts", "a list of paths"
_TABLE, _SWITCH, _NUMBER = "a dict", "True or False", "a whole number"
_KINDS = {
    **dict.fromkeys(("agent_config_id", "name", "agent_address", "base_url", "network"), _TEXT),
    **dict.fromkeys(("token", "key", "tenant_id"), _TEXT),
    **dict.fromkeys(("labels", "volumes", "networks", "reg_allow_list"), _LIST),
    "import_paths": _PATHS,
    "env_vars": _TABLE,
    **dict.fromkeys(("no_cloud_logs", "show_flow_logs", "hostname_label"), _SWITCH),
    **dict.fromkeys(("no_pull", "docker_interface", "storage_labels"), _SWITCH),
    **dict.fromkeys(("max_polls", "docker_client_timeout"), _NUMBER),
}
#: arguments whose values may be secret
_SECRET = frozenset({"env_vars", "token", "key"})
_SHOWN = 100
#: others are None
_DEFAULTS = {"show_flow_logs": False, "hostname_label": True}
_ORDER_OF_2021 = "if the arguments stand in the order of 2021, which began with agent_config_id, give them by keyword"


def check(call: str, given: Mapping[str, Any], more: Sequence[Any] = (), **by_keyword: Any) -> None:
    """Refuse what is of another kind than its argument; `more` is what was given by position beyond those.

    `given` has the arguments that may stand by position, in their order. Raises `TypeError` or `ValueError`, whose text
    is one sentence.
    """
    every = {**given, **by_keyword}
    wrong = next((name for name, value in every.items() if not _fits(name, value)), None)
    if wrong is not None:
        value = every[wrong]
        hint = f"; {_ORDER_OF_2021}" if _in_order_of_2021(given, more) else ""
        raise TypeError(
            f"{call} got {_shown(wrong, value)}, {_kind_of(value)} where {_KINDS[wrong]} is meant: "
            f"write {_remedy(wrong, value)}{hint}"
        )
    misnamed = next((key for key in map(str, every.get("env_vars") or ()) if not key or "=" in key), None)
    if misnamed is not None:
        # a value that was put into the name may be secret
        named = f"{misnamed.partition('=')[0]}=…" if misnamed else "an empty name"
        raise ValueError(f"{call} got env_vars with {named}, which no variable can be named: write {{'NAME': 'value'}}")
    if more:
        raise TypeError(
            f"{call} takes {len(given)} arguments by position ({', '.join(given)}) and got {len(given) + len(more)}: "
            f"{_ORDER_OF_2021}"
        )
    name = given.get("name")
    if name and not every.get("agent_config_id") and _is_uuid(name):
        raise ValueError(
            f"{call} got name={name!r}, which has the form of an agent config's id: write agent_config_id={name!r}, or "
            "give a name of another form"
        )


def _fits(name: str, value: Any) -> bool:
    return value is None or _FITS[_KINDS[name]](value)


def _is_list(value: Any, item: Any = str) -> bool:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | os.PathLike | Mapping):
        return False
    # what can be read only once, such as a generator, is left for its reader
    return not isinstance(value, Collection) or all(isinstance(each, item) for each in value)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str),
    _LIST: _is_list,
    _PATHS: lambda value: _is_list(value, str | os.PathLike),
    _TABLE: lambda value: isinstance(value, Mapping),
    _SWITCH: lambda value: isinstance(value, int) and value in (0, 1),
    _NUMBER: lambda value: isinstance(value, int) and not isinstance(value, bool),
}


def _in_order_of_2021(given: Mapping[str, Any], more: Sequence[Any]) -> bool:
    # what stands at its default was not given
    values = [None if value is _DEFAULTS.get(name) else value for name, value in given.items()] + list(more)
    return all(_fits(name, value) for name, value in zip(["agent_config_id", *given], values, strict=False))


def _shown(name: str, value: Any) -> str:
    return f"{name}={'…' if name in _SECRET else repr(value)[:_SHOWN]}"


def _kind_of(value: Any) -> str:
    names = {str: _TEXT, list: "a list", tuple: "a tuple", dict: _TABLE, bool: "a bool", int: "a number"}
    if isinstance(value, list | tuple) and not all(isinstance(each, str) for each in value):
        return f"{names[type(value)]} of other things" if type(value) in names else "a list of other things"
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _remedy(name: str, value: Any) -> str:
    kind = _KINDS[name]
    if kind in (_LIST, _PATHS):
        one = os.fspath(value) if isinstance(value, str | os.PathLike) else "…"
        return f"{name}=[{one!r}]"
    if kind == _TABLE:
        return f"{name}={{'NAME': 'value'}}"
    if kind == _SWITCH:
        return f"{name}=True or {name}=False"
    return f"{name}=3" if kind == _NUMBER else f"{name}='…'"


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
