"""A request's bytes: one handle, many streams."""

import io
import zipfile
from pathlib import Path

import pytest

from app.ingest.uploads import Spool
from tests.support.archives import zipped


def test_parts_are_files_of_their_own(tmp_path: Path) -> None:
    archive = zipped({"a": b"x" * 1000})
    spool = Spool(tmp_path / "tmp")
    spool.append(b"first")
    spool.append(archive)
    first, second = spool.part(0, 5), spool.part(5, len(archive))
    assert first.read(2) == b"fi"
    assert zipfile.ZipFile(second).read("a") == b"x" * 1000
    assert first.read() == b"rst"
    assert first.read() == b""
    assert (first.seek(-2, io.SEEK_END), first.read()) == (3, b"st")
    assert (first.seek(99), first.read()) == (99, b"")
    assert list((tmp_path / "tmp").iterdir()) == []  # it has no name
    spool.close()
    with pytest.raises(ValueError, match="closed"):
        second.read()
