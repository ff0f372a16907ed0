"""An upload -> stored blobs and a report: the whole way of images into the service."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import structlog

from app.config import Settings
from app.exceptions import InvalidInput
from app.ingest.archives import SNIFF_BYTES, is_archive, sniff, walk
from app.ingest.decode_child import CheckedImage
from app.ingest.decoding import DecoderPool, Pending
from app.ingest.manifest import AcceptedImage, IngestReport, RejectedImage
from app.ingest.names import display_name
from app.ingest.unpacking import ArchiveLimits, Member, Stream, Tally
from app.ingest.uploads import Upload
from app.storage import BlobBatch, BlobStore, BlobTooLarge, StagedBlob
from must_core.data.images import ImageLimits, ImageRejected
from must_core.data.images import sniff as sniff_image

_log = structlog.get_logger(__name__)

_IN_FLIGHT = 16
"""Files that are staged while the decoders are at work on others."""


@dataclass(frozen=True, kw_only=True)
class IngestLimits:
    """What an upload may hold, beside what each image may be."""

    archive: ArchiveLimits = field(default_factory=ArchiveLimits)
    max_image_bytes: int = 64 * 1024**2
    max_total_pixels: int = 200_000 * 1_000_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The limits that an operator chose."""
        return cls(
            archive=ArchiveLimits(max_entries=settings.max_images, max_unpacked_bytes=settings.max_unpacked_bytes),
            max_image_bytes=settings.max_image_bytes,
            max_total_pixels=settings.max_total_pixels,
        )


def image_limits(settings: Settings) -> ImageLimits:
    """What each image may be, as an operator chose: for the `DecoderPool`."""
    return ImageLimits(max_pixels=settings.max_image_pixels)


class Ingestor:
    """Takes uploads in. One instance serves any number of threads."""

    def __init__(self, *, storage: BlobStore, decoder: DecoderPool, limits: IngestLimits) -> None:
        self._storage = storage
        self._decoder = decoder
        self._limits = limits

    def ingest(self, uploads: Iterable[Upload], *, min_unique: int = 2) -> IngestReport:
        """Store all usable images of archives and image files; when this returns, their blobs are durable.

        Files that cannot be used are set aside in the report. The whole upload is refused, and nothing of it stays,
        with `InvalidInput` or `UnsupportedMedia`: ``archive_…``, ``empty_file``, ``no_usable_images``,
        ``too_few_unique_images`` (several images with fewer than ``min_unique`` different ones),
        ``pixel_budget_exceeded``; and with `Unavailable` when the storage fails.
        """
        with self._storage.batch() as batch:
            run = _Run(batch, self._decoder, self._limits)
            try:
                for upload in uploads:
                    run.add(upload)
                report = run.finish(min_unique)
            finally:
                run.stop()
        _log.info(
            "images_ingested",
            num_images=len(report.images),
            num_rejected=len(report.rejected),
            num_duplicates=report.num_duplicates,
            num_ignored=report.num_ignored,
            total_bytes=report.total_bytes,
        )
        return report


@dataclass(frozen=True)
class _Waiting:
    position: int
    filename: str
    staged: StagedBlob
    pending: Pending[CheckedImage]


