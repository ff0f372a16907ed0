"""Putting a backup back, into a place that is empty.

    check the backup ──▶ is the place empty? ──▶ blobs ──▶ one transaction: schema, rows, what has to change ──▶ done

Until the transaction commits the database is as it was. Blobs that an interrupted restore left are those of the backup,
so the next one goes on from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, Table, delete, func, inspect, select, text
from sqlalchemy.orm import Session

from app.admin.backup_folder import BackupFolder, Manifest, WrittenFile
from app.admin.problems import AdminError, Problem, Tell
from app.admin.rows import ROWS_AT_ONCE, TableShape, complete_rows, insert_rows, read_row
from app.batches import batches
from app.database import alembic_config, now_utc, schema_change
from app.exceptions import Unavailable
from app.jobs.claims import ClaimStore
from app.storage import BlobCorrupt, BlobMissing, BlobStore
from app.tables import Base, BlobHold, Chore, IdempotencyKey, Worker

MOMENTARY = frozenset({Worker.__tablename__, Chore.__tablename__, BlobHold.__tablename__})
"""Tables that tell of a moment that is over: their rows are not restored."""
ID_JUMP = 1_000_000
"""Ids that are left out, for readers of streams may know some from the time that is lost."""
_COPIED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was put back."""

    created_at: str
    """When the backup was made."""
    num_rows: int
    num_blobs: int
    lost: tuple[str, ...]
    """Blobs that the backup was made without."""


def check_backup(root: Path, tell: Tell) -> Manifest:
    """Read all of a backup and tell what is not as it was written. Raises `AdminError` when there is none."""
    folder = BackupFolder(root)
    manifest = folder.manifest()
    for file in (*(file for _, file in manifest.tables), manifest.blobs):
        if not folder.is_whole(manifest, file):
            tell(Problem(code="backup_damaged", subject=file.name, detail="is missing or not as it was written"))
    if folder.is_whole(manifest, manifest.blobs):
        for name in _names(folder, manifest):
            try:
                folder.blobs.verify(name)
            except Unavailable as e:
                tell(Problem(code="backup_damaged", subject=name, detail=e.detail))
            except ValueError:
                tell(Problem(code="backup_damaged", subject=name, detail="is no sha256"))
    return manifest


class Restore:
    """Puts a backup into a database and a storage that hold nothing."""

    def __init__(self, *, engine: Engine, storage: BlobStore) -> None:
        self._engine = engine
        self._storage = storage

    def run(self, root: Path, tell: Tell) -> Restored:
        """Restore. Raises `AdminError` with nothing changed when the backup is damaged, the schema is newer than this
        code, or the place is not empty; what exactly is told."""
        num_problems = 0

        def count(problem: Problem) -> None:
            nonlocal num_problems
            num_problems += 1
            tell(problem)

        folder = BackupFolder(root)
        folder.manifest()
        with folder.lock():
            manifest = check_backup(root, count)
            if num_problems:
                raise AdminError(f"the backup is damaged in {num_problems} places; nothing was restored")
            _require_known(manifest.revision)
            with self._engine.connect() as connection:
                _require_empty(connection)
            self._require_no_others(folder)
            num_blobs = self._copy_blobs(folder, manifest)
            with schema_change(self._engine) as connection:
                _lock(connection)
                _require_empty(connection)
                num_rows = _fill(connection, folder, manifest)
        return Restored(created_at=manifest.created_at, num_rows=num_rows, num_blobs=num_blobs, lost=manifest.lost)

    def _require_no_others(self, folder: BackupFolder) -> None:
        for name, _ in self._storage.stored():
            if not folder.blobs.exists(name):
                raise AdminError(f"the storage is not empty: blob {name} is not one of the backup's")

    def _copy_blobs(self, folder: BackupFolder, manifest: Manifest) -> int:
        num_copied = 0
        for some in batches(_names(folder, manifest), _COPIED_AT_ONCE):
            with self._storage.batch() as batch:
                for name in dict.fromkeys(some):
                    if not self._is_sound(name):
                        with folder.blobs.open(name) as file:
                            stored = batch.put_stream(file)
                        if stored.sha256 != name:
                            raise AdminError(f"blob {name} of the backup was damaged meanwhile; no rows were restored")
                        num_copied += 1
        return num_copied

    def _is_sound(self, name: str) -> bool:
        try:
            self._storage.verify(name)
        except (BlobMissing, BlobCorrupt):
            return False
        return True


