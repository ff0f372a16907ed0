import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from must_core.data.image_list import ImageList
from must_core.data.labels import Labels
from must_core.data.loader import find_images
from must_core.errors import InvalidConfig

NAMES = ["apple pie", "Baklava", "ramen"]


def tree(root: Path, *names: str) -> ImageList:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return find_images(root)


def csv_of(folder: Path, text: str | bytes) -> Path:
    file = folder / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def complaint(file: Path, paths: ImageList, root: Path, names: list[str] = NAMES) -> str:
    with pytest.raises(InvalidConfig) as caught:
        Labels.from_csv(file, paths, names, root=root)
    assert caught.value.param == "labels"
    return f"{caught.value.code}: {caught.value.message}"


def test_folders_are_named_like_classes(tmp_path: Path) -> None:
    paths = tree(tmp_path, "apple_pie/1.jpg", "baklava/1.jpg", "baklava/2.jpg", "ramen/deep/ramen/1.jpg", "loose.jpg")
    labels = Labels.from_folders(paths, NAMES, root=tmp_path)
    assert labels.labels_N.dtype == torch.int64
    by_name = dict(zip((p.relative_to(tmp_path).as_posix() for p in paths), labels.labels_N.tolist(), strict=True))
    assert by_name == {
        "apple_pie/1.jpg": 0, "baklava/1.jpg": 1, "baklava/2.jpg": 1, "ramen/deep/ramen/1.jpg": 2, "loose.jpg": -1
    }  # fmt: skip
    assert labels.num_labelled == 4


def test_an_exact_name_goes_before_a_loose_one(tmp_path: Path) -> None:
    paths = tree(tmp_path, "a b/1.jpg", "a_b/1.jpg")
    assert Labels.from_folders(paths, ["a_b", "a b"], root=tmp_path).labels_N.tolist() == [1, 0]


def test_a_folder_of_no_class_is_named(tmp_path: Path) -> None:
    paths = tree(tmp_path, "ramen/1.jpg", "n01440764/1.jpg")
    with pytest.raises(InvalidConfig, match="'n01440764'") as caught:
        Labels.from_folders(paths, NAMES, root=tmp_path)
    assert caught.value.param == "labels"


def test_the_working_directory_may_be_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "ramen/1.jpg", "2.jpg")
    monkeypatch.chdir(tmp_path)
    paths = [Path("2.jpg"), Path("ramen/1.jpg")]
    assert Labels.from_folders(paths, NAMES, root=Path()).labels_N.tolist() == [-1, 2]
    file = csv_of(tmp_path, "filename,label\nramen/1.jpg,0\n")
    assert Labels.from_csv(file, paths, NAMES, root=Path()).labels_N.tolist() == [-1, 0]


def test_a_csv_is_aligned_to_the_images_whatever_its_order(tmp_path: Path) -> None:
    paths = tree(tmp_path / "images", "a.jpg", "b.jpg", "c/a.jpg", "d.jpg", "e.jpg")
    text = (
        "\ufeffcamera,label,filename\r\n7,ramen,c/a.jpg\r\n7,2,a.jpg\r\n\r\n"
        '7,"APPLE PIE",./b.jpg\r\n7,,e.jpg\r\n7,2,a.jpg\r\n'
    )
    labels = Labels.from_csv(csv_of(tmp_path, text), paths, NAMES, root=tmp_path / "images")
    assert labels.labels_N.tolist() == [2, 0, 2, -1, -1]
    assert labels.num_labelled == 3


def test_names_go_before_numbers(tmp_path: Path) -> None:
    paths = tree(tmp_path / "images", "a.jpg", "b.jpg")
    file = csv_of(tmp_path, "filename,label\na.jpg,0\nb.jpg,2\n")
    assert Labels.from_csv(file, paths, ["2", "1", "0"], root=tmp_path / "images").labels_N.tolist() == [2, 0]
    assert Labels.from_csv(file, paths, NAMES, root=tmp_path / "images").labels_N.tolist() == [0, 2]


