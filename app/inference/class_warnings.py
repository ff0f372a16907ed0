"""What may be a mistake in a class list that was accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from must_core.text.lookalikes import class_warnings
from must_core.text.prompts import ClassSpec


@dataclass(frozen=True)
class ListWarning:
    """``code`` is stable, ``message`` is for people and counts classes from 1."""

    code: str
    message: str


def warnings_of_rows(classes: Sequence[Mapping[str, Any]]) -> tuple[ListWarning, ...]:
    """The warnings of a class list as JSON columns keep it; they follow from the names, so no column keeps them."""
    return _warnings(tuple(c["name"] for c in classes))


@lru_cache(maxsize=32)  # a job is read again and again while it runs, and may have 10,000 classes
def _warnings(names: tuple[str, ...]) -> tuple[ListWarning, ...]:
    found = class_warnings([ClassSpec(name) for name in names])
    return tuple(ListWarning(warning.code, warning.message) for warning in found)
