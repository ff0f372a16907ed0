"""The cache gives what the files give, is whole or absent, and says so when it is not what was written."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from must_core.backbone import Preprocess
from must_core.config import AdaptConfig
from must_core.data import packed
from must_core.data.augment import Views
from must_core.data.image_list import ImageList
from must_core.data.images import decode_rgb
from must_core.data.loader import ImageSource, evaluation_batches, training_batches
from must_core.data.packed import INDEX, MANIFEST, PIXELS, PackedImages, pack, packed_bytes, packing
from must_core.errors import CorruptArtifact, InvalidConfig, UnreadableImage
from tests.support.images import encoded, many_scans, sound
from tests.support.tiny import make_images

PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", "shortest", 0)
VIEWS = Views(PREPROCESS, AdaptConfig())


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Files of every kind and shape, one of them to be turned."""
    paths = make_images(tmp_path / "images", 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "photo.jpg": sound(1, "JPEG", (64, 40)),
        "turned.jpg": sound(2, "JPEG", (33, 57), exif=exif),
        "many-scans.jpg": many_scans(3),
        "lossless.webp": sound(3, "WEBP", (31, 17), lossless=True),
        "clear.png": encoded(Image.new("RGBA", (19, 23), (200, 10, 30, 40))),
        "narrow.png": sound(4, "PNG", (8, 90)),
    }
    for name, content in files.items():
        paths.append(tmp_path / "images" / name)
        paths[-1].write_bytes(content)
    return paths


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "images")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_gives_the_decoders_pixels(paths: list[Path], tmp_path: Path, num_workers: int) -> None:
    images = pack(paths, tmp_path / "packed", num_workers=num_workers)
    assert isinstance(images, ImageSource)
    assert len(images) == len(paths)
    assert (images.digest, images.max_short_side) == (ImageList.of(paths).digest(), None)
    for index, path in enumerate(paths):
        image, expected = images.image(index), decode_rgb(path).image
        assert (image.mode, image.size, image.info) == (expected.mode, expected.size, expected.info)
        assert image.tobytes() == expected.tobytes()
    assert images.image(paths.index(tmp_path / "images" / "turned.jpg")).size == (57, 33)
    assert leftovers(tmp_path) == ["packed"]


def test_batches_are_the_same_with_and_without_the_cache(paths: list[Path], tmp_path: Path) -> None:
    """The control: pixels that were shrunk make other views."""

    def batches(images: "list[Path] | ImageSource", num_workers: int = 0) -> list[torch.Tensor]:
        training = training_batches(images, VIEWS, batch_size=4, epochs=2, seed=5, num_workers=num_workers)
        evaluation = evaluation_batches(images, PREPROCESS, batch_size=4, num_workers=num_workers)
        return [*(view for pair in training for view in pair), *evaluation]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return len(a) == len(b) and all(map(torch.equal, a, b))

    whole = pack(paths, tmp_path / "whole")
    shrunk = pack(paths, tmp_path / "shrunk", max_short_side=17)
    expected = batches(paths)
    assert same(batches(whole), expected)
    assert same(batches(whole, num_workers=2), expected)
    assert same(batches(pickle.loads(pickle.dumps(whole))), expected)  # noqa: S301 - our own bytes
    assert not same(batches(shrunk), expected)


def test_is_sent_as_the_name_of_its_folder(paths: list[Path], tmp_path: Path) -> None:
    images = pack(paths, tmp_path / "packed")
    assert len(pickle.dumps(images)) < 500 < (tmp_path / "packed" / PIXELS).stat().st_size


def test_a_limit_shrinks_larger_images_alone(paths: list[Path], tmp_path: Path) -> None:
    images = pack(paths, tmp_path / "packed", max_short_side=20)
    sizes = {path.name: images.image(index).size for index, path in enumerate(paths)}
    assert sizes["photo.jpg"] == (32, 20)
    assert sizes["turned.jpg"] == (35, 20)
    assert sizes["narrow.png"] == (8, 90)
    assert sizes["0000.png"] == (20, 20)
    assert images.image(0).tobytes() == decode_rgb(paths[0]).image.tobytes()
    assert images.max_short_side == 20


@pytest.mark.parametrize("max_short_side", [None, 20])
def test_the_size_is_known_beforehand(paths: list[Path], tmp_path: Path, max_short_side: int | None) -> None:
    expected = packed_bytes(paths, max_short_side=max_short_side)
    pack(paths, tmp_path / "packed", max_short_side=max_short_side)
    assert (tmp_path / "packed" / PIXELS).stat().st_size == expected


