"""Paths of many images in little memory: a million of them cost some forty megabytes.

File names lie one behind the other in one object, each folder's name is kept once, and a `Path` is made when it is
asked for. With an object for each path, a million cost ten times that, and once more in every forked loader process:
counting references to an object writes to its page. Names are the file system's bytes: they need not be UTF-8.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""What an image file's name ends in, in small or capital letters."""

_SUFFIXES = frozenset(map(os.fsencode, IMAGE_SUFFIXES))
_FOLDERS_REMEMBERED = 1 << 16


class ImageList(Sequence[Path]):
    """An immutable sequence of paths, compact in memory and when pickled. Slices are lists of the same kind."""

    __slots__ = ("_folder_ends", "_folder_of", "_folders", "_name_ends", "_names")

    def __init__(
        self,
        folders: bytes,
        folder_ends: NDArray[np.uint64],
        folder_of: NDArray[np.uint32],
        names: bytes,
        name_ends: NDArray[np.uint64],
    ) -> None:
        """Take the parts as they are; `of` and `below` are how lists are made."""
        self._folders = folders  # each with its final separator
        self._folder_ends = folder_ends
        self._folder_of = folder_of
        self._names = names
        self._name_ends = name_ends

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "ImageList":
        """Keep these paths in this order; an `ImageList` is returned as it is."""
        if isinstance(paths, cls):
            return paths
        return cls._of_encoded(map(os.fsencode, paths))

    @classmethod
    def below(cls, folder: Path) -> "ImageList":
        """Find the image files below a folder, by `IMAGE_SUFFIXES`; nothing is opened.

        Each folder's entries come in the order of their names' bytes, files and folders among each other: the order
        is that of the sorted paths and does not depend on the file system. A link to a file counts as a file, a link
        to a folder is not followed. Raises `OSError` for a folder that cannot be listed: leaving its images out in
        silence would be worse.
        """
        try:
            return cls._of_encoded(_image_files(os.path.join(os.fsencode(folder), b"")))  # noqa: PTH118 - bytes
        except OSError as e:
            raise OSError(e.errno, e.strerror, os.fsdecode(e.filename)) from e

    @classmethod
    def _of_encoded(cls, paths: Iterable[bytes]) -> "ImageList":
        folders, names = bytearray(), bytearray()
        folder_ends, name_ends, folder_of = array("Q", [0]), array("Q", [0]), array("I")
        known: dict[bytes, int] = {}
        for path in paths:
            start = path.rfind(b"/") + 1
            folder = path[:start]
            number = known.get(folder)
            if number is None:
                if len(known) == _FOLDERS_REMEMBERED:
                    known.clear()  # where every image has a folder of its own, this would outgrow all else
                number = known[folder] = len(folder_ends) - 1
                folders += folder
                folder_ends.append(len(folders))
            folder_of.append(number)
            names += path[start:]
            name_ends.append(len(names))
        return cls(
            bytes(folders),
            np.array(folder_ends, dtype=np.uint64),
            np.array(folder_of, dtype=np.uint32),
            bytes(names),
            np.array(name_ends, dtype=np.uint64),
        )

    def take(self, indices: Iterable[int]) -> "ImageList":
        """The paths at these positions, in this order."""
        return self._of_encoded(map(self._encoded, indices))

    def digest(self) -> str:
        """Hex sha256 of names and file sizes, in order; names count from the folder that all images share.

        So a folder may be moved. Reads no file's content. Raises `OSError` for a file that is not there.
        """
        start = len(self._common_folder())
        total = hashlib.sha256()
        for path in map(self._encoded, range(len(self))):
            total.update(b"%b\0%d\0" % (path[start:], os.stat(path).st_size))  # noqa: PTH116 - bytes
        return total.hexdigest()

    def name(self, index: int) -> str:
        """A path as it can be written anywhere: from the folder on that all images share, which is named too.

        Bytes that are not UTF-8 are written as ``\\xe9``.
        """
        start = self._common_folder().rstrip(b"/").rfind(b"/") + 1
        return self._encoded(index)[start:].decode("utf-8", "backslashreplace")

    def __len__(self) -> int:
        return len(self._folder_of)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> "ImageList": ...

    def __getitem__(self, index: int | slice) -> "Path | ImageList":
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return Path(os.fsdecode(self._encoded(index)))

    def __iter__(self) -> Iterator[Path]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageList):
            return NotImplemented
        return len(self) == len(other) and all(self._encoded(i) == other._encoded(i) for i in range(len(self)))

    def __hash__(self) -> int:
        return hash((len(self), self._names))

    def __repr__(self) -> str:
        return f"<ImageList of {len(self)} paths>"

    def _encoded(self, index: int) -> bytes:
        position = range(len(self))[index]
        start, end = self._name_ends[position : position + 2].tolist()
        return self._folder(int(self._folder_of[position])) + self._names[start:end]

    def _folder(self, number: int) -> bytes:
        start, end = self._folder_ends[number : number + 2].tolist()
        return self._folders[start:end]

    def _common_folder(self) -> bytes:
        common: bytes | None = None
        for number in np.unique(self._folder_of).tolist():
            folder = self._folder(number)
            common = folder if common is None else common
            while not folder.startswith(common):
                common = common[: common.rfind(b"/", 0, -1) + 1]
        return common or b""


def _image_files(root: bytes) -> Iterator[bytes]:
    """Paths below a folder (given with its final separator); holds the names of one branch of folders at a time."""
    branch = [_listed(root)]
    while branch:
        prefix, names, subfolders = branch[-1]
        for name in names:
            if name in subfolders:
                branch.append(_listed(prefix + name + b"/"))
                break
            yield prefix + name
        else:
            branch.pop()


def _listed(prefix: bytes) -> tuple[bytes, Iterator[bytes], set[bytes]]:
    """A folder, the names in it that matter, sorted, and which of them are folders."""
    names: list[bytes] = []
    subfolders: set[bytes] = set()
    with os.scandir(prefix) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                subfolders.add(entry.name)
                names.append(entry.name)
            elif _suffix(entry.name) in _SUFFIXES and _is_file(entry):
                names.append(entry.name)
    names.sort()
    return prefix, iter(names), subfolders


def _suffix(name: bytes) -> bytes:
    """As `Path.suffix` has it: a name that only begins with a dot has none."""
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""


def _is_file(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads back to itself
        return False
