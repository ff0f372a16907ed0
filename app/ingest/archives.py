"""Archives as streams of their regular files: zip, tar and tar.gz, told apart by content.

Nothing is ever extracted: members are read one after another, their names are only looked at, and every byte that
comes out is counted. Whatever two readers could understand differently is refused.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import BinaryIO

from app.exceptions import UnsupportedMedia
from app.ingest.tars import walk_tar
from app.ingest.unpacking import Member, Tally, ambiguous
from app.ingest.zips import has_end_record, walk_zip
from must_core.data.images import sniff as sniff_image

_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x07\x08")
_GZIP_START = b"\x1f\x8b"
_OTHER_ARCHIVES = (
    b"Rar!\x1a\x07",
    b"7z\xbc\xaf\x27\x1c",
    b"\xfd7zXZ\x00",
    b"BZh",
    b"\x28\xb5\x2f\xfd",  # zstandard
    b"LZIP",
    b"\x04\x22\x4d\x18",  # lz4
    b"MSCF",
    b"!<arch>\n",
    b"xar!",
)
_TAR_MAGIC = slice(257, 262)
SNIFF_BYTES = 512
"""What `sniff` wants to see of a file."""


class ArchiveKind(StrEnum):
    """The archives that can be read."""

    ZIP = "zip"
    TAR = "tar"
    TAR_GZ = "tar.gz"


def is_archive(head: bytes) -> bool:
    """Whether a file's first `SNIFF_BYTES` announce an archive of any sort, readable here or not."""
    return head.startswith((*_ZIP_STARTS, _GZIP_START, *_OTHER_ARCHIVES)) or head[_TAR_MAGIC] == b"ustar"


def sniff(file: BinaryIO, filename: str) -> ArchiveKind | None:
    """Tell by its content what archive a file is; None when it is none.

    Raises `UnsupportedMedia` ``archive_unsupported_format``, and `InvalidInput` ``archive_ambiguous`` for a file that
    is an archive and something else at once.
    """
    file.seek(0)
    head = file.read(SNIFF_BYTES)
    if head.startswith(_OTHER_ARCHIVES):
        raise UnsupportedMedia("archive_unsupported_format", "Archives may be zip, tar or tar.gz.")
    is_zip, is_tar, is_gzip = head.startswith(_ZIP_STARTS), head[_TAR_MAGIC] == b"ustar", head.startswith(_GZIP_START)
    # An image may carry a zip in its tail (nobody reads it as one) unless it is offered as a zip.
    is_image = sniff_image(head) is not None and not filename.lower().endswith(".zip")
    if (is_zip and is_tar) or (not is_zip and not is_image and has_end_record(file)):
        raise ambiguous()
    if is_zip:
        return ArchiveKind.ZIP
    if is_tar:
        return ArchiveKind.TAR
    return ArchiveKind.TAR_GZ if is_gzip else None


def walk(file: BinaryIO, kind: ArchiveKind, tally: Tally) -> Iterator[Member]:
    """Yield an archive's regular files, in its order.

    Raises `InvalidInput` (``archive_…``), at any point: what was yielded before counts for nothing then.
    """
    if kind is ArchiveKind.ZIP:
        yield from walk_zip(file, tally)
    else:
        yield from walk_tar(file, tally, compressed=kind is ArchiveKind.TAR_GZ)