def _names(folder: BackupFolder, manifest: Manifest) -> Iterator[str]:
    """The blobs of a backup; some come more than once."""
    lost = set(manifest.lost)
    for line in folder.read_lines(manifest, manifest.blobs):
        if (name := line.decode(errors="replace").rstrip("\n")) not in lost:
            yield name


def _require_known(revision: str) -> None:
    try:
        ScriptDirectory.from_config(alembic_config()).get_revision(revision)
    except CommandError as e:
        raise AdminError(f"the backup is of revision {revision}, which this code does not know: it is newer") from e


def _require_empty(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    if Worker.__tablename__ in there:
        query = select(func.count()).select_from(Worker).where(Worker.expected_until >= now_utc())
        if connection.scalar(query):
            raise AdminError("a worker is at work on the database: stop all workers and the API")
    for table in Base.metadata.sorted_tables:
        if table.name not in there or table.name in MOMENTARY:
            continue
        if connection.execute(select(text("1")).select_from(table).limit(1)).first():
            raise AdminError(f"the database is not empty: there are rows in {table.name}")
    if unknown := there - {table.name for table in Base.metadata.sorted_tables} - {"alembic_version"}:
        raise AdminError(f"the database is not empty: there is a table {sorted(unknown)[0]}")


def _lock(connection: Connection) -> None:
    """Have nobody write meanwhile. SQLite's whole file is locked as it is."""
    if connection.dialect.name == "postgresql":
        there = set(inspect(connection).get_table_names())
        if names := ", ".join(table.name for table in Base.metadata.sorted_tables if table.name in there):
            connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))


def _fill(connection: Connection, folder: BackupFolder, manifest: Manifest) -> int:
    """Make the tables of the backup's time, fill them, and bring them to the present. Returns how many rows."""
    config = alembic_config()
    config.attributes["connection"] = connection
    if MigrationContext.configure(connection).get_current_revision() not in {None, manifest.revision}:
        command.downgrade(config, "base")  # all tables are empty
    command.upgrade(config, manifest.revision)
    _require_tables(connection, manifest)
    tables = [(shape, file) for shape, file in manifest.tables if shape.name not in MOMENTARY]
    for shape, file in tables:
        for rows in _rows(folder, manifest, shape, file):
            insert_rows(connection, shape, rows)
    for shape, file in tables:
        if shape.late:
            for rows in _rows(folder, manifest, shape, file):
                complete_rows(connection, shape, rows)
    command.upgrade(config, "head")
    for table in Base.metadata.sorted_tables:
        if table.name in MOMENTARY:
            connection.execute(delete(table))
        elif table.autoincrement_column is not None:
            _continue_ids(connection, table)
    _forget_who_was_at_work(connection)
    return sum(file.num_lines for _, file in tables)


def _require_tables(connection: Connection, manifest: Manifest) -> None:
    """Names in a manifest become part of statements: only those of its revision's schema may."""
    schema = inspect(connection)
    there = set(schema.get_table_names()) - {"alembic_version"}
    for shape, _ in manifest.tables:
        if shape.name not in there:
            raise AdminError(f"the backup has a table {shape.name}, which revision {manifest.revision} has not")
        columns = {column["name"] for column in schema.get_columns(shape.name)}
        if unknown := {*shape.columns, *shape.key, *shape.late} - (columns & set(shape.columns)):
            raise AdminError(
                f"the backup has a column {sorted(unknown)[0]} of {shape.name}, which is none at revision "
                f"{manifest.revision}"
            )


def _rows(folder: BackupFolder, manifest: Manifest, shape: TableShape, file: WrittenFile) -> Iterator[list[list[Any]]]:
    for some in batches(folder.read_lines(manifest, file), ROWS_AT_ONCE):
        try:
            rows = [read_row(shape, line) for line in some]
        except (ValueError, TypeError) as e:
            raise AdminError(f"a line of {file.name} is no row of {shape.name}: {e}") from e
        yield rows


def _continue_ids(connection: Connection, table: Table) -> None:
    """Go on with ids far above those that there are."""
    column = table.autoincrement_column
    assert column is not None  # noqa: S101 - asked by the caller
    last = (connection.scalar(select(func.max(column))) or 0) + ID_JUMP
    if connection.dialect.name == "postgresql":
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(select(func.setval(sequence, last)))
        return
    name = {"name": table.name, "last": last}
    connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), name)
    connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)"), name)


def _forget_who_was_at_work(connection: Connection) -> None:
    """Workers and requests of the backup's time may still be there: nothing that they write may count."""
    with Session(connection) as session, session.begin():  # its commit is not the connection's
        ClaimStore(session).forget_workers("Restored from a backup.")
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.status_code.is_(None)))
