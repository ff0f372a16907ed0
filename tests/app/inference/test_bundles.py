"""What is damaged is never served, whichever file of a bundle it is."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from app.exceptions import Unavailable
from app.inference.bundles import StoredBundles
from app.inference.predictor import BundleSource
from app.storage import BlobCorrupt, BlobMissing, BlobStore, make_storage
from must_core.backbone import load_base
from must_core.bundle import MANIFEST, WEIGHTS, load_bundle, save_bundle
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
from tests.support.disks import small_disk
from tests.support.tiny import CLASSES, make_base


@pytest.fixture
def storage(tmp_path: Path) -> BlobStore:
    return make_storage(str(tmp_path / "blobs"), tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path, storage: BlobStore) -> BundleSource:
    base = load_base(make_base(tmp_path / "base"))
    classes = [ClassSpec(c) for c in CLASSES]
    save_bundle(
        tmp_path / "bundle",
        Student.from_base(base, build_class_weights(base, classes, ["{}"])),
        visual_config=base.visual_config,
        preprocess=base.preprocess,
        classes=classes,
        templates=["{}"],
        provenance={},
    )
    return BundleSource(
        "v1", tuple((name, storage.put_file(tmp_path / "bundle" / name)) for name in (MANIFEST, WEIGHTS))
    )


def loads(bundles: StoredBundles, source: BundleSource) -> bool:
    with bundles.laid_out(source) as folder:
        bundle = load_bundle(folder)
    return bundle.class_names == tuple(CLASSES) and bool(bundle.classifier(torch.zeros(1, 3, 16, 16)).isfinite().all())


def nothing_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_a_sound_bundle_is_laid_out_again_and_again_and_nothing_stays(
    tmp_path: Path, storage: BlobStore, source: BundleSource
) -> None:
    bundles = StoredBundles(storage=storage, folder=tmp_path / "out")
    assert loads(bundles, source)
    assert loads(bundles, source)
    assert nothing_in(tmp_path / "out")


def all_at_once(bundles: StoredBundles, source: BundleSource) -> list[bool]:
    """Four that have it laid out at the same time, and load it only then."""
    everybody_has_it = threading.Barrier(4, timeout=60)

    def lay_out() -> bool:
        try:
            with bundles.laid_out(source) as folder:
                everybody_has_it.wait()
                return load_bundle(folder).class_names == tuple(CLASSES)
        except BaseException:
            everybody_has_it.abort()
            raise

    with ThreadPoolExecutor(4) as threads:
        return [future.result() for future in [threads.submit(lay_out) for _ in range(4)]]


def test_many_at_once_do_not_meet(tmp_path: Path, storage: BlobStore, source: BundleSource) -> None:
    assert all(all_at_once(StoredBundles(storage=storage, folder=tmp_path / "out"), source))
    assert nothing_in(tmp_path / "out")


def test_control_in_one_folder_for_all_they_meet(
    tmp_path: Path, storage: BlobStore, source: BundleSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("app.inference.bundles.staged", nullcontext)
    with pytest.raises((OSError, Unavailable, threading.BrokenBarrierError)):
        all_at_once(StoredBundles(storage=storage, folder=tmp_path / "out"), source)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_one_changed_byte_is_noticed(tmp_path: Path, storage: BlobStore, source: BundleSource, name: str) -> None:
    damage(storage.local_path(dict(source.files)[name]))
    with pytest.raises(BlobCorrupt), StoredBundles(storage=storage, folder=tmp_path / "out").laid_out(source):
        pytest.fail("it was handed out")
    assert nothing_in(tmp_path / "out")


def damage(blob: Path) -> None:
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])


def test_a_missing_blob_leaves_nothing_behind(tmp_path: Path, storage: BlobStore, source: BundleSource) -> None:
    storage.delete(dict(source.files)[WEIGHTS])
    with pytest.raises(BlobMissing), StoredBundles(storage=storage, folder=tmp_path / "out").laid_out(source):
        pytest.fail("it was handed out")
    assert nothing_in(tmp_path / "out")


def test_a_damaged_copy_of_a_sound_remote_blob_is_fetched_again(tmp_path: Path, source: BundleSource) -> None:
    remote = make_storage(f"memory://{uuid4()}", tmp_path / "copies")
    for name, _ in source.files:
        remote.put_file(tmp_path / "bundle" / name)
    bundles = StoredBundles(storage=remote, folder=tmp_path / "out")
    assert loads(bundles, source)
    weights = dict(source.files)[WEIGHTS]
    damage(remote.local_path(weights))
    remote.verify(weights)  # control: the remote's own bytes say nothing of the copy
    assert loads(bundles, source)
    damage(remote.local_path(weights))
    remote._fs.pipe_file(remote._remote(weights), b"damaged as well")  # type: ignore[attr-defined]
    with pytest.raises(BlobCorrupt):
        loads(bundles, source)


def test_a_full_disk_is_told(tmp_path: Path, storage: BlobStore, source: BundleSource) -> None:
    with small_disk(tmp_path / "small", megabytes=2) as disk:
        bundles = StoredBundles(storage=storage, folder=disk.path / "out")
        disk.fill()
        with pytest.raises(Unavailable) as told:
            loads(bundles, source)
        assert told.value.code == "storage_full"
        disk.free()
        assert loads(bundles, source)
        assert nothing_in(disk.path / "out")


def test_what_a_killed_process_left_goes_after_an_hour(
    tmp_path: Path, storage: BlobStore, source: BundleSource
) -> None:
    old, young = tmp_path / "out" / ".staged-old", tmp_path / "out" / ".staged-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"some")
    an_hour_ago = time.time() - 3601
    os.utime(old, (an_hour_ago, an_hour_ago))
    assert loads(StoredBundles(storage=storage, folder=tmp_path / "out"), source)
    assert list((tmp_path / "out").iterdir()) == [young]
