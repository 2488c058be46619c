"""Queries: reads of tables, planned (and so checked) before anything is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.prefect1_api.documents import Field
from tests.prefect1_api.errors import Invalid
from tests.prefect1_api.filters import Condition, condition, operand_of, order
from tests.prefect1_api.schema import RELATIONS, TABLES, Relation
from tests.prefect1_api.store import Row, Store

_AGGREGATE = "_aggregate"


@dataclass(frozen=True)
class Columns:
    """What is taken of each row."""

    table: str
    plain: tuple[tuple[str, str], ...]
    nested: tuple[tuple[str, Relation, Read], ...]

    @property
    def needed(self) -> set[str]:
        return {name for _, name in self.plain} | {relation.local for _, relation, _ in self.nested}

    def of(self, store: Store, row: Row) -> Row:
        answer: Row = {alias: self.table if name == "__typename" else row[name] for alias, name in self.plain}
        for alias, relation, read in self.nested:
            link = Condition(f'{relation.table}."{relation.remote}" = ?', (row[relation.local],))
            answer[alias] = read.run(store, link)
        return answer


@dataclass(frozen=True)
class Read:
    """Rows of one table: a list of them, one, or their number."""

    table: str
    condition: Condition
    order: str
    page: str
    columns: Columns | None
    shape: str  # "list" | "one" | "count"
    #: where the number stands in the answer
    counts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def run(self, store: Store, link: Condition | None = None) -> Any:
        wanted = link.all_of(self.condition) if link else self.condition
        if self.shape == "count":
            number = store.count(self.table, wanted.sql, wanted.values)
            return {alias: dict.fromkeys(names, number) for alias, names in self.counts}
        assert self.columns is not None
        rows = store.select(self.table, wanted.sql, wanted.values, self.order, self.page, self.columns.needed)
        answers = [self.columns.of(store, row) for row in rows]
        if self.shape == "list":
            return answers
        return answers[0] if answers else None


def plan(field: Field, *, null_is_true: bool = False) -> Read | None:
    """The read that a root field means; None if it names no table."""
    if field.name in TABLES:
        return _read(field.name, field, "list", null_is_true)
    table = field.name.removesuffix("_by_pk")
    if table in TABLES and table != field.name:
        if set(field.arguments) != {"id"}:
            raise Invalid(f"{field.name} takes an id")
        only = Condition(f"{table}.id = ?", (operand_of("uuid", field.arguments["id"]),))
        return Read(table, only, "rowid", "", _columns(table, field, null_is_true), "one")
    table = field.name.removesuffix(_AGGREGATE)
    return _read(table, field, "count", null_is_true) if table in TABLES else None


def _read(table: str, field: Field, shape: str, null_is_true: bool) -> Read:
    if unknown := set(field.arguments) - {"where", "order_by", "limit", "offset"}:
        raise Invalid(f"{field.name} has no argument {', '.join(sorted(unknown))}")
    where = field.arguments.get("where")
    wanted = condition(table, where, null_is_true=null_is_true) if where is not None else Condition()
    ordered = order(table, field.arguments.get("order_by"))
    if shape == "count":
        return Read(table, wanted, ordered, "", None, shape, _counts(field))
    return Read(table, wanted, ordered, _page(field), _columns(table, field, null_is_true), shape)


def _page(field: Field) -> str:
    limit, offset = field.arguments.get("limit"), field.arguments.get("offset")
    for number in (limit, offset):
        if number is not None and (not isinstance(number, int) or number < 0):
            raise Invalid(f"{field.name}: {number!r} is no number of rows")
    if limit is None and offset is None:
        return ""
    return f"limit {-1 if limit is None else limit} offset {offset or 0}"


def _counts(field: Field) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    for inner in field.selection:
        if inner.name != "aggregate" or {each.name for each in inner.selection} != {"count"}:
            raise Invalid(f"{field.name} gives aggregate {{count}} only")
        found.append((inner.alias, tuple(each.alias for each in inner.selection)))
    return tuple(found)


def _columns(table: str, field: Field, null_is_true: bool) -> Columns:
    if not field.selection:
        raise Invalid(f'Field "{field.name}" must have a selection of subfields.')
    plain, nested = [], []
    for inner in field.selection:
        if inner.name in TABLES[table] or inner.name == "__typename":
            if inner.selection or inner.arguments:
                raise Invalid(f'Field "{inner.name}" of {table} has neither arguments nor subfields.')
            plain.append((inner.alias, inner.name))
            continue
        relation = RELATIONS[table].get(inner.name.removesuffix(_AGGREGATE))
        if relation is None or (inner.name.endswith(_AGGREGATE) and not relation.many):
            raise Invalid(f'Cannot query field "{inner.name}" on type "{table}".')
        shape = "count" if inner.name.endswith(_AGGREGATE) else "list" if relation.many else "one"
        if shape == "one" and inner.arguments:
            raise Invalid(f'Field "{inner.name}" of {table} has no arguments.')
        nested.append((inner.alias, relation, _read(relation.table, inner, shape, null_is_true)))
    return Columns(table, tuple(plain), tuple(nested))
