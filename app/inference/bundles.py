"""Brings published bundles from blob storage into folders that must_core can load."""

import shutil
import tempfile
from pathlib import Path

from app.inference.predictor import BundleSource
from app.storage import BlobStore


class StoredBundles:
    """Lays a bundle's blobs out under their file names, in a folder of its own for each version."""

    def __init__(self, *, storage: BlobStore, folder: Path) -> None:
        self._storage = storage
        self._folder = folder

    def fetch(self, source: BundleSource) -> Path:
        """The bundle's folder, laid out from blobs just verified; raises `Unavailable` when one is not sound."""
        final = self._folder / source.version
        self._folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=self._folder, prefix=".staged-"))
        try:
            self._fill(staged, source)
            if final.is_dir():
                shutil.rmtree(final)  # an earlier copy, which may have been damaged since
            staged.rename(final)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return final

    def lay_out(self, source: BundleSource, folder: Path) -> None:
        """Fill a new folder of the caller's likewise; raises `Unavailable` when a blob is not sound."""
        folder.mkdir()
        self._fill(folder, source)

    def _fill(self, folder: Path, source: BundleSource) -> None:
        for name, sha256 in source.files:
            self._storage.verify(sha256)
            self._storage.link(sha256, folder / name)
