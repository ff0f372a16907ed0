"""What can be wrong with a service's data, told one by one."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be. ``code`` is stable."""

    code: str
    subject: str
    """Id of what it is about: a job, a dataset, a blob, a table."""
    detail: str

    def __str__(self) -> str:
        return f"{self.code} {self.subject}: {self.detail}"


Tell = Callable[[Problem], None]
"""Takes problems as they are found: there may be a million of them."""


class AdminError(Exception):
    """It cannot be done, or not like this; the text is for the operator. Nothing was changed, or the text says what."""
