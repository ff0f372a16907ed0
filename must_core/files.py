"""Files that are whole or absent, and their digests."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; whoever makes the file visible syncs it (see `publish_folder`).

    Bytes of a path that are not UTF-8 are written as ``\\udce9``: who reads the JSON has the path that it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_durably(path: Path, text: str) -> None:
    """Replace a small file, whole or not at all, and surviving a power cut."""
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text(text, encoding="utf-8")
    _sync(staged)
    staged.rename(path)
    _sync(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors, readable for whom the umask says; raises `OSError` when that fails, as other writes do."""
    path.touch()
    mode = path.stat().st_mode  # safetensors puts a private file in its place
    try:
        save_file(dict(tensors), path)
    except SafetensorError as e:
        raise OSError(f"{path.name} could not be written: {e}") from e
    path.chmod(mode)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; raises `OSError` or `SafetensorError`."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors opens no such path
        return load(path.read_bytes())
    return load_file(path)


def publish_folder(staged: Path, final: Path) -> None:
    """Make a staged folder visible under its final name, whole or not at all, and surviving a power cut.

    ``final`` must not exist, and both must lie in the same folder.
    """
    for file in staged.iterdir():
        _sync(file)
    _sync(staged)
    staged.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
