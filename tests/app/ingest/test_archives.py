"""Every rule of archives: what passes, and what is refused with which code."""

import io
import tarfile
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.exceptions import InvalidInput, ServiceError, UnsupportedMedia
from app.ingest.archives import sniff, walk
from app.ingest.unpacking import ArchiveLimits, Tally
from tests.support import archives as make

FILES = {"a.png": b"first" * 50, "folder/b.png": b"second", "folder/ü.png": b""}
LIMITS = ArchiveLimits(max_entries=5, max_unpacked_bytes=3_000_000)


def unpack(data: bytes, limits: ArchiveLimits = LIMITS, filename: str = "upload") -> tuple[dict[str, bytes], Tally]:
    file = io.BytesIO(data)
    kind = sniff(file, filename)
    assert kind is not None
    tally = Tally(limits)
    found = {}
    for member in walk(file, kind, tally):
        content = b""
        while chunk := member.stream.read(1000):
            content += chunk
        found[member.name] = content
    return found, tally


ZIP = make.zipped(FILES)
STORED = make.zipped(FILES, zipfile.ZIP_STORED)
TAR = make.tarred(FILES)
LONG = {"/".join(["folder" * 8] * 6) + "/image.png": b"x"}
SOUND = {
    "zip": (ZIP, FILES),
    "stored zip": (STORED, FILES),
    "zip with comment": (ZIP[:-2] + b"\x05\x00hello", FILES),
    "zip from a pipe": (make.zipped_to_a_pipe(FILES), FILES),
    "empty zip": (make.zipped({}), {}),
    "tar": (TAR, FILES),
    "ustar": (make.tarred(FILES, form=tarfile.USTAR_FORMAT), FILES),
    "gnu tar": (make.tarred(FILES, form=tarfile.GNU_FORMAT), FILES),
    "tar.gz": (make.tarred(FILES, compressed=True), FILES),
    "tar.gz in two members": (make.gzipped(TAR[:700]) + make.gzipped(TAR[700:]), FILES),
    "tar.gz with zeros behind": (make.gzipped(TAR) + b"\x00" * 1024, FILES),
    "long name, pax": (make.tarred(LONG), LONG),
    "long name, gnu": (make.tarred(LONG, form=tarfile.GNU_FORMAT), LONG),
    "name with ./": (make.tarred({"./a.png": b"x"}), {"./a.png": b"x"}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_archives(name: str) -> None:
    data, files = SOUND[name]
    assert unpack(data)[0] == files


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_left_behind_files_and_folders_are_counted(form: str) -> None:
    files = {"__MACOSX/._a.png": b"", "Thumbs.db": b"x", "x/.DS_Store": b"", "x/a.png": b"A"}
    data = make.zipped({"x/": b"", **files}) if form == "zip" else make.tarred(files, compressed=form == "tar.gz")
    found, tally = unpack(data)
    assert found == {"x/a.png": b"A"}
    assert tally.num_ignored == (4 if form == "zip" else 3)


BOMB = {"bomb": b"\x00" * 2_500_000}
NESTED = {"/".join("a" * 33): b""}
CUT_AT = STORED.index(b"first") + 20
EOCD = ZIP[-22:]
REFUSED = {
    # names
    "zip ..": (make.zipped({"../x": b""}), "archive_unsafe_path"),
    "zip .. inside": (make.zipped({"a/../../x": b""}), "archive_unsafe_path"),
    "zip ..\\": (make.zipped({"..\\x": b""}), "archive_unsafe_path"),
    "zip /abs": (make.zipped({"/abs": b""}), "archive_unsafe_path"),
    "zip C:": (make.zipped({"C:\\x": b""}), "archive_unsafe_path"),
    "zip depth": (make.zipped(NESTED), "archive_unsafe_path"),
    "zip long": (make.zipped({"ü" * 128: b""}), "archive_unsafe_path"),
    "tar ..": (make.tarred({"../x": b""}), "archive_unsafe_path"),
    "tar /abs": (make.tarred({"/abs": b""}), "archive_unsafe_path"),
    "tar depth": (make.tarred(NESTED), "archive_unsafe_path"),
    "tar long": (make.tarred({"a" * 256: b""}), "archive_unsafe_path"),
    "tar endless name": (make.tarred_as(b"L", size=2_000_000), "archive_unsafe_path"),
    "tar NUL": (make.tarred({"a": b""}).replace(b"a\0", b"\0\0", 1), "archive_corrupt"),  # checksum
    # kinds of entries
    "zip symlink": (make.zipped_as("x", make.LINK), "archive_unsupported_entry"),
    "zip fifo": (make.zipped_as("x", make.FIFO), "archive_unsupported_entry"),
    "tar symlink": (make.tarred_as(tarfile.SYMTYPE, linkname="/etc/passwd"), "archive_unsupported_entry"),
    "tar hardlink": (make.tarred_as(tarfile.LNKTYPE, linkname="a"), "archive_unsupported_entry"),
    "tar device": (make.tarred_as(tarfile.CHRTYPE), "archive_unsupported_entry"),
    "tar fifo": (make.tarred_as(tarfile.FIFOTYPE), "archive_unsupported_entry"),
    "tar sparse": (make.tarred_as(tarfile.GNUTYPE_SPARSE), "archive_unsupported_entry"),
    "tar unknown": (make.tarred_as(b"Z"), "archive_unsupported_entry"),
    # sizes
    "zip ratio": (make.zipped(BOMB), "archive_too_large_uncompressed"),
    "tar.gz ratio": (make.tarred(BOMB, compressed=True), "archive_too_large_uncompressed"),
    "tar.gz of headers": (make.gzipped(TAR[:-1024] + b"\0" * 2_000_000), "archive_too_large_uncompressed"),
    "zip total": (make.zipped({"a": b"x" * 3_100_000}, zipfile.ZIP_STORED), "archive_too_large_uncompressed"),
    "tar total": (make.tarred({"a": b"x" * 3_100_000}), "archive_too_large_uncompressed"),
    "zip entries": (make.zipped({str(n): b"" for n in range(6)}), "archive_too_many_entries"),
    "zip entries claimed": (make.patched(ZIP, len(ZIP) - 14, "<HH", 65000, 65000), "archive_corrupt"),
    "tar entries": (make.tarred({str(n): b"" for n in range(6)}), "archive_too_many_entries"),
    # damage
    "zip overlap": (make.overlapping(), "archive_corrupt"),
    "zip cut": (ZIP[:-30], "archive_corrupt"),
    "zip crc": (STORED[:CUT_AT] + b"X" + STORED[CUT_AT + 1 :], "archive_corrupt"),
    "zip deflate": (ZIP[:40] + b"\xff" * 4 + ZIP[44:], "archive_corrupt"),
    "zip size, both headers": (
        make.patched(make.patched(ZIP, make.central(ZIP) + 24, "<L", 3), 22, "<L", 3),
        "archive_corrupt",
    ),
    "tar cut in a member": (make.tarred({"a": b"x" * 2000})[:1500], "archive_corrupt"),
    "tar cut after a member": (TAR[:1024], "archive_corrupt"),
    "tar checksum": (TAR[:5] + b"!" + TAR[6:], "archive_corrupt"),
    "tar negative": (make.header_patched(TAR, 124, b"\xff" * 12), "archive_corrupt"),
    "tar.gz cut": (make.gzipped(TAR)[:-20], "archive_corrupt"),
    "tar.gz crc": (make.gzipped(TAR)[:-8] + b"\0" * 8, "archive_corrupt"),
    "tar.gz garbage behind": (make.gzipped(TAR) + b"garbage", "archive_corrupt"),
    # two meanings
    "zip with prefix": (b"#!/bin/sh\n" + ZIP, "archive_ambiguous"),
    "zip behind zip": (ZIP + STORED, "archive_ambiguous"),
    "zip end in comment": (ZIP[:-2] + b"\x16\x00" + EOCD, "archive_ambiguous"),
    "zip end in the way": (ZIP[:-2] + b"\x18\x00" + EOCD + b"zz", "archive_ambiguous"),
    "zip unlisted bytes": (
        make.patched(
            STORED[: make.central(STORED)] + b"??" + STORED[make.central(STORED) :],
            len(STORED) - 4,
            "<L",
            make.central(STORED) + 2,
        ),
        "archive_ambiguous",
    ),
    "zip local name": (ZIP.replace(b"a.png", b"z.png", 1), "archive_ambiguous"),
    "zip local size": (make.patched(ZIP, 22, "<L", 9), "archive_ambiguous"),
    "zip local method": (make.patched(ZIP, 8, "<H", 0), "archive_ambiguous"),
    "tar and zip": (TAR + ZIP, "archive_ambiguous"),
    "tar behind tar": (TAR + TAR, "archive_ambiguous"),
    # the rest
    "zip encrypted": (make.flagged(make.zipped({"a": b"x"}), 1), "archive_encrypted"),
    "zip bzip2": (make.zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "archive_unsupported_compression"),
    "zip lzma": (make.zipped({"a": b"x"}, zipfile.ZIP_LZMA), "archive_unsupported_compression"),
    "zip case": (make.zipped({"A.png": b"1", "a.PNG": b"2"}), "archive_duplicate_entry"),
    "zip nfc": (make.zipped({"\u00e9.png": b"1", "e\u0301.png": b"2"}), "archive_duplicate_entry"),
    "tar case": (make.tarred({"A.png": b"1", "./a.PNG": b"2"}), "archive_duplicate_entry"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_code(name: str) -> None:
    data, code = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        unpack(data)
    assert caught.value.code == code


def test_pax_size_that_other_readers_would_not_see() -> None:
    body = b"13 size=1024\n"
    header = make.tarred_as(b"x", size=len(body))[:512]
    with pytest.raises(InvalidInput) as caught:
        unpack(header + body.ljust(512, b"\0") + TAR)
    assert caught.value.code == "archive_ambiguous"


def test_limits_are_the_reason() -> None:
    """The bombs pass when the limits let them."""
    roomy = ArchiveLimits(max_ratio=10_000)
    for name in ("zip ratio", "tar.gz ratio", "zip total", "tar total", "zip entries", "tar entries"):
        assert unpack(REFUSED[name][0], roomy)[0]


@pytest.mark.parametrize("start", [b"Rar!\x1a\x07\x01\x00", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00", b"BZh9"])
def test_other_archives(start: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        unpack(start + b"\0" * 600)
    assert caught.value.code == "archive_unsupported_format"


def test_gzip_of_something_else() -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        unpack(make.gzipped(b"a,b\n" * 1000))
    assert caught.value.code == "archive_unsupported_format"


def test_image_with_a_zip_in_its_tail_is_an_image_unless_offered_as_zip() -> None:
    data = b"\xff\xd8\xff" + b"\0" * 600 + ZIP
    assert sniff(io.BytesIO(data), "photo.jpg") is None
    with pytest.raises(InvalidInput) as caught:
        sniff(io.BytesIO(data), "photos.zip")
    assert caught.value.code == "archive_ambiguous"


def test_zip64() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w", force_zip64=True) as f:
        f.write(b"content")
    assert unpack(out.getvalue())[0] == {"a.png": b"content"}


def test_members_that_nobody_reads_are_checked_all_the_same() -> None:
    file = io.BytesIO(REFUSED["zip crc"][0])
    kind = sniff(file, "x")
    assert kind is not None
    with pytest.raises(InvalidInput):
        list(walk(file, kind, Tally(LIMITS)))


def test_memory_does_not_grow_with_a_member() -> None:
    data = make.tarred({"a": b"\0" * 60_000_000}, compressed=True)
    roomy = ArchiveLimits(max_ratio=2000)
    tracemalloc.start()
    try:
        file = io.BytesIO(data)
        kind = sniff(file, "x")
        assert kind is not None
        for member in walk(file, kind, Tally(roomy)):
            while member.stream.read(1 << 16):
                pass
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(data=st.data(), which=st.sampled_from(["zip", "zip from a pipe", "tar", "tar.gz", "gnu tar"]))
def test_damage_is_refused_or_harmless(data: st.DataObject, which: str) -> None:
    """Whatever is changed: a refusal of ours, or exactly bytes of regular files within the limits."""
    broken = bytearray(SOUND[which][0])
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(len(broken) - 40, len(broken))) :]
    file = io.BytesIO(bytes(broken))
    code = "archive_"
    try:
        kind = sniff(file, "x")
        if kind is not None:
            for member in walk(file, kind, Tally(LIMITS)):
                while member.stream.read(1 << 16):
                    pass
    except ServiceError as e:
        code = e.code
    assert code.startswith("archive_")
