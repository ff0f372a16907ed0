"""From a folder that a trainer filled to a publication: every file a blob, and one digest over all of them."""

from dataclasses import asdict
from pathlib import Path

from app.classifiers.messages import bundle_version
from app.ids import new_id
from app.jobs.messages import Publication
from app.storage import BlobStore
from worker.protocol import ResultReport

MAX_FILES = 1000


class BundleRefused(Exception):
    """The trainer's result is not a folder of plain files in its output folder."""


def store_bundle(storage: BlobStore, result: ResultReport, output_dir: Path) -> Publication:
    """Store the bundle's files, all or none. Raises `BundleRefused`, and the storage's own errors."""
    files: dict[str, str] = {}
    with storage.batch() as batch:
        for path in _files(result.bundle_dir, output_dir):
            with path.open("rb") as file:
                files[path.relative_to(result.bundle_dir).as_posix()] = batch.put_stream(file).sha256
    return Publication(
        classifier_id=new_id("clf"),
        files=files,
        version=bundle_version(files),
        metrics=result.metrics,
        verdict=None if result.verdict is None else asdict(result.verdict),
        report=None if result.report is None else asdict(result.report),
        unknown_below=result.unknown_below.adapted,
        zero_shot_unknown_below=result.unknown_below.zero_shot,
    )


def _files(bundle_dir: Path, output_dir: Path) -> list[Path]:
    if not bundle_dir.resolve().is_relative_to(output_dir.resolve()):
        raise BundleRefused("outside of the output folder")
    found = [path for path in sorted(bundle_dir.rglob("*")) if not path.is_dir() or path.is_symlink()]
    if not found or len(found) > MAX_FILES:
        raise BundleRefused(f"{len(found)} files")
    if any(path.is_symlink() or not path.is_file() for path in found):
        raise BundleRefused("not only plain files")
    return found
