"""What refers to blobs: the one place that knows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.tables import Classifier, DatasetImage

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class BlobReferences:
    """A column whose values name blobs."""

    column: InstrumentedAttribute[Any]
    owner: InstrumentedAttribute[str]
    """Whose the row is."""
    names: Callable[[Any], Iterable[str]]
    """The sha256 within one value."""
    indexed: bool
    """The column holds one name and can be searched by it; otherwise it is read as a whole."""

    def among(self, session: Session, names: set[str]) -> set[str]:
        """Those of ``names`` that something refers to."""
        if self.indexed:
            return set(session.scalars(select(self.column).where(self.column.in_(names)).distinct()))
        return set(self.all(session)) & names

    def all(self, session: Session) -> Iterator[str]:
        """Every name, in one query and little memory; a name may come more than once."""
        query = select(self.column).distinct() if self.indexed else select(self.column)
        for value in session.scalars(query.execution_options(yield_per=_ROWS_AT_ONCE)):
            yield from self.names(value)

    def page(self, session: Session, after: str) -> tuple[list[str], str | None]:
        """The same a part at a time, for what takes long with each: names, and what the next part comes after."""
        key = self.column if self.indexed else self.owner
        query = select(key, self.column).distinct() if self.indexed else select(key, self.column)
        rows = session.execute(query.where(key > after).order_by(key).limit(_ROWS_AT_ONCE)).all()
        return [name for row in rows for name in self.names(row[1])], rows[-1][0] if rows else None

    def owners(self, session: Session, name: str, *, limit: int) -> list[str]:
        """Who refers to a blob, up to ``limit``."""
        query = select(self.owner, self.column)
        rows = session.execute(
            (query.where(self.column == name) if self.indexed else query).execution_options(yield_per=_ROWS_AT_ONCE)
        )
        return list(islice((owner for owner, value in rows if name in self.names(value)), limit))


def _itself(value: str) -> Iterable[str]:
    return (value,)


def _of_files(value: Mapping[str, str]) -> Iterable[str]:
    return value.values()


BLOB_REFERENCES = (
    BlobReferences(column=DatasetImage.sha256, owner=DatasetImage.dataset_id, names=_itself, indexed=True),
    BlobReferences(column=Classifier.files, owner=Classifier.id, names=_of_files, indexed=False),
)
"""All there are. Those that can be searched come first, so that few names are left for the others."""
