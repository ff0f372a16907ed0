"""Long streams in short lists."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """All items, in their order, up to ``size`` at a time; what is not asked for is not read."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
