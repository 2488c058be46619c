"""Store: the rows of the local Prefect 1 API, in SQLite; JSON is kept as text, times as UTC text that sorts."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.prefect1_api.schema import INDEXES, TABLES

Row = dict[str, Any]


def moment(value: datetime | str) -> datetime:
    """A time in UTC; the client sends some without an offset, and means UTC [run]."""
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def text_of(value: datetime | str) -> str:
    """Of a fixed width, so that text sorts as time."""
    return moment(value).isoformat(timespec="microseconds")


def encode(kind: str, value: Any) -> Any:
    """How a value is kept."""
    made = {"json": json.dumps, "time": text_of, "bool": int}.get(kind)
    return made(value) if made and value is not None else value


def decode(kind: str, value: Any) -> Any:
    """How a value is answered."""
    made = {"json": json.loads, "bool": bool}.get(kind)
    return made(value) if made and value is not None else value


def contains(stored: str | None, wanted: str) -> bool | None:
    """What PostgreSQL's `@>` says of two JSON texts."""
    return None if stored is None else _contains(json.loads(stored), json.loads(wanted))


def _contains(stored: Any, wanted: Any) -> bool:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return all(name in stored and _contains(stored[name], value) for name, value in wanted.items())
    if isinstance(stored, list):
        wanted = wanted if isinstance(wanted, list) else [wanted]
        return all(any(_contains(have, want) for have in stored) for want in wanted)
    return bool(stored == wanted)


class Store:
    """One connection; whoever uses it holds the API's lock."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lines = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._lines.row_factory = sqlite3.Row
        self._lines.execute("pragma synchronous = off")
        self._lines.execute("pragma case_sensitive_like = on")
        self._lines.create_function("json_contains", 2, contains, deterministic=True)
        for table, columns in TABLES.items():
            names = ", ".join(f'"{name}"' + (" primary key" if name == "id" else "") for name in columns)
            self._lines.execute(f"create table {table} ({names})")
        for table, column in INDEXES:
            self._lines.execute(f"create index by_{table}_{column} on {table} ({column})")

    def close(self) -> None:
        self._lines.close()

    def insert(self, table: str, **values: Any) -> str:
        """A new row; the answer is its id."""
        now = self._now()
        row = {"id": str(uuid.uuid4()), "created": now, "updated": now, **values}
        kinds = TABLES[table]
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" for _ in row)
        kept = [encode(kinds[name], value) for name, value in row.items()]
        self._lines.execute(f"insert into {table} ({names}) values ({marks})", kept)
        return str(row["id"])

    def update(self, table: str, row_id: str, **values: Any) -> None:
        kinds = TABLES[table]
        row = {"updated": self._now(), **values}
        names = ", ".join(f'"{name}" = ?' for name in row)
        kept = [encode(kinds[name], value) for name, value in row.items()]
        self._lines.execute(f"update {table} set {names} where id = ?", [*kept, row_id])

    def delete(self, table: str, row_id: str) -> None:
        self._lines.execute(f"delete from {table} where id = ?", [row_id])

    def get(self, table: str, row_id: str) -> Row | None:
        found = self.where(table, id=row_id)
        return found[0] if found else None

    def where(self, table: str, order: str = "rowid", **values: Any) -> list[Row]:
        """All rows in which these columns have these values (None is null)."""
        kinds = TABLES[table]
        tests = [f'"{name}" ' + ("is null" if value is None else "= ?") for name, value in values.items()]
        kept = [encode(kinds[name], value) for name, value in values.items() if value is not None]
        return self.select(table, " and ".join(tests) or "1", kept, order)

    def select(
        self,
        table: str,
        condition: str,
        values: Sequence[Any],
        order: str = "rowid",
        page: str = "",
        columns: Collection[str] | None = None,
    ) -> list[Row]:
        """Rows by SQL, whole or with these columns; the values are kept ones already."""
        kinds = {name: kind for name, kind in TABLES[table].items() if columns is None or name in columns}
        names = ", ".join(f'{table}."{name}"' for name in kinds) or "1"
        found = self._lines.execute(f"select {names} from {table} where {condition} order by {order} {page}", values)
        return [{name: decode(kind, row[name]) for name, kind in kinds.items()} for row in found]

    def count(self, table: str, condition: str, values: Sequence[Any]) -> int:
        return int(self._lines.execute(f"select count(*) from {table} where {condition}", values).fetchone()[0])