class _Run:
    """One upload on its way."""

    def __init__(self, batch: BlobBatch, decoder: DecoderPool, limits: IngestLimits) -> None:
        self._batch = batch
        self._decoder = decoder
        self._limits = limits
        self._tally = Tally(limits.archive)
        self._waiting: deque[_Waiting] = deque()
        self._num_files = 0
        self._num_archives = 0
        self._num_pixels = 0
        self._accepted: dict[int, AcceptedImage] = {}
        self._rejected: dict[int, RejectedImage] = {}
        self._first_position: dict[str, int] = {}
        self._repeats: list[tuple[int, str, str]] = []

    def add(self, upload: Upload) -> None:
        """Take one archive or image file in."""
        kind = sniff(upload.file, upload.filename)
        upload.file.seek(0)
        if kind is None:
            self._take(Member(upload.filename, upload.file))
            return
        self._num_archives += 1
        for member in walk(upload.file, kind, self._tally):
            self._take(member)

    def finish(self, min_unique: int) -> IngestReport:
        """Wait for the decoders and sum up."""
        while self._waiting:
            self._settle(self._waiting.popleft())
        num_duplicates = 0
        for position, filename, sha256 in self._repeats:
            # The first of equal files decided for all of them.
            first = self._first_position[sha256]
            if first in self._accepted:
                num_duplicates += 1
            else:
                reason = self._rejected[first]
                self._reject(position, filename, reason.code, reason.detail)
        self._check_usable(num_duplicates, min_unique)
        images = tuple(self._accepted[position] for position in sorted(self._accepted))
        return IngestReport(
            images=images,
            rejected=tuple(self._rejected[position] for position in sorted(self._rejected)),
            num_ignored=self._tally.num_ignored,
            num_duplicates=num_duplicates,
            total_bytes=sum(image.num_bytes for image in images),
        )

    def stop(self) -> None:
        """Leave nothing behind that is still at work."""
        for waiting in self._waiting:
            waiting.pending.cancel()

    def _check_usable(self, num_duplicates: int, min_unique: int) -> None:
        if not self._accepted:
            codes = [rejected.code for rejected in self._rejected.values()]
            if codes and not self._num_archives and all(code == "empty_file" for code in codes):
                raise InvalidInput("empty_file", "The file is empty.")
            most = max(set(codes), key=codes.count, default="no files at all")
            raise InvalidInput("no_usable_images", f"None of the files could be used. Most often: {most}.")
        if num_duplicates and len(self._accepted) < min_unique:
            raise InvalidInput("too_few_unique_images", "The images are all the same one.")

    def _take(self, member: Member) -> None:
        position, filename = self._num_files, display_name(member.name)
        self._num_files += 1
        head = _read_head(member.stream)
        if sniff_image(head) is None:
            self._reject(position, filename, *_why_no_image(head))
            return
        try:
            staged = self._batch.stage(_Rejoined(head, member.stream), max_bytes=self._limits.max_image_bytes)
        except BlobTooLarge:
            most = self._limits.max_image_bytes
            self._reject(position, filename, "image_too_large", f"The file has more than {most} bytes.")
            return
        if staged.sha256 in self._first_position:
            self._repeats.append((position, filename, staged.sha256))
            self._batch.drop(staged)
            return
        self._first_position[staged.sha256] = position
        self._waiting.append(_Waiting(position, filename, staged, self._decoder.check(staged.path)))
        if len(self._waiting) >= _IN_FLIGHT:
            self._settle(self._waiting.popleft())

    def _settle(self, waiting: _Waiting) -> None:
        checked = waiting.pending.result()
        if isinstance(checked, ImageRejected):
            self._reject(waiting.position, waiting.filename, checked.code, checked.detail)
            self._batch.drop(waiting.staged)
            return
        self._num_pixels += checked.width * checked.height
        if self._num_pixels > self._limits.max_total_pixels:
            raise InvalidInput(
                "pixel_budget_exceeded", f"Together the images have over {self._limits.max_total_pixels} pixels."
            )
        self._batch.keep(waiting.staged)
        self._accepted[waiting.position] = AcceptedImage(
            sha256=waiting.staged.sha256,
            filename=waiting.filename,
            format=checked.format,
            width=checked.width,
            height=checked.height,
            num_bytes=waiting.staged.num_bytes,
            warning=checked.warning,
        )

    def _reject(self, position: int, filename: str, code: str, detail: str) -> None:
        self._rejected[position] = RejectedImage(filename=filename, code=code, detail=detail)


def _why_no_image(head: bytes) -> tuple[str, str]:
    if not head:
        return "empty_file", "The file is empty."
    if is_archive(head):
        return "nested_archive", "An archive inside of an archive is not opened."
    return "unsupported_image_format", "Only JPEG, PNG and WEBP images are accepted."


def _read_head(stream: Stream) -> bytes:
    head = b""
    while len(head) < SNIFF_BYTES and (more := stream.read(SNIFF_BYTES - len(head))):
        head += more
    return head


class _Rejoined:
    """A stream whose first bytes were already read."""

    def __init__(self, head: bytes, rest: Stream) -> None:
        self._parts: Iterator[bytes] = iter((head,))
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        return next(self._parts, b"") or self._rest.read(size)
