"""What exported folders have in common: each is new, appears whole, names its classes and prepares images one way."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from must_core.backbone import Preprocess
from must_core.bundle import Bundle
from must_core.errors import InvalidConfig
from must_core.files import publish_folder, write_json

CLASSES = "classes.json"
README = "README.md"


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``final`` when the block ends, and vanishes when the block fails.

    Raises `InvalidConfig` when ``final`` exists.
    """
    if final.exists():
        raise InvalidConfig(f"{final} is there already; name another folder.", param="output")
    staged = final.parent / f".{final.name}.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        publish_folder(staged, final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_classes(folder: Path, bundle: Bundle) -> None:
    """Write the class names as a JSON list in the order of the logits."""
    write_json(folder / CLASSES, list(bundle.class_names))


def preprocess_config(preprocess: Preprocess) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg``, every key written out."""
    return {
        "size": preprocess.image_size,
        "mode": "RGB",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.resize_mode,
        "fill_color": preprocess.fill_color,
    }
