"""Rows as lines: what one database writes, another reads as the same."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Column, Engine, Enum, LargeBinary, MetaData, Table, select
from sqlalchemy.orm import Session, sessionmaker

from app.admin.rows import Kind, TableShape, read_row, write_rows
from app.storage import LocalBlobStore
from app.tables import Base, Job
from tests.support.populated import Populated


def test_every_table_can_be_written_down() -> None:
    shapes = {table.name: TableShape.of(table) for table in Base.metadata.sorted_tables}
    assert shapes["jobs"].late == ("classifier_id",)
    assert shapes["jobs"].columns["metadata"] is Kind.JSON
    assert shapes["dataset_images"].key == ("dataset_id", "position")


def test_a_type_that_nobody_thought_of_is_refused() -> None:
    table = Table("t", MetaData(), Column("x", LargeBinary, primary_key=True))
    with pytest.raises(TypeError, match=r"t\.x"):
        TableShape.of(table)
    assert TableShape.of(Table("t", MetaData(), Column("x", Enum("a"), primary_key=True))).columns == {"x": Kind.TEXT}


def test_values_come_back_as_they_were(
    engine: Engine, sessions: sessionmaker[Session], storage: LocalBlobStore, populated: Populated
) -> None:
    with sessions.begin() as session:
        job = session.get(Job, populated.queued)
        assert job is not None
        job.running_s, job.not_before = 0.1 + 0.2, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    for table in Base.metadata.sorted_tables:
        shape = TableShape.of(table)
        with sessions() as session:
            there = [list(row) for row in session.execute(select(table).order_by(*table.primary_key.columns))]
            assert [read_row(shape, line) for line in write_rows(session, table)] == there


def test_a_line_that_is_no_row() -> None:
    shape = TableShape(name="t", columns={"a": Kind.TEXT, "b": Kind.INTEGER}, key=("a",), late=())
    assert read_row(shape, b'["x",1]\n') == ["x", 1]
    for line in (b'["x"]', b'{"a":1}', b'["x",1'):
        with pytest.raises(ValueError):  # noqa: PT011 - any of json's
            read_row(shape, line)
