"""Blobs: bytes under the name of their own SHA-256, on a local folder or any fsspec URL.

A stored blob is whole or absent, also after a power cut. Bytes are staged aside first; a batch makes everything it
keeps durable with two passes over the file system instead of two per file, and leaves nothing behind when it fails.
How blobs go again is in docs/decisions/014-garbage-and-backups.md.
"""

import errno
import hashlib
import re
import secrets
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec

from app.aside import Aside, put_back
from app.exceptions import Unavailable
from app.files import entries, link_or_copy, modified, sync, touch

_T = TypeVar("_T")

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = "0123456789abcdef"
_LOOKS = 3
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_RETRY_AFTER_S = 30


class Readable(Protocol):
    """A binary stream, of which only this is asked."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; empty at the end."""
        ...


@dataclass(frozen=True)
class StoredBlob:
    """A blob that is whole and in its place."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class StagedBlob:
    """Bytes written aside, readable at ``path``, of which nobody else knows yet."""

    sha256: str
    num_bytes: int
    path: Path


class BlobMissing(Unavailable):
    """Something refers to a blob that is not there."""

    def __init__(self) -> None:
        super().__init__("artifact_missing", "A stored file is missing.")


class BlobCorrupt(Unavailable):
    """A stored blob's bytes are no longer those that were stored."""

    def __init__(self) -> None:
        super().__init__("artifact_corrupt", "A stored file is damaged.")


class BlobTooLarge(Exception):
    """The stream has more bytes than `BlobBatch.stage` was told to accept. Nothing of it is kept."""


class BlobBatch:
    """Blobs that appear together at the end of ``with storage.batch()``, or not at all. For one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, StagedBlob] = {}

    def stage(self, file: Readable, *, max_bytes: int | None = None) -> StagedBlob:
        """Write a stream aside and hash it on the way. It is kept only after `keep`.

        Raises `BlobTooLarge` as soon as ``max_bytes`` are exceeded.
        """
        path = self._folder / secrets.token_hex(12)
        digest, num_bytes = hashlib.sha256(), 0
        with disk(), path.open("xb") as out:
            while chunk := file.read(_CHUNK):
                num_bytes += len(chunk)
                if max_bytes is not None and num_bytes > max_bytes:
                    path.unlink()
                    raise BlobTooLarge
                digest.update(chunk)
                out.write(chunk)
        return StagedBlob(digest.hexdigest(), num_bytes, path)

    def keep(self, staged: StagedBlob) -> StoredBlob:
        """Make it part of the batch. Equal bytes are one blob, however often they are kept."""
        if staged.sha256 in self._kept:
            self.drop(staged)
        else:
            self._kept[staged.sha256] = staged
        return StoredBlob(staged.sha256, staged.num_bytes)

    def drop(self, staged: StagedBlob) -> None:
        """Remove it now, rather than when the batch ends."""
        staged.path.unlink(missing_ok=True)

    def put_stream(self, file: Readable) -> StoredBlob:
        """Stage and keep."""
        return self.keep(self.stage(file))

    @property
    def kept(self) -> list[StagedBlob]:
        """What the end of the batch stores."""
        return list(self._kept.values())


class BlobStore(ABC):
    """Content-addressed bytes.

    Full disk: `Unavailable` ``storage_full``; any other failure of the medium: ``storage_unavailable``. Storing bytes
    that are already there makes them young again, so that a collector's grace period starts anew.
    """

    def __init__(self, staging: Path) -> None:
        self._staging = staging

    @contextmanager
    def batch(self) -> Iterator[BlobBatch]:
        """Stage many blobs and store them all at the end of the block; on an exception, none."""
        folder = self._staging / secrets.token_hex(12)
        with disk():
            folder.mkdir(parents=True)
        try:
            batch = BlobBatch(folder)
            yield batch
            with disk():
                self._publish(batch.kept)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_stream(self, file: Readable) -> StoredBlob:
        """Store a stream, whole or not at all."""
        with self.batch() as batch:
            return batch.put_stream(file)

    def put_file(self, path: Path) -> str:
        """Store a copy of a file and return its sha256."""
        with path.open("rb") as file:
            return self.put_stream(file).sha256

    def read(self, sha256: str) -> bytes:
        """All bytes of a blob, checked against its name. Raises `BlobMissing`, `BlobCorrupt`."""
        with self.open(sha256) as file, disk():
            content = file.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BlobCorrupt
        return content

    def verify(self, sha256: str) -> None:
        """Read a blob where it is stored and check its bytes. Raises `BlobMissing`, `BlobCorrupt`."""
        with self.open(sha256) as file, disk():
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise BlobCorrupt

    def link(self, sha256: str, to: Path) -> None:
        """Give a blob a name of the caller's that no cache will take away: a hard link, else a copy.

        Raises `BlobMissing`. The bytes must not be changed through it.
        """
        for attempt in range(2):
            source = self.local_path(sha256)
            try:
                link_or_copy(source, to)
            except FileNotFoundError:
                if attempt or not to.parent.is_dir():
                    raise
                continue  # evicted from the cache just now
            return

    def drop_copy(self, sha256: str) -> bool:  # noqa: ARG002 - for stores that have copies
        """Drop a local copy of a blob, so that it is fetched anew; False where no file is a copy."""
        return False

    def remove_abandoned(self, older_than: timedelta) -> int:
        """Remove what batches of killed processes left in staging; returns how many batches."""
        before = time.time() - older_than.total_seconds()
        abandoned = [f for f in entries(self._staging) if modified(f) < before]
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(abandoned)

    @abstractmethod
    def open(self, sha256: str) -> BinaryIO:
        """A seekable stream of a blob, unchecked. Raises `BlobMissing`."""

    @abstractmethod
    def local_path(self, sha256: str) -> Path:
        """A file with the blob's bytes, to be read soon; see `link` for longer.

        Raises `BlobMissing`, `BlobCorrupt`.
        """

    @abstractmethod
    def exists(self, sha256: str) -> bool:
        """Whether the blob is stored."""

    @abstractmethod
    def delete(self, sha256: str) -> None:
        """Remove a blob, whoever may be about to refer to it; it may already be gone."""

    @abstractmethod
    def stored(self) -> Iterator[tuple[str, datetime]]:
        """Every blob's sha256 and when it was last stored, in no order: what a collector goes through."""

    @abstractmethod
    def clock(self) -> datetime:
        """What time it is where the blobs are: `stored` and `discard` go by the same clock."""

    @abstractmethod
    def discard(self, sha256: str, *, unless_stored_since: datetime) -> bool:
        """Remove a blob unless it was stored, or stored again, since that time. Returns whether this call removed it.

        Whoever stores it at the same time ends with a blob that is there.
        """

    @abstractmethod
    def recover(self) -> None:
        """Undo what a process that was killed within `discard` left half done. Safe at any time."""

    @abstractmethod
    def _publish(self, blobs: Sequence[StagedBlob]) -> None:
        """Put staged files in their places, durably."""


