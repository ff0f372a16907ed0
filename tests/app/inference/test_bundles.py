"""What is damaged is never served, whichever file of a bundle it is."""

from pathlib import Path

import pytest

from app.inference.bundles import StoredBundles
from app.inference.predictor import BundleSource
from app.storage import BlobCorrupt, BlobMissing, BlobStore, make_storage
from must_core.backbone import load_base
from must_core.bundle import MANIFEST, WEIGHTS, load_bundle, save_bundle
from must_core.student import Student
from must_core.text.prompts import ClassSpec, build_class_weights
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


def test_a_sound_bundle_is_laid_out_again_and_again(tmp_path: Path, storage: BlobStore, source: BundleSource) -> None:
    bundles = StoredBundles(storage=storage, folder=tmp_path / "out")
    for _ in range(2):
        assert load_bundle(bundles.fetch(source)).class_names == tuple(CLASSES)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["v1"]


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_one_changed_byte_is_noticed(tmp_path: Path, storage: BlobStore, source: BundleSource, name: str) -> None:
    blob = storage.local_path(dict(source.files)[name])
    content = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(content.replace(b"red", b"RED", 1) if name == MANIFEST else content[:-1] + b"\x7f")
    with pytest.raises(BlobCorrupt):
        StoredBundles(storage=storage, folder=tmp_path / "out").fetch(source)
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_blob_leaves_nothing_behind(tmp_path: Path, storage: BlobStore, source: BundleSource) -> None:
    storage.delete(dict(source.files)[WEIGHTS])
    with pytest.raises(BlobMissing):
        StoredBundles(storage=storage, folder=tmp_path / "out").fetch(source)
    assert not list((tmp_path / "out").iterdir())
