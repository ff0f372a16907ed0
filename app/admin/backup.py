"""Backing up a service that goes on working: one state of all its rows, and every blob that they refer to."""

import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.admin.backup_folder import BLOBS, ROWS, BackupFolder, Manifest, WrittenFile
from app.admin.problems import AdminError, Problem, Tell
from app.admin.rows import TableShape, write_rows
from app.batches import batches
from app.database import make_sessionmaker, read_only, revisions, take_any_time
from app.exceptions import Unavailable
from app.files import entries
from app.housekeeping.holds import holding
from app.housekeeping.references import BLOB_REFERENCES
from app.storage import BlobBatch, BlobStore
from app.tables import Base

_COPIED_AT_ONCE = 64
_SHA256 = re.compile(rb"[0-9a-f]{64}")


@dataclass(kw_only=True)
class BackedUp:
    """What a backup came to."""

    num_rows: int = 0
    num_blobs: int = 0
    num_copied: int = 0
    """The others were in the folder already."""
    num_lost: int = 0


class Backup:
    """Makes backups. Neither the API nor workers wait for it."""

    def __init__(self, *, engine: Engine, storage: BlobStore, service_folders: Sequence[Path] = ()) -> None:
        """No backup is made in, around or at one of ``service_folders``."""
        self._engine = engine
        self._sessions = make_sessionmaker(engine)
        self._storage = storage
        self._service_folders = service_folders

    def write(self, root: Path, tell: Tell) -> BackedUp:
        """Back up into a folder; a backup that is there already is replaced when this one is whole.

        Blobs that are missing or damaged are told, and the backup is made without them. Raises `AdminError`, and the
        errors of database, storage and disk: the folder's earlier backup is then as it was.
        """
        found, head = revisions(self._engine)
        if found != head or found is None:
            raise AdminError(f"the database is at revision {found}; this code is for {head}: run must migrate first")
        folder, done = BackupFolder(root), BackedUp()
        folder.require_apart(self._service_folders)
        with folder.lock(), folder.private():
            rows = f"rows-{secrets.token_hex(8)}"
            with holding(self._sessions):  # before the rows are read: no blob of theirs goes meanwhile
                tables, blobs = self._write_rows(folder, rows, done)
                lost = self._copy_blobs(folder, rows, done, tell)
            manifest = Manifest(
                created_at=datetime.now(UTC).isoformat(),
                revision=found,
                rows=rows,
                tables=tables,
                blobs=blobs,
                lost=tuple(lost),
            )
            folder.finish(manifest)
            done.num_blobs, done.num_lost = _remove_older(folder, manifest), len(lost)
        return done

    def _write_rows(
        self, folder: BackupFolder, rows: str, done: BackedUp
    ) -> tuple[tuple[tuple[TableShape, WrittenFile], ...], WrittenFile]:
        tables = []
        with read_only(self._sessions) as session:
            take_any_time(session)
            for table in Base.metadata.sorted_tables:
                try:
                    file = folder.write_lines(rows, f"{table.name}.jsonl", write_rows(session, table))
                except ValueError as e:
                    raise AdminError(f"a row of {table.name} cannot be read: {e}") from e
                tables.append((TableShape.of(table), file))
                done.num_rows += file.num_lines
            blobs = folder.write_lines(rows, BLOBS, _names(session))
        return tuple(tables), blobs

    def _copy_blobs(self, folder: BackupFolder, rows: str, done: BackedUp, tell: Tell) -> list[str]:
        lost: list[str] = []
        with (folder.root / rows / BLOBS).open("rb") as lines:
            names = (line.decode().rstrip("\n") for line in lines)
            for some in batches(names, _COPIED_AT_ONCE):
                with folder.blobs.batch() as batch:
                    for name in dict.fromkeys(some):
                        if _has(folder, name):
                            continue
                        if (problem := self._copy(batch, name)) is None:
                            done.num_copied += 1
                        elif name not in lost:
                            lost.append(name)
                            tell(Problem(code="blob_not_in_backup", subject=name, detail=problem))
        return lost

    def _copy(self, batch: BlobBatch, name: str) -> str | None:
        """None, or what is wrong with it."""
        try:
            file = self._storage.open(name)
        except ValueError:
            return "is no sha256"
        except Unavailable as e:
            return e.detail
        with file:
            try:
                staged = batch.stage(_Source(file))
            except _SourceFailed as e:
                return f"A stored file cannot be read: {e}."
        if staged.sha256 != name:
            batch.drop(staged)
            return "A stored file is damaged."
        batch.keep(staged)
        return None


class _SourceFailed(Exception):
    """The service's storage failed, and not the disk of the backup."""


class _Source:
    """A stream whose failures can be told from those of where it is written to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except OSError as e:
            raise _SourceFailed(str(e)) from e


def _names(session: Session) -> Iterator[bytes]:
    for references in BLOB_REFERENCES:
        for name in references.all(session):
            yield f"{name}\n".encode()


def _has(folder: BackupFolder, name: str) -> bool:
    try:
        return folder.blobs.exists(name)
    except (Unavailable, ValueError):
        return False


def _remove_older(folder: BackupFolder, manifest: Manifest) -> int:
    """Remove what only backups before this one, or unfinished ones, needed. Returns how many blobs are left.

    What this one needs is known by name, for clocks step. The names are in memory: some 100 bytes each.
    """
    for path in entries(folder.root):
        if ROWS.fullmatch(path.name) and path.name != manifest.rows:
            shutil.rmtree(path, ignore_errors=True)
    lines = (line.rstrip(b"\n") for line in folder.read_lines(manifest, manifest.blobs))
    needed = {bytes.fromhex(line.decode()) for line in lines if _SHA256.fullmatch(line)}
    num_left = 0
    for name, _ in folder.blobs.stored():
        if not _SHA256.fullmatch(name.encode()):
            continue
        if bytes.fromhex(name) in needed:
            num_left += 1
        else:
            folder.blobs.delete(name)
    return num_left
