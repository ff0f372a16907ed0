"""Uploads become stored blobs and a report, or nothing at all."""

import hashlib
import io
from pathlib import Path

import pytest

from app.exceptions import InvalidInput, Unavailable
from app.ingest.decoding import DecoderPool
from app.ingest.ingest import IngestLimits, Ingestor
from app.ingest.manifest import IngestReport
from app.ingest.unpacking import ArchiveLimits
from app.ingest.uploads import Upload
from app.storage import BlobStore, LocalBlobStore
from tests.support import archives as make
from tests.support.images import many_scans, sound

LIMITS = IngestLimits(
    archive=ArchiveLimits(max_entries=100, max_unpacked_bytes=10_000_000),
    max_image_bytes=100_000,
    max_total_pixels=10_000,
)


@pytest.fixture
def storage(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def ingestor(storage: BlobStore, decoder: DecoderPool) -> Ingestor:
    return Ingestor(storage=storage, decoder=decoder, limits=LIMITS)


def uploads(**files: bytes) -> list[Upload]:
    return [Upload(name, io.BytesIO(content)) for name, content in files.items()]


def rejections(report: IngestReport) -> dict[str, str]:
    return {file.filename: file.code for file in report.rejected}


A, B, C = (sound(n, kind) for n, kind in enumerate(("PNG", "JPEG", "WEBP")))
MIXED = {
    "a.png": A,
    "b/b.jpg": B,
    "README.txt": b"hello",
    "labels.csv": b"a,b\n",
    "again.png": A,
    "inner.zip": make.zipped({"x": b"y"}),
    "cut.png": A[:60],
    "cut-again.png": A[:60],
    "scans.jpg": many_scans(101),
    "empty.png": b"",
    "large.png": A + b"\0" * 100_000,
    "Thumbs.db": b"x",
    "c.webp": C,
}
REJECTED = {
    "README.txt": "unsupported_image_format",
    "labels.csv": "unsupported_image_format",
    "inner.zip": "nested_archive",
    "cut.png": "image_corrupt",
    "cut-again.png": "image_corrupt",
    "scans.jpg": "image_too_complex",
    "empty.png": "empty_file",
    "large.png": "image_too_large",
}


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "files"])
def test_mixed_upload(form: str, ingestor: Ingestor, storage: BlobStore) -> None:
    if form == "files":
        given = uploads(**{name: content for name, content in MIXED.items() if name != "inner.zip"})
    elif form == "zip":
        given = uploads(upload=make.zipped(MIXED))
    else:
        given = uploads(upload=make.tarred(MIXED, compressed=form == "tar.gz"))
    report = ingestor.ingest(given)
    assert [(i.filename, i.format, i.width, i.height) for i in report.images] == [
        ("a.png", "PNG", 16, 12),
        ("b/b.jpg", "JPEG", 16, 12),
        ("c.webp", "WEBP", 16, 12),
    ]
    expected = dict(REJECTED)
    if form == "files":  # an archive among files is opened, and nothing is passed over
        del expected["inner.zip"]
        expected["Thumbs.db"] = "unsupported_image_format"
    assert rejections(report) == expected
    assert list(rejections(report)) == [name for name in MIXED if name in expected]  # in the order of the upload
    assert (report.num_duplicates, report.num_ignored) == (1, 0 if form == "files" else 1)
    assert report.total_bytes == len(A) + len(B) + len(C)
    assert [i.sha256 for i in report.images] == [hashlib.sha256(x).hexdigest() for x in (A, B, C)]
    assert {sha256 for sha256, _ in storage.stored()} == {i.sha256 for i in report.images}
    assert storage.read(report.images[0].sha256) == A


REFUSED = {
    "zero bytes": (uploads(a=b""), "empty_file"),
    "text": (uploads(a=b"hello"), "no_usable_images"),
    "zip of text": (uploads(a=make.zipped({"a.txt": b"x"})), "no_usable_images"),
    "empty zip": (uploads(a=make.zipped({})), "no_usable_images"),
    "the same again": (uploads(a=A, b=A, c=b"text"), "too_few_unique_images"),
    "1000 the same": (uploads(a=make.zipped({f"{n}.png": A for n in range(99)})), "too_few_unique_images"),
    "pixels": (uploads(**{str(n): sound(n, size=(50, 50)) for n in range(5)}), "pixel_budget_exceeded"),
    "bad at the end": (
        uploads(a=make.tarred({"a.png": A, "b.png": B, "../c.png": C})),
        "archive_unsafe_path",
    ),
    "zip with zip behind": (uploads(a=make.zipped({"a.png": A}) + make.zipped({"b.png": B})), "archive_ambiguous"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_uploads_leave_nothing(name: str, ingestor: Ingestor, storage: BlobStore, tmp_path: Path) -> None:
    given, code = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        ingestor.ingest(given)
    assert caught.value.code == code
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_one_image_and_two_archives_are_fine(ingestor: Ingestor) -> None:
    assert len(ingestor.ingest(uploads(a=A)).images) == 1
    both = ingestor.ingest(uploads(a=make.zipped({"a.png": A}), b=make.tarred({"b.png": B}), c=C))
    assert len(both.images) == 3
    assert ingestor.ingest(uploads(a=A, b=A), min_unique=1).num_duplicates == 1


def test_entries_are_counted_over_all_archives(ingestor: Ingestor) -> None:
    archive = make.zipped({str(n): b"" for n in range(60)})
    with pytest.raises(InvalidInput) as caught:
        ingestor.ingest(uploads(a=archive, b=archive))
    assert caught.value.code == "archive_too_many_entries"


def test_full_disk_leaves_nothing(ingestor: Ingestor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.storage.sync", full)
    with pytest.raises(Unavailable) as caught:
        ingestor.ingest(uploads(a=A, b=B))
    assert caught.value.code == "storage_full"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
