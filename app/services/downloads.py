"""Classifiers to take away: each export is made once, kept for those who ask again, and gone when room is needed."""

import shutil
import zipfile
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock

from app.files import entries, modified, touch
from app.inference.exports import Exporter, ExportFormat
from app.services.classifiers import ClassifierService

MAX_KEPT_BYTES = 10 * 1024**3
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The zip format's first; the same classifier gives the same bytes."""


class DownloadService:
    """Zip files of exported classifiers, in a folder of its own."""

    def __init__(self, *, classifiers: ClassifierService, exporter: Exporter, folder: Path) -> None:
        self._classifiers = classifiers
        self._exporter = exporter
        self._folder = folder
        self._lock = Lock()

    def archive(self, classifier_id: str, to: ExportFormat) -> Path:
        """A zip file of the classifier in a format, to be opened soon.

        Raises `NotFound`, `Unavailable`, and `Conflict` ``not_exportable``.
        """
        classifier = self._classifiers.get(classifier_id)
        final = self._folder / f"{classifier.id}-{to.value}.zip"
        with self._lock:
            if touch(final):
                return final
            self._folder.mkdir(parents=True, exist_ok=True)
            staged = Path(mkdtemp(dir=self._folder, prefix=".staged-"))
            try:
                exported = staged / final.stem
                self._exporter.export(
                    self._classifiers.source_of(classifier),
                    base_model=classifier.base_model,
                    unknown_below=classifier.unknown_below,
                    to=to,
                    folder=exported,
                )
                zipped = _zip(exported, staged / final.name)
                self._make_room(zipped.stat().st_size)
                zipped.rename(final)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return final

    def _make_room(self, num_bytes: int) -> None:
        kept = sorted((path for path in entries(self._folder) if path.suffix == ".zip"), key=modified, reverse=True)
        for path in kept:
            num_bytes += path.stat().st_size
            if num_bytes > MAX_KEPT_BYTES:
                path.unlink(missing_ok=True)  # who is reading it reads on


def _zip(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _TIMESTAMP)
            entry.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as out:
                shutil.copyfileobj(file, out, 1 << 20)
    return to
