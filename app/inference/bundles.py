"""Brings published bundles from blob storage into folders that must_core can load."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app.files import staged
from app.inference.predictor import BundleSource
from app.storage import BlobCorrupt, BlobStore, disk
from must_core.files import sha256_of


class StoredBundles:
    """Lays a bundle's blobs out under their file names. Nothing is kept, and nobody shares a folder with another."""

    def __init__(self, *, storage: BlobStore, folder: Path) -> None:
        self._storage = storage
        self._folder = folder

    @contextmanager
    def laid_out(self, source: BundleSource) -> Iterator[Path]:
        """Yield a folder with the bundle, verified, that goes with the block; raises `Unavailable`."""
        with ExitStack() as stack:
            with disk():
                parent = stack.enter_context(staged(self._folder))
            self.lay_out(source, parent / "bundle")
            yield parent / "bundle"

    def lay_out(self, source: BundleSource, folder: Path) -> None:
        """Fill a new folder of the caller's with the bundle, verified; raises `Unavailable`."""
        with disk():
            folder.mkdir()
            for name, sha256 in source.files:
                self._put(sha256, folder / name)

    def _put(self, sha256: str, place: Path) -> None:
        """Verify the file that is used: with remote storage it is a copy, which may be damaged alone."""
        self._storage.link(sha256, place)
        if sha256_of(place) == sha256:
            return
        if not self._storage.drop_copy(sha256):
            raise BlobCorrupt
        place.unlink()
        self._storage.link(sha256, place)
        if sha256_of(place) != sha256:
            raise BlobCorrupt
