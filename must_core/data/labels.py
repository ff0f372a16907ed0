"""Labels that happen to be known, for metrics alone: from folders named like classes, or from a CSV.

Shapes: N images.
"""

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from must_core.errors import InvalidConfig
from must_core.text.characters import folded

UNKNOWN = -1
"""The label of an image that has none."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Labels:
    """A class index for each image, in the images' order."""

    labels_N: Tensor
    """int64, −1 where unknown."""

    @property
    def num_labelled(self) -> int:
        """Images whose class is known."""
        return int((self.labels_N != UNKNOWN).sum())

    @classmethod
    def from_folders(cls, paths: Sequence[Path], class_names: Sequence[str], *, root: Path) -> "Labels":
        """Take the name of the folder that an image lies in for its class; directly in ``root`` it has no label.

        A folder is named exactly like a class, or so after case-folding and with ``_`` for spaces. Raises
        `InvalidConfig` (``labels``) for a folder that is named otherwise.
        """
        classes = _ClassIndex(class_names)
        found = array("q")
        of_folder = {_text_of(root): UNKNOWN}
        for path in paths:
            folder = os.path.dirname(path)  # noqa: PTH120 - a Path for each of a million parents is slow
            label = of_folder.get(folder)
            if label is None:
                label = of_folder[folder] = _label_of_folder(os.path.basename(folder), classes)  # noqa: PTH119
            found.append(label)
        return cls(_tensor(found))

    @classmethod
    def from_csv(
        cls,
        file: Path,
        paths: Sequence[Path],
        class_names: Sequence[str],
        *,
        root: Path,
        ignore_other_files: bool = False,
    ) -> "Labels":
        """Read a CSV with the columns ``filename`` and ``label``, for images of the folder ``root``.

        Names are written from ``root`` on, with ``/``. A label is a class's name or its number, counted from 0; what is
        both is a name. An empty label, and an image without a row, are unknown. Other columns are passed over, and no
        row is kept in memory. Raises `InvalidConfig` (``labels``) for a file that cannot be read, a name that is no
        class, an image labelled in two ways, and, unless ``ignore_other_files``, a file that is none of ``paths``.
        """
        classes = _ClassIndex(class_names)
        images = _ImageIndex(paths, root)
        found = array("q", [UNKNOWN]) * len(paths)
        rows = _rows(file)
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            places = images.find([row.filename for row in part])
            for row, place in zip(part, places, strict=True):
                if place is None:
                    if not ignore_other_files:
                        raise _wrong(f"line {row.line} names {_shown(row.filename)}, which is none of the images")
                    continue
                label = classes.of_cell(row.label)
                if label is None:
                    raise _wrong(f"line {row.line}: {_shown(row.label)} is neither a class's name nor its index")
                if found[place] not in {UNKNOWN, label}:
                    raise _wrong(f"line {row.line} labels {_shown(row.filename)} a second time and otherwise")
                found[place] = label
        return cls(_tensor(found))


def _label_of_folder(name: str, classes: "_ClassIndex") -> int:
    label = classes.of_name(name)
    if label is None:
        raise _wrong(f"the folder {_shown(name)} is named like none of the classes")
    return label


class _ClassIndex:
    def __init__(self, class_names: Sequence[str]) -> None:
        self._exact = {name: i for i, name in enumerate(class_names)}
        self._folded = {_loosely(name): i for i, name in enumerate(class_names)}

    def of_name(self, name: str) -> int | None:
        exact = self._exact.get(name)
        return self._folded.get(_loosely(name)) if exact is None else exact

    def of_cell(self, cell: str) -> int | None:
        if not cell:
            return UNKNOWN
        named = self.of_name(cell)
        if named is not None:
            return named
        if cell.isascii() and cell.isdigit() and len(cell) < 9 and int(cell) < len(self._exact):
            return int(cell)
        return None


class _ImageIndex:
    """Finds images by name through sorted 64-bit hashes; a dictionary of a million names takes ten times the memory."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self._paths = paths
        self._prefix = os.path.join(_text_of(root), "")  # noqa: PTH118 - compared with texts
        names = array("q", (hash(self._name(os.fspath(path))) for path in paths))
        self._hashes, self._order = _tensor(names).sort()

    def find(self, names: Sequence[str]) -> Iterator[int | None]:
        wanted = [name.removeprefix("./") for name in names]
        hashes = torch.tensor([hash(name) for name in wanted], dtype=torch.int64)
        starts = torch.searchsorted(self._hashes, hashes).tolist()
        ends = torch.searchsorted(self._hashes, hashes, right=True).tolist()
        for name, start, end in zip(wanted, starts, ends, strict=True):
            candidates = self._order[start:end].tolist() if end > start else []
            yield next((i for i in candidates if self._name(os.fspath(self._paths[i])) == name), None)

    def _name(self, path: str) -> str:
        return path.removeprefix(self._prefix)


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    filename: str
    label: str


def _rows(file: Path) -> Iterator[_Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not {"filename", "label"} <= set(header):
                raise _wrong("the first line must name the columns filename and label")
            name_at, label_at = header.index("filename"), header.index("label")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) <= max(name_at, label_at):
                    raise _wrong(f"line {reader.line_num} has too few columns")
                yield _Row(reader.line_num, cells[name_at].strip(), cells[label_at].strip())
    except UnicodeDecodeError as e:
        raise InvalidConfig("Labels: the file is not UTF-8.", code="invalid_encoding", param="labels") from e
    except csv.Error as e:
        raise _wrong("the file is not CSV") from e
    except OSError as e:
        raise _wrong(f"the file cannot be read ({e.strerror})") from e


def _text_of(root: Path) -> str:
    return "" if root == Path() else os.fspath(root)  # files of the working directory are listed without "./"


def _tensor(values: "array[int]") -> Tensor:
    return torch.frombuffer(values, dtype=torch.int64) if values else torch.zeros(0, dtype=torch.int64)


def _loosely(name: str) -> str:
    return folded(name.replace("_", " "))


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


def _wrong(what: str) -> InvalidConfig:
    return InvalidConfig(f"Labels: {what}.", code="invalid_value", param="labels")
