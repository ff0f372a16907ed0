"""A decode-once cache: the pixels of many images one behind the other in one file, mapped into memory.

A folder with ``pixels.bin`` (raw RGB, a byte a channel, row by row), ``index.npy`` (offset, width and height of each
image) and, written last, ``manifest.json``. It is staged and renamed, so it is whole or absent; what an interrupted run
left is thrown away by the next. While there is room, the operating system keeps pixels in memory, once for all
processes.

Decoded images take five to ten times the room of their JPEG files: `packed_bytes` says how much before it is spent.
"""

import hashlib
import io
import json
import math
import mmap
import shutil
import struct
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from must_core.data.image_list import ImageList
from must_core.data.images import ImageLimits, ImageRejected, probe
from must_core.data.loader import ImageFiles, ImageSource, loaded, readable, unreadable
from must_core.errors import CorruptArtifact, InvalidConfig, UnreadableImage
from must_core.files import publish_folder, write_json

MANIFEST = "manifest.json"
INDEX = "index.npy"
PIXELS = "pixels.bin"

LOOK_AT_MOST = 4096
"""Headers that `packed_bytes` reads; the sum over all images is estimated from as many, evenly spread."""

_FORMAT = "must_core packed images 1"
_ENTRY = np.dtype([("offset", "<u8"), ("width", "<u4"), ("height", "<u4")])
_NO_LIMITS = ImageLimits(max_pixels=1 << 64, max_aspect=math.inf, min_side=0, max_jpeg_scans=1 << 31)


