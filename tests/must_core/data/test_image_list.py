"""Many paths in little memory, in an order that depends on names alone."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from must_core.data.image_list import ImageList

PATHS = [
    Path("b/2.jpg"), Path("b/1.jpg"), Path("a/c/1.png"), Path("plain.webp"), Path("/top.jpg"), Path("/x/y/1.jpg"),
    Path("b/1.jpg"), Path("žluť/ř.jpeg"), Path(os.fsdecode(b"caf\xe9/\xff.jpg")), Path("line\nbreak/a b.jpg"),
]  # fmt: skip

NUM_PATHS = 1_300_000
PROMISED_MB = 300

MEASURE = """
import sys
from pathlib import Path
from must_core.data.image_list import ImageList

def resident_kb(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

kind, num_paths = sys.argv[1], int(sys.argv[2])
before = resident_kb("VmRSS")
paths = (Path(f"/data/train/n{i // 1300:08}/n{i // 1300:08}_{i}.JPEG") for i in range(num_paths))
held = ImageList.of(paths) if kind == "compact" else list(paths)
assert str(held[num_paths - 1]).endswith(f"_{num_paths - 1}.JPEG")
print((resident_kb("VmHWM") - before) / 1024)
"""


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def test_is_the_sequence_of_the_paths_it_was_made_of() -> None:
    images = ImageList.of(iter(PATHS))
    assert list(images) == PATHS
    assert len(images) == len(PATHS)
    assert [images[i] for i in range(-len(PATHS), len(PATHS))] == PATHS * 2
    assert Path("b/1.jpg") in images
    assert Path("b") not in images
    for wrong in (len(PATHS), -len(PATHS) - 1):
        with pytest.raises(IndexError):
            images[wrong]
    assert list(ImageList.of([])) == []
    assert ImageList.of(images) is images


@pytest.mark.parametrize(
    "part", [slice(None), slice(2, 7), slice(None, None, 3), slice(None, None, -1), slice(-2, None), slice(5, 2)]
)
def test_slices_are_lists_of_the_same_kind(part: slice) -> None:
    images = ImageList.of(PATHS)
    assert isinstance(images[part], ImageList)
    assert list(images[part]) == PATHS[part]
    assert images[part] == ImageList.of(PATHS[part])
    assert hash(images[part]) == hash(ImageList.of(PATHS[part]))


def test_lists_are_equal_when_their_paths_are() -> None:
    images = ImageList.of(PATHS)
    assert images.take([3, -1, 3]) == ImageList.of([PATHS[3], PATHS[-1], PATHS[3]])
    assert images != ImageList.of(PATHS[::-1])
    assert images != ImageList.of(PATHS[:-1])
    assert ImageList.of([Path("a/b.jpg")]) != ImageList.of([Path("c/b.jpg")])


def test_pickles_small() -> None:
    paths = [Path(f"/data/images/{i % 20:03}/{i:07}.jpg") for i in range(10_000)]
    pickled = pickle.dumps(ImageList.of(paths))
    assert list(pickle.loads(pickled)) == paths  # noqa: S301 - our own bytes
    assert len(pickled) < 25 * len(paths)  # a name of 11 bytes and 12 more


def test_finds_what_a_sorted_deep_search_finds(tmp_path: Path) -> None:
    tree(
        tmp_path / "images",
        "b.jpg", "b/1.JPG", "b/0/z.png", "b.d/a.jpeg", "a.webp", "B.png", "é.jpg", "z\U0001f600.jpg",
        "folder.jpg/x.jpg", "text.txt", ".jpg", "jpg", "a.jpg.gz", "dot.", ".hidden.png", ".git/o.png",
    )  # fmt: skip
    (tmp_path / "images" / "empty.png").mkdir()
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    expected = sorted(p for p in (tmp_path / "images").rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    assert len(expected) == 11
    assert list(ImageList.below(tmp_path / "images")) == expected


def test_relative_and_trailing_separators_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "2.jpg")
    monkeypatch.chdir(tmp_path)
    assert list(ImageList.below(Path())) == [Path("2.jpg"), Path("a/1.jpg")]
    assert list(ImageList.below(Path("a/"))) == [Path("a/1.jpg")]


def test_the_order_does_not_depend_on_how_files_came_to_be(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.jpg" for folder in ("x", "y", "x/y") for i in range(20)]
    forward = ImageList.below(tree(tmp_path / "forward", *names))
    backward = ImageList.below(tree(tmp_path / "backward", *reversed(names)))
    relative = [p.relative_to(tmp_path / "forward") for p in forward]
    assert relative == [p.relative_to(tmp_path / "backward") for p in backward]
    assert len(relative) == 60


@pytest.mark.timeout(20)
def test_links_that_lead_back_end(tmp_path: Path) -> None:
    tree(tmp_path / "images", "a/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "images" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "images" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert [p.name for p in ImageList.below(tmp_path / "images")] == ["1.jpg", "linked.jpg"]
    assert [p.name for p in ImageList.below(tmp_path / "link")] == ["1.jpg", "linked.jpg"]


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        os.close(os.open(name, os.O_CREAT))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (found,) = ImageList.below(tmp_path)
    assert os.fsencode(found) == name
    assert found.exists()


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ImageList.below(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "b'" not in str(caught.value)
    tree(tmp_path, "file")
    with pytest.raises(NotADirectoryError):
        ImageList.below(tmp_path / "file")


def test_digest_is_of_names_and_sizes_and_not_of_where_they_lie(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/22.jpg", "b/1.jpg"]
    here = ImageList.below(tree(tmp_path / "here", *names))
    there = ImageList.below(tree(tmp_path / "over" / "there", *names))
    digest = here.digest()
    assert there.digest() == digest
    assert here[:2].digest() != digest
    assert here[::-1].digest() != digest
    (tmp_path / "here" / "a" / "22.jpg").rename(tmp_path / "here" / "a" / "23.jpg")
    assert ImageList.below(tmp_path / "here").digest() != digest
    with (tmp_path / "over" / "there" / "b" / "1.jpg").open("ab") as file:
        file.write(b"!")
    assert there.digest() != digest
    with pytest.raises(FileNotFoundError):
        here.digest()


def test_digest_tells_folders_apart(tmp_path: Path) -> None:
    """Two layouts with the same file names: only the folder of one differs."""
    one = ImageList.below(tree(tmp_path / "one", "a/1.jpg", "b/2.jpg"))
    two = ImageList.below(tree(tmp_path / "two", "a/1.jpg", "c/2.jpg"))
    assert [p.name for p in one] == [p.name for p in two]
    assert one.digest() != two.digest()


def test_more_folders_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("must_core.data.image_list._FOLDERS_REMEMBERED", 3)
    paths = [Path(f"{i % 7}/{i}.jpg") for i in range(50)]
    assert list(ImageList.of(paths)) == paths


def growth_mb(kind: str, num_paths: int) -> float:
    """What a process of its own needs at most to build and hold that many paths, above what it started with."""
    command = [sys.executable, "-c", MEASURE, kind, str(num_paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout)


def test_a_million_paths_fit_the_promise() -> None:
    """The control: objects, of which fewer are made here to save time, would not."""
    assert growth_mb("compact", NUM_PATHS) < PROMISED_MB
    assert growth_mb("objects", NUM_PATHS // 6) * 6 > PROMISED_MB


def test_names_tell_folders_apart_and_can_be_printed() -> None:
    train = ImageList.of([Path("/data/train/red/1.png"), Path(os.fsdecode(b"/data/train/caf\xe9/1.png"))])
    assert [train.name(0), train.name(1)] == ["train/red/1.png", "train/caf\\xe9/1.png"]
    assert ImageList.of([Path("/data/test/1.png")]).name(0) == "test/1.png"
    apart = ImageList.of([Path("a/1.png"), Path("b/1.png"), Path("2.png")])
    assert [apart.name(i) for i in range(3)] == ["a/1.png", "b/1.png", "2.png"]
    assert ImageList.of([Path("/a/1.png"), Path("/2.png")]).name(1) == "/2.png"
