"""Filters: `where` and `order_by` of a query, as SQL; what the schema does not have is an error, never silence."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.prefect1_api.errors import Invalid
from tests.prefect1_api.schema import RELATIONS, TABLES
from tests.prefect1_api.store import encode

_COMPARISONS = {"_eq": "=", "_neq": "<>", "_lt": "<", "_lte": "<=", "_gt": ">", "_gte": ">="}
_ORDERS = {
    "asc": "asc nulls last",  # as PostgreSQL has it
    "desc": "desc nulls first",
    "asc_nulls_first": "asc nulls first",
    "asc_nulls_last": "asc nulls last",
    "desc_nulls_first": "desc nulls first",
    "desc_nulls_last": "desc nulls last",
}


@dataclass(frozen=True)
class Condition:
    """SQL with its values."""

    sql: str = "1"
    values: tuple[Any, ...] = ()

    def all_of(self, other: Condition) -> Condition:
        return Condition(f"({self.sql}) and ({other.sql})", self.values + other.values)


def listed(value: Any) -> list[Any]:
    """GraphQL's list coercion: one thing stands for a list of it."""
    return value if isinstance(value, list) else [value]


def condition(table: str, where: Any, *, null_is_true: bool = False) -> Condition:
    """The SQL of a `where` on this table."""
    return _Filter(null_is_true).of(table, table, where)


class _Filter:
    def __init__(self, null_is_true: bool) -> None:
        self._null_is_true = null_is_true
        self._numbers = count()

    def of(self, table: str, name: str, where: Any) -> Condition:
        if not isinstance(where, Mapping):
            raise Invalid(f"where on {table} is {where!r}, no object")
        return _joined([self._part(table, name, key, value) for key, value in where.items()], "and")

    def _part(self, table: str, name: str, key: str, value: Any) -> Condition:
        if key in ("_and", "_or"):
            return _joined([self.of(table, name, each) for each in listed(value)], key[1:])
        if key == "_not":
            inner = self.of(table, name, value)
            return Condition(f"not coalesce(({inner.sql}), 0)", inner.values)
        if relation := RELATIONS[table].get(key):
            inside = f"{relation.table}_{next(self._numbers)}"
            inner = self.of(relation.table, inside, value)
            link = f'{inside}."{relation.remote}" = {name}."{relation.local}"'
            return Condition(
                f"exists (select 1 from {relation.table} {inside} where {link} and {inner.sql})", inner.values
            )
        kind = TABLES[table].get(key)
        if kind is None:
            raise Invalid(f"field {key!r} not found in type: '{table}_bool_exp'")
        if not isinstance(value, Mapping):
            raise Invalid(f"{table}.{key} is compared by {value!r}, no object")
        return _joined([self._test(f'{name}."{key}"', kind, test, operand) for test, operand in value.items()], "and")

    def _test(self, column: str, kind: str, test: str, operand: Any) -> Condition:
        return Condition() if operand is None and self._null_is_true else _test(column, kind, test, operand)


def _joined(parts: list[Condition], word: str) -> Condition:
    if not parts:
        return Condition("1" if word == "and" else "0")
    sql = f" {word} ".join(part.sql for part in parts)
    return Condition(f"({sql})", tuple(value for part in parts for value in part.values))


def _test(column: str, kind: str, test: str, operand: Any) -> Condition:
    if test == "_is_null":
        if not isinstance(operand, bool):
            raise Invalid(f"_is_null of {operand!r}")
        return Condition(f"{column} is {'' if operand else 'not '}null")
    if operand is None:
        # true of every row in the Hasura of Server, and an error in later ones: nobody may lean on it
        raise Invalid(f"{test} with null on {column}")
    if test in _COMPARISONS:
        return Condition(f"{column} {_COMPARISONS[test]} ?", (operand_of(kind, operand),))
    if test in ("_in", "_nin"):
        values = [operand_of(kind, each) for each in listed(operand)]
        word = "in" if test == "_in" else "not in"
        return Condition(f"{column} {word} ({', '.join('?' for _ in values)})", tuple(values))
    if test in ("_like", "_ilike") and kind == "text":
        if test == "_like":
            return Condition(f"{column} like ?", (operand,))
        return Condition(f"lower({column}) like ?", (str(operand).lower(),))
    if test in ("_contains", "_contained_in") and kind == "json":
        sides = f"{column}, ?" if test == "_contains" else f"?, {column}"
        return Condition(f"json_contains({sides})", (json.dumps(operand),))
    raise Invalid(f"no comparison {test!r} on {column} ({kind})")


def operand_of(kind: str, value: Any) -> Any:
    """As it is kept; a text that is no UUID, number or time is refused, as PostgreSQL does."""
    try:
        if kind == "uuid":
            return str(uuid.UUID(value))
        if kind == "int" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(value)  # noqa: TRY301
        return encode(kind, value)
    except (ValueError, TypeError, AttributeError) as error:
        raise Invalid(f"invalid input syntax for type {kind}: {value!r}") from error


def order(table: str, wanted: Any) -> str:
    """The SQL of an `order_by`; without one, rows come as they were made."""
    parts = []
    for each in listed(wanted or []):
        for column, direction in each.items():
            if column not in TABLES[table] or direction not in _ORDERS:
                raise Invalid(f"cannot order {table} by {column} {direction}")
            parts.append(f'"{column}" {_ORDERS[direction]}')
    return ", ".join([*parts, "rowid"])
