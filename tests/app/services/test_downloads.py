"""Kept exports: bounded, whole, and gone without harm."""

import asyncio
import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from app.classifiers.messages import ClassifierView
from app.exceptions import Unavailable
from app.files import entries
from app.inference.exports import Exporter, ExportFormat
from app.services.classifiers import ClassifierService
from app.services.downloads import Archive, DownloadService
from tests.support.disks import small_disk

NUM_BYTES = 100_000


class Classifiers:
    """Every id is a zero-shot classifier."""

    def get(self, classifier_id: str) -> ClassifierView:
        return ClassifierView(
            id=classifier_id,
            name=None,
            kind="zero_shot",
            base_model="tiny",
            classes=[{"name": "a", "prompts": []}, {"name": "b", "prompts": []}],
            templates=["{}"],
            job_id=None,
            files={},
            version="1",
            metrics={},
            unknown_below=None,
            created_at=datetime.now(UTC),
        )

    source_of = staticmethod(ClassifierService.source_of)


class Exports:
    """Exports at once, a file of zeros each, and counts."""

    def __init__(self) -> None:
        self.num = 0
        self.content = bytes(NUM_BYTES)

    def export(self, source: object, *, folder: Path, **_: Any) -> None:
        self.num += 1
        folder.mkdir()
        (folder / "weights").write_bytes(self.content)

    def close(self) -> None:
        pass


@contextmanager
def kept_in(folder: Path, exports: Exports, num_zips: int = 3) -> Iterator[Callable[[str], Archive]]:
    """Ask a service with room for so many."""
    service = DownloadService(
        classifiers=cast(ClassifierService, Classifiers()),
        exporter=cast(Exporter, exports),
        folder=folder,
        max_bytes=num_zips * (NUM_BYTES + 1000),
    )
    try:
        yield lambda classifier_id: asyncio.run(service.archive(classifier_id, ExportFormat.BUNDLE))
    finally:
        service.close()


def whole(archive: Archive) -> bool:
    with archive.file as file:
        content = zipfile.ZipFile(io.BytesIO(file.read()))
    return content.testzip() is None and len(content.namelist()) == 1


def ids_in(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in entries(folder)}


def test_the_one_asked_for_longest_ago_goes(tmp_path: Path) -> None:
    exports = Exports()
    with kept_in(tmp_path, exports) as ask:
        for classifier_id in ("a", "b", "c", "a", "d"):
            assert whole(ask(classifier_id))
        assert ids_in(tmp_path) == {"a", "c", "d"}
        assert exports.num == 4
        assert whole(ask("b"))
        assert ids_in(tmp_path) == {"a", "b", "d"}


def test_one_that_goes_is_read_to_its_end(tmp_path: Path) -> None:
    with kept_in(tmp_path, Exports(), num_zips=1) as ask:
        first = ask("a")
        assert whole(ask("b"))
        assert ids_in(tmp_path) == {"b"}
        assert whole(first)


def test_room_is_made_beside_another_process_that_makes_room(tmp_path: Path) -> None:
    (tmp_path / "gone-bundle.zip").symlink_to(tmp_path / "nowhere")  # listed, and not there
    with kept_in(tmp_path, Exports(), num_zips=1) as ask:
        assert whole(ask("a"))


def test_the_tag_is_that_of_the_contents(tmp_path: Path) -> None:
    exports = Exports()
    with kept_in(tmp_path, exports, num_zips=1) as ask:
        tag = ask("a").etag
        assert ask("a").etag == tag
        ask("b")
        assert ask("a").etag == tag, "made anew, with the same contents"
        ask("b")
        exports.content = bytes(NUM_BYTES - 1) + b"!"
        assert ask("a").etag != tag
        assert exports.num == 5


def test_half_a_file_is_made_anew(tmp_path: Path) -> None:
    exports = Exports()
    with kept_in(tmp_path, exports) as ask:
        assert whole(ask("a"))
        (kept,) = entries(tmp_path)
        kept.write_bytes(kept.read_bytes()[: NUM_BYTES // 2])
        assert whole(ask("a"))
        assert exports.num == 2


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    exports = Exports()
    with small_disk(tmp_path / "small", megabytes=1) as disk, kept_in(disk.path / "zips", exports) as ask:
        disk.fill()
        with pytest.raises(Unavailable) as told:
            ask("a")
        assert told.value.code == "storage_full"
        assert entries(disk.path / "zips") == []
        disk.free()
        exports.content = bytes(NUM_BYTES * 6)  # the export fits, and its zip does not
        with pytest.raises(Unavailable) as told:
            ask("a")
        assert told.value.code == "storage_full"
        exports.content = bytes(NUM_BYTES)
        assert whole(ask("a"))
        assert ids_in(disk.path / "zips") == {"a"}