@pytest.mark.parametrize("label", ["3", "-1", "1.0", "１", "cake", "99999999999999999999"])
def test_what_is_no_class_is_told_with_its_line(tmp_path: Path, label: str) -> None:
    paths = tree(tmp_path / "images", "a.jpg", "b.jpg")
    file = csv_of(tmp_path, f"filename,label\na.jpg,1\nb.jpg,{label}\n")
    told = complaint(file, paths, tmp_path / "images")
    assert told.startswith("invalid_value")
    assert "line 3" in told
    assert label in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "filename and label"),
        (b"a.jpg,1\n", "filename and label"),
        (b"filename,label\na.jpg\n", "too few columns"),
        (b'filename,label\n"a.jpg,1\n', "not CSV"),
        (b"filename,label\na.jpg,\xff\n", "invalid_encoding"),
        ("filename,label\na.jpg,1\n".encode("utf-16"), "invalid_encoding"),
        (b"filename,label\na.jpg,1\na.jpg,2\n", "a second time"),
        (b"filename,label\nA.jpg,1\n", "none of the images"),
        (b"filename,label\n../images/a.jpg,1\n", "none of the images"),
        (b"filename,label\na.jpg," + b"x" * 200_000 + b"\n", "not CSV"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, text: bytes, told: str) -> None:
    paths = tree(tmp_path / "images", "a.jpg")
    assert told in complaint(csv_of(tmp_path, text), paths, tmp_path / "images")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    paths = tree(tmp_path / "images", "a.jpg")
    assert "cannot be read" in complaint(tmp_path / "labels.csv", paths, tmp_path / "images")
    assert "cannot be read" in complaint(tmp_path, paths, tmp_path / "images")


def test_a_csv_for_more_images_than_these_may_be_used_on_purpose(tmp_path: Path) -> None:
    paths = tree(tmp_path / "images", "a.jpg")
    file = csv_of(tmp_path, "filename,label\nz.jpg,0\na.jpg,1\n")
    assert "'z.jpg'" in complaint(file, paths, tmp_path / "images")
    found = Labels.from_csv(file, paths, NAMES, root=tmp_path / "images", ignore_other_files=True)
    assert found.labels_N.tolist() == [1]


def test_equal_hashes_are_told_apart_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("must_core.data.labels.hash", lambda _name: 7, raising=False)
    paths = tree(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    file = csv_of(tmp_path, "filename,label\nc.jpg,2\na.jpg,0\n")
    assert Labels.from_csv(file, paths, NAMES, root=tmp_path / "images").labels_N.tolist() == [0, -1, 2]
    assert "none of the images" in complaint(csv_of(tmp_path, "filename,label\nd.jpg,2\n"), paths, tmp_path / "images")


def test_names_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/\xe9.jpg")).touch()
    paths = tree(tmp_path / "images", "a.jpg")
    file = csv_of(tmp_path, "filename,label\na.jpg,1\n")
    assert sorted(Labels.from_csv(file, paths, NAMES, root=tmp_path / "images").labels_N.tolist()) == [-1, 1]


def test_no_object_is_kept_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_images = 20_000
    monkeypatch.setattr("must_core.data.labels._ROWS_AT_ONCE", 500)
    root = Path("/data/images")
    paths = ImageList.of(root / f"{i % 100:03}/{i:08}.jpg" for i in range(num_images))
    lines = "".join(f"{i % 100:03}/{i:08}.jpg,{i % 3}\n" for i in reversed(range(num_images)))
    file = csv_of(tmp_path, "filename,label\n" + lines)
    found: list[torch.Tensor] = []
    peak = peak_bytes(lambda: found.append(Labels.from_csv(file, paths, NAMES, root=root).labels_N))
    assert torch.equal(found[0], torch.arange(num_images) % 3)
    assert peak < peak_bytes(lambda: {str(path): 0 for path in paths}) / 2


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that Python's objects took during a call; tensors are not counted.

    Whatever other threads of the test process happen to do in the meantime is counted with it: the least of three.
    """
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
