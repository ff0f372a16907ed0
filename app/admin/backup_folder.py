"""A backup on disk.

    FOLDER/must-backup          says that the folder is one for backups: it comes first, and who is at work locks it
    FOLDER/manifest.json        what belongs to the backup, with digests; there is no backup without it
    FOLDER/rows-…/TABLE.jsonl   the rows, see app/admin/rows.py
    FOLDER/rows-…/blobs.txt     sha256 of the blobs that the rows refer to
    FOLDER/blobs/…              the blobs, each under its sha256; shared with the backup before

A second backup into the same folder adds what is new beside the first. Its manifest takes the first one's place in one
step, and only then goes what it does not need. A folder in which others keep something is never taken.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.admin.problems import AdminError
from app.admin.rows import Kind, TableShape
from app.files import entries, sync
from app.storage import LocalBlobStore

FORMAT = 1
BLOBS = "blobs.txt"
MARKER = "must-backup"
ROWS = re.compile(r"rows-[0-9a-f]{16}")
_REVISION = re.compile(r"[0-9]{4}")
_TABLE = re.compile(r"[a-z_]+")
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A file of lines, and how to know that it is still the one that was written."""

    name: str
    num_lines: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup is made of."""

    created_at: str
    revision: str
    """Of the schema that the rows are of."""
    rows: str
    """The folder with the files of lines."""
    tables: tuple[tuple[TableShape, WrittenFile], ...]
    """In an order in which rows refer to earlier ones, but for late columns."""
    blobs: WrittenFile
    lost: tuple[str, ...]
    """Blobs that were not whole when the backup was made: it is without them."""

    def to_bytes(self) -> bytes:
        """JSON, with a digest of itself."""
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps({**body, "sha256": _digest(body)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Manifest":
        """Raises `ValueError` when it is not what `to_bytes` wrote."""
        try:
            body = dict(json.loads(content))
            if body.pop("sha256") != _digest(body):
                raise ValueError("the manifest is damaged")
            if body["format"] != FORMAT:
                raise ValueError(f"a backup of format {body['format']}; this code reads {FORMAT}")
            found = cls(
                created_at=body["created_at"],
                revision=body["revision"],
                rows=body["rows"],
                tables=tuple((_shape(shape), WrittenFile(**file)) for shape, file in body["tables"]),
                blobs=WrittenFile(**body["blobs"]),
                lost=tuple(body["lost"]),
            )
            found._require_own_names()
        except (KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError("the manifest is damaged") from e
        return found

    def _require_own_names(self) -> None:
        """Its digest keeps nobody from writing one: names become paths. Raises `ValueError`, `TypeError`."""
        names = [(f"{shape.name}.jsonl", file.name) for shape, file in self.tables] + [(BLOBS, self.blobs.name)]
        if not (
            ROWS.fullmatch(self.rows)
            and _REVISION.fullmatch(self.revision)
            and all(_TABLE.fullmatch(shape.name) for shape, _ in self.tables)
            and all(expected == name for expected, name in names)
        ):
            raise ValueError("the manifest has names that no backup has")


class BackupFolder:
    """One backup, or the place for one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = LocalBlobStore(root / "blobs")

    @property
    def manifest_path(self) -> Path:
        """The file whose presence makes it a backup."""
        return self.root / "manifest.json"

    def manifest(self) -> Manifest:
        """What the backup is made of. Raises `AdminError` when there is none that can be read."""
        try:
            return Manifest.from_bytes(self.manifest_path.read_bytes())
        except FileNotFoundError as e:
            raise AdminError(f"{self.root} holds no backup, or one that was never finished") from e
        except ValueError as e:
            raise AdminError(f"{self.manifest_path}: {e}") from e

    def require_apart(self, others: Sequence[Path]) -> None:
        """Raises `AdminError` when the backup would share a folder with one of these, or lie within it or around it."""
        for other in (path.resolve() for path in others):
            for own in (self.root.resolve(), (self.root / "blobs").resolve()):
                if own == other or other in own.parents or own in other.parents:
                    raise AdminError(f"{self.root} is not apart from {other}, where the service keeps its data")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one at work in the folder, which is made when missing.

        Raises `AdminError`: somebody is, or what the folder holds is not of a backup.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._require_own()
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self.root / MARKER, flags, 0o600), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise AdminError(f"{self.root}: somebody is at work there") from e
            yield

    @contextmanager
    def private(self) -> Iterator[None]:
        """Have the folder, and all that this process writes meanwhile, be for its owner alone."""
        self.root.chmod(0o700)
        before = os.umask(0o077)
        try:
            yield
        finally:
            os.umask(before)

    def _require_own(self) -> None:
        if (self.root / MARKER).is_file() or not entries(self.root):
            return
        try:
            self.manifest()  # one of before there were markers
        except AdminError as e:
            raise AdminError(
                f"{self.root} holds something else than a backup: name a folder that is empty or not there yet"
            ) from e

    def write_lines(self, folder: str, name: str, lines: Iterable[bytes]) -> WrittenFile:
        """Write a file of lines, durably."""
        path = self.root / folder / name
        path.parent.mkdir(exist_ok=True)
        digest, num_lines = hashlib.sha256(), 0
        with path.open("xb") as file:
            for line in lines:
                file.write(line)
                digest.update(line)
                num_lines += 1
            file.flush()
            os.fsync(file.fileno())
        return WrittenFile(name=name, num_lines=num_lines, sha256=digest.hexdigest())

    def read_lines(self, manifest: Manifest, file: WrittenFile) -> Iterator[bytes]:
        """The lines of a file, unchecked."""
        with (self.root / manifest.rows / file.name).open("rb") as lines:
            yield from lines

    def is_whole(self, manifest: Manifest, file: WrittenFile) -> bool:
        """Whether a file is as it was written."""
        try:
            with (self.root / manifest.rows / file.name).open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
        except OSError:
            return False

    def finish(self, manifest: Manifest) -> None:
        """Make what was written the folder's backup."""
        aside = self.manifest_path.with_suffix(".new")
        aside.write_bytes(manifest.to_bytes())
        sync([aside, self.root / manifest.rows])
        aside.rename(self.manifest_path)
        sync([self.root])


def _shape(body: dict[str, Any]) -> TableShape:
    return TableShape(
        name=body["name"],
        columns={name: Kind(kind) for name, kind in body["columns"].items()},
        key=tuple(body["key"]),
        late=tuple(body["late"]),
    )


def _digest(body: dict[str, Any]) -> str:
    # Through JSON once, for a tuple is written like the list that is read.
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
