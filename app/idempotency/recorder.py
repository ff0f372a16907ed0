"""Who takes down what a creating request made, within the transaction that makes it."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session

T = TypeVar("T")

Recorder = Callable[[Session, T], None]
"""Called once, last in the transaction, with what was created. When it raises, nothing is to be committed."""


def unrecorded(session: Session, created: object) -> None:
    """For requests without a key: nothing is kept."""