class PackedImages:
    """The `must_core.data.loader.ImageSource` that reads a cache. Pickles as the name of its folder.

    Opening verifies manifest, index and file size and raises `CorruptArtifact` where they do not agree; the pixels
    themselves are not read.
    """

    digest: str
    """`ImageList.digest` of the files that were packed."""
    max_short_side: int | None
    """What larger images were shrunk to; None when pixels are as the files have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise CorruptArtifact("The cache is of another format.")
            index = (folder / INDEX).read_bytes()
            if hashlib.sha256(index).hexdigest() != manifest["index_sha256"]:
                raise CorruptArtifact("The cache's index is not the one that was written.")
            self._index = np.load(io.BytesIO(index), allow_pickle=False)
            with (folder / PIXELS).open("rb") as file:
                self._pixels = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._index) != manifest["count"] or len(self._pixels) != manifest["bytes"]:
                raise CorruptArtifact("The cache has not the size that was written.")
            self.digest = str(manifest["digest"])
            self.max_short_side = manifest["max_short_side"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorruptArtifact("The cache cannot be read.") from e

    def __reduce__(self) -> tuple[type["PackedImages"], tuple[Path]]:
        return (PackedImages, (self.folder,))

    def __len__(self) -> int:
        return len(self._index)

    def image(self, index: int) -> Image.Image:
        """The pixels that `must_core.data.images.decode_rgb` gives for this image, shrunk if packing was told to."""
        offset, width, height = self._index[index].item()
        pixels = memoryview(self._pixels)[offset : offset + 3 * width * height]
        return Image.frombytes("RGB", (width, height), pixels)


def pack(
    paths: Sequence[Path], folder: Path, *, max_short_side: int | None = None, num_workers: int = 0
) -> PackedImages:
    """Do all of `packing` and open the result."""
    for _ in packing(paths, folder, max_short_side=max_short_side, num_workers=num_workers):
        pass
    return PackedImages(folder)


def packing(
    paths: Sequence[Path], folder: Path, *, max_short_side: int | None = None, num_workers: int = 0
) -> Generator[int, None, None]:
    """Decode every image once into a cache in ``folder``; yields how many are done after each.

    A sound cache of the same files and limit is kept as it is and yields nothing; any other cache there is replaced.
    The same means the same names and sizes (`ImageList.digest`). Whoever stops asking before the end leaves no trace.
    One process at a time may pack into a folder.

    ``max_short_side`` shrinks images whose shorter side is longer, to save room: views made of them are then close
    to those made of the files, and not the same.

    Raises `UnreadableImage` for the first file that cannot be decoded, `InvalidConfig` when there are no images, and
    `FileExistsError` when ``folder`` is something else than a cache.
    """
    if not paths:
        raise InvalidConfig("There are no images.", code="no_usable_images", param="images")
    if max_short_side is not None and max_short_side < 1:
        raise InvalidConfig("max_short_side must be at least 1.", param="max_short_side")
    images = ImageList.of(paths)
    digest = images.digest()
    if folder.exists():
        if _is_cache_of(folder, digest, max_short_side):
            return
        shutil.rmtree(folder)
    staged = folder.parent / f".{folder.name}.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        index = bytearray()
        with (staged / PIXELS).open("wb") as file, closing(_decoded(images, max_short_side, num_workers)) as decoded:
            for number, image in enumerate(decoded, start=1):
                index += struct.pack("<QII", file.tell(), image.width, image.height)
                file.write(image.pixels)
                yield number
            num_bytes = file.tell()
        with (staged / INDEX).open("wb") as file:
            np.save(file, np.frombuffer(index, dtype=_ENTRY), allow_pickle=False)
        manifest = {
            "format": _FORMAT,
            "digest": digest,
            "count": len(images),
            "bytes": num_bytes,
            "index_sha256": hashlib.sha256((staged / INDEX).read_bytes()).hexdigest(),
            "max_short_side": max_short_side,
        }
        write_json(staged / MANIFEST, manifest)
        publish_folder(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def packed_bytes(paths: Sequence[Path], *, max_short_side: int | None = None, look_at_most: int = LOOK_AT_MOST) -> int:
    """Size of the pixels that `pack` would write, from the images' headers; nothing is decoded.

    Exact up to ``look_at_most`` images, an estimate from as many above. Raises `UnreadableImage` for a file whose
    header cannot be read.
    """
    step = max(1, -(-len(paths) // look_at_most))
    looked_at = ImageList.of(paths)[::step]
    total = 0
    for number, path in enumerate(looked_at):
        try:
            info = probe(path, _NO_LIMITS)
        except ImageRejected as e:
            raise unreadable(looked_at.name(number), e) from e
        total += 3 * math.prod(_packed_size(info.width, info.height, max_short_side))
    return total * len(paths) // max(1, len(looked_at))


@dataclass(frozen=True)
class _Pixels:
    width: int
    height: int
    pixels: bytes


class _DecodedFiles(Dataset[_Pixels | UnreadableImage]):
    def __init__(self, source: ImageSource, max_short_side: int | None) -> None:
        self._source = source
        self._max_short_side = max_short_side

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> _Pixels | UnreadableImage:
        return readable(lambda: self._decoded(index))

    def _decoded(self, index: int) -> _Pixels:
        image = self._source.image(index)
        size = _packed_size(*image.size, self._max_short_side)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        # Bytes rather than tensors: they travel through a pipe, and not through shared memory that may be short.
        return _Pixels(*size, image.tobytes())


def _decoded(images: ImageList, max_short_side: int | None, num_workers: int) -> Generator[_Pixels, None, None]:
    """The images in their order, each on its own."""
    yield from loaded(
        _DecodedFiles(ImageFiles(images), max_short_side),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch=8,
    )


def _as_it_is(item: Any) -> Any:
    return item


def _packed_size(width: int, height: int, max_short_side: int | None) -> tuple[int, int]:
    short = min(width, height)
    if max_short_side is None or short <= max_short_side:
        return width, height
    return round(width * max_short_side / short), round(height * max_short_side / short)


def _is_cache_of(folder: Path, digest: str, max_short_side: int | None) -> bool:
    """Whether a folder holds what packing would make. Raises `FileExistsError` when it may be something else's."""
    try:
        packed = PackedImages(folder)
    except CorruptArtifact:
        names = {p.name for p in folder.iterdir()}
        if PIXELS not in names or not names <= {MANIFEST, INDEX, PIXELS}:
            raise FileExistsError(f"{folder} is there already and is not a cache of images") from None
        return False
    return (packed.digest, packed.max_short_side) == (digest, max_short_side)


def has_room(cache: Path, paths: Sequence[Path], at_most_bytes: int) -> bool:
    """Whether a cache is within the limit and leaves half of the disk's free space, not counting one that is there."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    there = sum(file.stat().st_size for file in cache.glob("*"))
    return packed_bytes(paths) <= min(at_most_bytes, (shutil.disk_usage(cache.parent).free + there) // 2)