def test_the_size_of_many_is_estimated_from_some(tmp_path: Path) -> None:
    paths = make_images(tmp_path, 30)
    for path in paths[1::3]:
        path.write_bytes(b"not looked at")
    assert packed_bytes(paths, look_at_most=10) == 30 * 20 * 20 * 3
    with pytest.raises(UnreadableImage, match=rf"^{tmp_path.name}/0001\.png: "):
        packed_bytes(paths)
    assert packed_bytes([]) == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named_and_nothing_is_left(paths: list[Path], tmp_path: Path, num_workers: int) -> None:
    damaged = tmp_path / "images" / os.fsdecode(b"caf\xe9.png")
    damaged.write_bytes(paths[0].read_bytes()[:60])
    with pytest.raises(UnreadableImage) as caught:
        pack([*paths, damaged], tmp_path / "packed", num_workers=num_workers)
    assert caught.value.message == "images/caf\\xe9.png: The image cannot be decoded. (image_corrupt)"
    assert leftovers(tmp_path) == []


def test_progress_is_told_and_stopping_leaves_nothing(paths: list[Path], tmp_path: Path) -> None:
    work = packing(paths, tmp_path / "packed", num_workers=1)
    assert [next(work) for _ in range(3)] == [1, 2, 3]
    assert leftovers(tmp_path) == [".packed.tmp"]
    work.close()
    assert leftovers(tmp_path) == []


def test_what_a_killed_run_left_is_thrown_away(paths: list[Path], tmp_path: Path) -> None:
    staged = tmp_path / ".packed.tmp"
    staged.mkdir()
    (staged / PIXELS).write_bytes(b"half of it")
    (staged / "foreign").write_bytes(b"")
    images = pack(paths, tmp_path / "packed")
    assert leftovers(tmp_path) == ["packed"]
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == [INDEX, MANIFEST, PIXELS]
    assert images.image(0).tobytes() == decode_rgb(paths[0]).image.tobytes()


def test_is_made_once(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packed"
    assert list(packing(paths, folder)) == list(range(1, len(paths) + 1))
    assert list(packing(paths, folder)) == []
    assert list(packing(paths, folder, max_short_side=9)) != []
    assert PackedImages(folder).max_short_side == 9
    assert list(packing(paths[1:], folder, max_short_side=9)) != []
    assert len(PackedImages(folder)) == len(paths) - 1
    with (folder / PIXELS).open("ab") as file:
        file.write(b"!")
    assert list(packing(paths[1:], folder, max_short_side=9)) != []
    assert len(PackedImages(folder)) == len(paths) - 1
    monkeypatch.setattr(packed, "_FORMAT", "another")
    assert list(packing(paths[1:], folder, max_short_side=9)) != []


def test_nothing_but_a_cache_is_replaced(paths: list[Path], tmp_path: Path) -> None:
    for names in ([], ["holiday.jpg"], [MANIFEST], [MANIFEST, PIXELS, "holiday.jpg"]):
        folder = tmp_path / "-".join(["kept", *names])
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            pack(paths, folder)
        assert sorted(p.name for p in folder.iterdir()) == sorted(names)


def cut_pixels(folder: Path) -> None:
    with (folder / PIXELS).open("rb+") as file:
        file.truncate(1000)


def empty_pixels(folder: Path) -> None:
    (folder / PIXELS).write_bytes(b"")


def change_index(folder: Path) -> None:
    index = np.load(folder / INDEX)
    index["width"][3] += 1
    np.save(folder / INDEX, index)


def change_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


DAMAGES = {
    "pixels cut": cut_pixels,
    "pixels empty": empty_pixels,
    "pixels gone": lambda folder: (folder / PIXELS).unlink(),
    "index changed": change_index,
    "index gone": lambda folder: (folder / INDEX).unlink(),
    "manifest gone": lambda folder: (folder / MANIFEST).unlink(),
    "manifest cut": lambda folder: (folder / MANIFEST).write_text('{"format": '),
    "manifest of nothing": lambda folder: (folder / MANIFEST).write_text("[]"),
    "other count": lambda folder: change_manifest(folder, count=3),
    "other format": lambda folder: change_manifest(folder, format="must_core packed images 0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_on_opening(paths: list[Path], tmp_path: Path, damage: str) -> None:
    pack(paths, tmp_path / "packed")
    assert len(PackedImages(tmp_path / "packed")) == len(paths)
    DAMAGES[damage](tmp_path / "packed")
    with pytest.raises(CorruptArtifact):
        PackedImages(tmp_path / "packed")


def test_an_index_holds_no_objects(paths: list[Path], tmp_path: Path) -> None:
    pack(paths, tmp_path / "packed")
    index = np.load(tmp_path / "packed" / INDEX, allow_pickle=False)
    assert index.dtype.itemsize * len(paths) == 16 * len(paths)


def test_wrong_input_is_refused(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        pack([], tmp_path / "packed")
    assert caught.value.code == "no_usable_images"
    with pytest.raises(InvalidConfig):
        pack(paths, tmp_path / "packed", max_short_side=0)
    with pytest.raises(FileNotFoundError):
        pack([tmp_path / "gone.jpg"], tmp_path / "packed")
    assert leftovers(tmp_path) == []