class LocalBlobStore(BlobStore):
    """Blobs in a folder, two levels deep. The folder must be on one file system."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "staging")
        self._root = root
        self._aside = Aside(root / "aside")

    def open(self, sha256: str) -> BinaryIO:
        with disk():
            return self._look(sha256, lambda path: path.open("rb"))

    def local_path(self, sha256: str) -> Path:
        with disk():
            return self._look(sha256, _existing)

    def exists(self, sha256: str) -> bool:
        try:
            self.local_path(sha256)
        except BlobMissing:
            return False
        return True

    def delete(self, sha256: str) -> None:
        with disk():
            self._path(sha256).unlink(missing_ok=True)

    def stored(self) -> Iterator[tuple[str, datetime]]:
        for a, b in product(_HEX, _HEX):
            for path in (p for inner in entries(self._root / f"{a}{b}") for p in entries(inner)):
                yield path.name, _stored_at(path)

    def clock(self) -> datetime:
        probe = self._root / "clock"
        with disk():
            self._root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            return _stored_at(probe)

    def discard(self, sha256: str, *, unless_stored_since: datetime) -> bool:
        place = self._path(sha256)
        with disk():
            if _stored_at(place) >= unless_stored_since or (taken := self._aside.take(place)) is None:
                return False
            # It may have been stored again just before it was taken. From now on nobody can: they find no file, and
            # store a copy of their own.
            if _stored_at(taken) >= unless_stored_since:
                put_back(taken, place)
                return False
            taken.unlink(missing_ok=True)
        return True

    def recover(self) -> None:
        with disk():
            for name, taken in self._aside.files():
                if _SHA256.fullmatch(name):
                    put_back(taken, self._path(name))

    def _look(self, sha256: str, look: Callable[[Path], _T]) -> _T:
        """Look at a blob's file. Where it is not, a `discard` may have it aside that puts it back, or was killed."""
        path = self._path(sha256)
        for _ in range(_LOOKS):
            with suppress(FileNotFoundError):
                return look(path)
            for name, taken in self._aside.files():
                if name == sha256:
                    put_back(taken, path)
        return look(path)

    def _path(self, sha256: str) -> Path:
        return self._root / _key(sha256)

    def _publish(self, blobs: Sequence[StagedBlob]) -> None:
        # What is there already stays: a second copy need not reach the disk, where removing it would be slow.
        new = [blob for blob in blobs if not self._renew(blob.sha256)]
        for blob in new:
            touch(blob.path)  # its age counts from now, not from when its bytes arrived
        sync([blob.path for blob in new])
        folders: set[Path] = set()
        for blob in new:
            path = self._path(blob.sha256)
            for folder in (path.parent.parent, path.parent):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    folders.add(folder.parent)
            blob.path.rename(path)
            folders.add(path.parent)
        sync(sorted(folders))

    def _renew(self, sha256: str) -> bool:
        """Make a blob that is there, and sound, young."""
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256 and touch(path)
        except FileNotFoundError:
            return False


