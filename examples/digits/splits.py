"""Seeded halves of the digits: images to adapt on (their labels unseen) and images to measure on.

Labels take no part: the halves are a plain shuffle of the file names and are not balanced by class.
"""

import csv
import random
from pathlib import Path

LABELS_FILE = Path(__file__).parent / "labels.csv"


def filenames() -> list[str]:
    """Return the names of all images, sorted."""
    return sorted(read_labels())


def read_labels() -> dict[str, str]:
    """Return the true class name of every image, by file name. For measuring only."""
    with LABELS_FILE.open(newline="") as file:
        return {row["filename"]: row["label"] for row in csv.DictReader(file)}


def split(seed: int) -> tuple[list[str], list[str]]:
    """Return the file names of the training half and of the held-out half, each sorted.

    The two are disjoint and together hold every image; the odd one out is held out.
    """
    names = filenames()
    random.Random(seed).shuffle(names)
    half = len(names) // 2
    return sorted(names[:half]), sorted(names[half:])
