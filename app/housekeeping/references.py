"""What refers to blobs: the one place that knows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    """Whose the row is, for people."""
    names: Callable[[Any], Iterable[str]]
    """The sha256 within one value."""
    indexed: bool
    """The column holds one name and can be searched by it."""

    def among(self, session: Session, names: set[str]) -> set[str]:
        """Those of ``names`` that something refers to."""
        if self.indexed:
            query = select(self.column).where(self.column.in_(names)).distinct()
            return set(session.scalars(query))
        return {name for value in self._values(session, self.column) for name in self.names(value[0])} & names

    def all(self, session: Session) -> Iterator[tuple[str, str]]:
        """Every reference, as owner and name, in no order and bounded memory. A name may come more than once."""
        for value, owner in self._values(session, self.column, self.owner):
            for name in self.names(value):
                yield owner, name

    @staticmethod
    def _values(session: Session, *columns: Any) -> Iterator[Any]:
        yield from session.execute(select(*columns).execution_options(yield_per=_ROWS_AT_ONCE))


def _itself(value: str) -> Iterable[str]:
    return (value,)


def _of_files(value: Mapping[str, str]) -> Iterable[str]:
    return value.values()


BLOB_REFERENCES = (
    BlobReferences(column=DatasetImage.sha256, owner=DatasetImage.dataset_id, names=_itself, indexed=True),
    BlobReferences(column=Classifier.files, owner=Classifier.id, names=_of_files, indexed=False),
)
"""All there are. Those that can be searched come first, so that few names are left for the others."""
