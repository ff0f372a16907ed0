"""Classifiers to take away: each export is made once, kept for those who ask again, and gone when room is needed."""

import asyncio
import hashlib
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread

from app import __version__
from app.classifiers.messages import ClassifierView
from app.exceptions import Unavailable
from app.files import entries, mark_used, staged, sync
from app.inference.exports import Exporter, ExportFormat
from app.services.classifiers import ClassifierService
from app.storage import disk

MAX_WAITING = 8
"""Requests that may wait for exports; each holds a connection for minutes."""
_RETRY_AFTER_S = 30
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The zip format's first; the same files give the same bytes."""


@dataclass(frozen=True)
class Archive:
    """A zip file, open: it can be read to the end although it goes meanwhile."""

    file: BinaryIO
    name: str
    etag: str
    """A strong one, with its quotes: other contents have another."""


class DownloadService:
    """Zip files of exported classifiers, in a folder of its own. Exports wait for each other, nobody else for them."""

    def __init__(self, *, classifiers: ClassifierService, exporter: Exporter, folder: Path, max_bytes: int) -> None:
        self._classifiers = classifiers
        self._exporter = exporter
        self._folder = folder
        self._max_bytes = max_bytes
        self._exports = ThreadPoolExecutor(1, thread_name_prefix="export")
        self._num_waiting = 0

    async def archive(self, classifier_id: str, to: ExportFormat) -> Archive:
        """A zip file of the classifier in a format.

        Raises `NotFound`, `Conflict` ``not_exportable``, and `Unavailable`: ``overloaded`` when too many wait.
        """
        kept = await anyio.to_thread.run_sync(lambda: self._kept(self._classifiers.get(classifier_id), to))
        if kept is not None:
            return kept
        if self._num_waiting >= MAX_WAITING:
            raise Unavailable("overloaded", "Many exports are waited for now.", retry_after_s=_RETRY_AFTER_S)
        self._num_waiting += 1  # on the event loop alone
        try:
            return await asyncio.get_running_loop().run_in_executor(self._exports, self._make, classifier_id, to)
        finally:
            self._num_waiting -= 1

    def forget(self, classifier_id: str) -> None:
        """Remove what is kept here of a classifier that was deleted; who reads it reads on."""
        for path in self._folder.glob(f"{classifier_id}-*.zip"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """End an export that is at work, and those that wait."""
        self._exports.shutdown(wait=False, cancel_futures=True)
        self._exporter.close()
        self._exports.shutdown()

    def _place(self, classifier: ClassifierView, to: ExportFormat) -> Path:
        return self._folder / f"{classifier.id}-{to.value}-{__version__}.zip"

    def _kept(self, classifier: ClassifierView, to: ExportFormat) -> Archive | None:
        place = self._place(classifier, to)
        with disk():
            if not mark_used(place):
                return None
            return _opened(place, f"{classifier.id}-{to.value}.zip")

    def _make(self, classifier_id: str, to: ExportFormat) -> Archive:
        """Make it, unless whoever was before in the queue has."""
        classifier = self._classifiers.get(classifier_id)
        kept = self._kept(classifier, to)
        if kept is not None:
            return kept
        place, name = self._place(classifier, to), f"{classifier.id}-{to.value}.zip"
        with disk(), staged(self._folder) as aside:
            exported = aside / Path(name).stem
            self._exporter.export(
                self._classifiers.source_of(classifier),
                base_model=classifier.base_model,
                unknown_below=classifier.unknown_below,
                to=to,
                folder=exported,
            )
            self._make_room(sum(path.stat().st_size for path in exported.rglob("*")))
            zipped = _zip(exported, aside / name)
            made = _opened(zipped, name)
            if made is None:
                raise Unavailable("export_failed", "The export failed.")
            sync([zipped])
            zipped.rename(place)
            sync([self._folder])
        return made

    def _make_room(self, num_bytes: int) -> None:
        """Remove those asked for longest ago until the rest and so many bytes are within the bound."""
        kept = []
        for path in entries(self._folder):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process makes room too
            if path.suffix == ".zip":
                kept.append((status.st_atime_ns, status.st_size, path))
        for _, size, path in sorted(kept, reverse=True):
            num_bytes += size
            if num_bytes > self._max_bytes:
                path.unlink(missing_ok=True)


def _opened(path: Path, name: str) -> Archive | None:
    """A zip file by its table of contents, from which its tag is made; None when it is gone or not whole."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            contents = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    except zipfile.BadZipFile:
        file.close()
        return None
    file.seek(0)
    digest = hashlib.sha256(repr((name, __version__, contents)).encode()).hexdigest()
    return Archive(file, name, f'"{digest[:32]}"')


def _zip(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _TIMESTAMP)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as out:
                shutil.copyfileobj(file, out, 1 << 20)
    return to
