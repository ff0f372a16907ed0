"""Tables as lines of JSON, the same from every database: what one writes, the other reads.

A line is a row, as a list in the order of the columns. How each is written is a `Kind`, so that a backup can be read by
code that has no such column any more.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Float,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    column,
    insert,
    select,
    table,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from app.tables import UtcDateTime

ROWS_AT_ONCE = 1000

Row: TypeAlias = list[Any]


class Kind(StrEnum):
    """What a column holds."""

    INSTANT = "instant"
    """ISO 8601, UTC."""
    JSON = "json"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"


_TYPES: dict[Kind, TypeEngine[Any]] = {
    Kind.INSTANT: UtcDateTime(),
    Kind.JSON: JSON(none_as_null=True),
    Kind.BOOLEAN: Boolean(),
    Kind.INTEGER: BigInteger(),
    Kind.NUMBER: Double(),
    Kind.TEXT: Text(),
}


@dataclass(frozen=True, kw_only=True)
class TableShape:
    """A table as a backup has it."""

    name: str
    columns: dict[str, Kind]
    """In the order of a row's values."""
    key: tuple[str, ...]
    late: tuple[str, ...]
    """Columns that refer to rows of tables that come after this one."""

    @classmethod
    def of(cls, source: Table) -> "TableShape":
        """The shape of one of our tables."""
        return cls(
            name=source.name,
            columns={column.name: _kind(column) for column in source.columns},
            key=tuple(column.name for column in source.primary_key.columns),
            late=tuple(column.name for column in source.columns if any(key.use_alter for key in column.foreign_keys)),
        )


def write_rows(session: Session, source: Table) -> Iterator[bytes]:
    """The rows of a table, each a line, in the order of its key."""
    kinds = list(TableShape.of(source).columns.values())
    query = select(source).order_by(*source.primary_key.columns)
    for row in session.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
        values = [_written(kind, value) for kind, value in zip(kinds, row, strict=True)]
        yield json.dumps(values, separators=(",", ":")).encode() + b"\n"


def read_row(shape: TableShape, line: bytes) -> Row:
    """The values of a line. Raises `ValueError` when it is no row of the table."""
    values = json.loads(line)
    if not isinstance(values, list) or len(values) != len(shape.columns):
        raise ValueError("a line that is no row")
    return [_read(kind, value) for kind, value in zip(shape.columns.values(), values, strict=True)]


def insert_rows(connection: Connection, shape: TableShape, rows: list[Row]) -> None:
    """Insert rows, without what refers to rows that come later."""
    if not rows:
        return
    target = _target(shape)
    names = [name for name in shape.columns if name not in shape.late]
    statement = insert(target).values({name: bindparam(f"v_{name}", type_=target.c[name].type) for name in names})
    connection.execute(
        statement,
        [{f"v_{name}": value for name, value in zip(shape.columns, row, strict=True) if name in names} for row in rows],
    )


def complete_rows(connection: Connection, shape: TableShape, rows: list[Row]) -> None:
    """Add what `insert_rows` left out, now that all tables have their rows."""
    target = _target(shape)
    for late in shape.late:
        named = [dict(zip(shape.columns, row, strict=True)) for row in rows]
        values = [
            {**{f"k_{name}": row[name] for name in shape.key}, "late": row[late]}
            for row in named
            if row[late] is not None
        ]
        if values:
            where = [target.c[name] == bindparam(f"k_{name}") for name in shape.key]
            connection.execute(update(target).where(*where).values({late: bindparam("late")}), values)


def _target(shape: TableShape) -> Any:
    return table(shape.name, *(column(name, _TYPES[kind]) for name, kind in shape.columns.items()))


def _kind(source: Column[Any]) -> Kind:
    kinds: tuple[tuple[type[TypeEngine[Any]], Kind], ...] = (
        (UtcDateTime, Kind.INSTANT),
        (JSON, Kind.JSON),
        (Boolean, Kind.BOOLEAN),
        (Integer, Kind.INTEGER),
        (Float, Kind.NUMBER),
        (String, Kind.TEXT),
    )
    for of_type, kind in kinds:
        if isinstance(source.type, of_type):
            return kind
    raise TypeError(f"no way is known to write {source.table}.{source.name} down")


def _written(kind: Kind, value: Any) -> Any:
    return value.isoformat() if kind is Kind.INSTANT and value is not None else value


def _read(kind: Kind, value: Any) -> Any:
    return datetime.fromisoformat(value) if kind is Kind.INSTANT and value is not None else value