class RemoteBlobStore(BlobStore):
    """Blobs on an fsspec file system, with checked copies of those in use in a local folder of bounded size.

    "Whole or absent" rests on the remote's own promise that an object appears when its upload is complete (S3, GCS
    and Azure make it); copies are checked against their name in any case.
    """

    def __init__(self, filesystem: Any, root: str, cache_dir: Path, *, max_cache_bytes: int = 20 * 1024**3) -> None:
        super().__init__(cache_dir / "staging")
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._cache = cache_dir / "blobs"
        self._max_cache_bytes = max_cache_bytes

    def open(self, sha256: str) -> BinaryIO:
        with disk():
            return cast(BinaryIO, self._fs.open(self._remote(sha256), "rb"))

    def local_path(self, sha256: str) -> Path:
        path = self._cache / _key(sha256)
        if not touch(path):  # used just now: last to be evicted
            self._fetch(sha256, path)
        return path

    def drop_copy(self, sha256: str) -> bool:
        with disk():
            (self._cache / _key(sha256)).unlink(missing_ok=True)
        return True

    def exists(self, sha256: str) -> bool:
        with disk():
            return bool(self._fs.isfile(self._remote(sha256)))

    def delete(self, sha256: str) -> None:
        with disk():
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._remote(sha256))
            (self._cache / _key(sha256)).unlink(missing_ok=True)

    def stored(self) -> Iterator[tuple[str, datetime]]:
        for a, b in product(_HEX, _HEX):  # one answer of a million names would not fit
            with disk():
                self._fs.invalidate_cache()
                found: dict[str, dict[str, Any]] = self._fs.find(f"{self._root}/{a}{b}", detail=True)
            for name, details in found.items():
                sha256 = name.rpartition("/")[2]
                if _SHA256.fullmatch(sha256):
                    yield sha256, self._modified(name, details)

    def clock(self) -> datetime:
        probe = f"{self._root}/clock"
        with disk():
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(probe, b"")
        return self._modified(probe)

    def discard(self, sha256: str, *, unless_stored_since: datetime) -> bool:
        # Objects cannot be taken aside. One that is stored again between this look and its removal is lost; what that
        # takes is in docs/decisions/014-garbage-and-backups.md.
        try:
            if self._modified(self._remote(sha256)) >= unless_stored_since:
                return False
        except BlobMissing:
            return False
        self.delete(sha256)
        return True

    def recover(self) -> None:
        pass

    def _modified(self, name: str, details: Mapping[str, Any] | None = None) -> datetime:
        """When an object was stored; ``details`` of a listing save asking again where they tell it."""
        found = (details or {}).get("LastModified")
        if not isinstance(found, datetime):
            with disk():
                self._fs.invalidate_cache()  # what a listing said a while ago is no answer
                found = cast(datetime, self._fs.modified(name))
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found

    def _remote(self, sha256: str) -> str:
        return f"{self._root}/{_key(sha256)}"

    def _publish(self, blobs: Sequence[StagedBlob]) -> None:
        def upload(blob: StagedBlob) -> None:
            remote = self._remote(blob.sha256)
            self._fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(blob.path), remote)

        with ThreadPoolExecutor(max_workers=8) as threads:
            for _ in threads.map(upload, blobs):
                pass

    def _fetch(self, sha256: str, path: Path) -> None:
        with disk():
            self._staging.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._staging / secrets.token_hex(12)
        try:
            digest = hashlib.sha256()
            with self.open(sha256) as remote, disk(), aside.open("xb") as out:
                while chunk := remote.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
            if digest.hexdigest() != sha256:
                raise BlobCorrupt
            with disk():
                aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        self._evict(keep=path)

    def _evict(self, keep: Path) -> None:
        """Drop the copies used longest ago until the rest fits."""
        files = []
        for path in (p for outer in entries(self._cache) for inner in entries(outer) for p in entries(inner)):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            files.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in files) - self._max_cache_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size


def make_storage(url: str, cache_dir: Path) -> BlobStore:
    """Open the store at a folder or fsspec URL (``s3://bucket/prefix``); ``cache_dir`` serves remote ones."""
    if url.startswith("file://"):
        return LocalBlobStore(Path(url.removeprefix("file://")))
    if "://" not in url:
        return LocalBlobStore(Path(url))
    filesystem, root = fsspec.url_to_fs(url)
    return RemoteBlobStore(filesystem, root, cache_dir)


def _stored_at(path: Path) -> datetime:
    return datetime.fromtimestamp(modified(path), UTC)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such blob", str(path))
    return path


def _key(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ValueError("not a sha256")
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


@contextmanager
def disk() -> Iterator[None]:
    """Translate a block's errors of the medium into `Unavailable`; a file that is not there is `BlobMissing`."""
    try:
        yield
    except FileNotFoundError as e:
        raise BlobMissing from e
    except OSError as e:
        if e.errno in _FULL:
            raise Unavailable("storage_full", "The storage is full.", retry_after_s=_RETRY_AFTER_S) from e
        raise Unavailable("storage_unavailable", "The storage cannot be reached.", retry_after_s=_RETRY_AFTER_S) from e
