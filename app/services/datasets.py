"""Datasets: images come in, are looked at, and go."""

import re
from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.datasets.messages import DatasetView, IngestedDataset, NewDataset, RejectedRow
from app.datasets.store import DatasetStore
from app.exceptions import Conflict, InvalidInput, NotFound
from app.idempotency.recorder import Recorder, unrecorded
from app.ids import is_id, new_id
from app.ingest.ingest import Ingestor
from app.ingest.manifest import AcceptedImage
from app.ingest.names import display_name
from app.ingest.uploads import Upload
from app.services.cursors import invalid_cursor, require_cursor

_MAX_NAME = 200
_POSITION = re.compile(r"[0-9]{1,9}")


class DatasetService:
    """What the product does with datasets."""

    def __init__(self, *, sessions: sessionmaker[Session], ingestor: Ingestor) -> None:
        self._sessions = sessions
        self._ingestor = ingestor

    def create(
        self,
        uploads: Sequence[Upload],
        *,
        name: str | None = None,
        record: Recorder[IngestedDataset] = unrecorded,
    ) -> IngestedDataset:
        """Make a dataset of archives or image files. Without a name it is called like its first file.

        Raises as `Ingestor.ingest` does.
        """
        new = self.take_in(uploads, name=name)
        with self._sessions.begin() as session:
            done = self.add(session, new)
            record(session, done)
        return done

    def take_in(self, uploads: Sequence[Upload], *, name: str | None = None) -> NewDataset:
        """The long part of `create`: nobody sees anything of it until `add`. Raises as `Ingestor.ingest` does."""
        chosen = _name(name, uploads)
        return NewDataset(id=new_id("ds"), name=chosen, report=self._ingestor.ingest(uploads))

    def add(self, session: Session, new: NewDataset) -> IngestedDataset:
        """The short part of `create`, in a transaction of the caller's, who makes more with it."""
        store = DatasetStore(session)
        store.add(new.id, new.name)
        num_added = store.extend(new.id, new.report)
        dataset = _found(store.get(new.id))
        return IngestedDataset(dataset=dataset, num_added=num_added, rejected=new.report.rejected)

    def append(
        self, dataset_id: str, uploads: Sequence[Upload], *, record: Recorder[IngestedDataset] = unrecorded
    ) -> IngestedDataset:
        """Add images; those it has already are counted as duplicates.

        Jobs that were claimed before keep the images of their time. Raises `NotFound`, and as `Ingestor.ingest` does.
        """
        self.get(dataset_id)  # before the long work; the answer may change until it is done
        report = self._ingestor.ingest(uploads, min_unique=1)
        with self._sessions.begin() as session:
            store = DatasetStore(session)
            if not store.lock(dataset_id):
                raise NotFound
            num_added = store.extend(dataset_id, report)
            dataset = _found(store.get(dataset_id))
            done = IngestedDataset(dataset=dataset, num_added=num_added, rejected=report.rejected)
            record(session, done)
        return done

    def get(self, dataset_id: str) -> DatasetView:
        """One dataset. Raises `NotFound`."""
        with read_only(self._sessions) as session:
            return _existing(DatasetStore(session), dataset_id)

    def list(self, *, limit: int, after: str | None) -> Sequence[DatasetView]:
        """Up to ``limit`` datasets, newest first."""
        require_cursor("ds", after)
        with read_only(self._sessions) as session:
            return DatasetStore(session).list(limit=limit, after=after)

    def delete(self, dataset_id: str) -> None:
        """Remove a dataset. Raises `NotFound`, and `Conflict` ``resource_in_use`` while jobs need it."""
        if not is_id("ds", dataset_id):
            raise NotFound
        try:
            with self._sessions.begin() as session:
                store = DatasetStore(session)
                if not store.lock(dataset_id):
                    raise NotFound
                if store.has_active_jobs(dataset_id):
                    raise _in_use()
                store.delete(dataset_id)
        except IntegrityError as e:
            raise _in_use() from e

    def images(self, dataset_id: str, *, limit: int, after: str | None) -> Sequence[AcceptedImage]:
        """Up to ``limit`` images in order, behind the one with the sha256 ``after``."""
        with read_only(self._sessions) as session:
            store = DatasetStore(session)
            _existing(store, dataset_id)
            position = None
            if after is not None:
                position = store.position_of(dataset_id, after)
                if position is None:
                    raise invalid_cursor()
            return store.images(dataset_id, limit=limit, after=position)

    def rejected(self, dataset_id: str, *, limit: int, after: str | None) -> Sequence[RejectedRow]:
        """Up to ``limit`` rejected files in order, behind the one at the position ``after``."""
        if after is not None and not _POSITION.fullmatch(after):
            raise invalid_cursor()
        with read_only(self._sessions) as session:
            store = DatasetStore(session)
            _existing(store, dataset_id)
            return store.rejected(dataset_id, limit=limit, after=None if after is None else int(after))


def _existing(store: DatasetStore, dataset_id: str) -> DatasetView:
    return _found(store.get(dataset_id) if is_id("ds", dataset_id) else None)


def _found(dataset: DatasetView | None) -> DatasetView:
    if dataset is None:
        raise NotFound
    return dataset


def _in_use() -> Conflict:
    return Conflict("resource_in_use", "Jobs refer to the dataset.")


def _name(name: str | None, uploads: Sequence[Upload]) -> str:
    if name is not None:
        if not name.strip() or len(name) > _MAX_NAME:
            raise InvalidInput("out_of_range", f"A name has 1 to {_MAX_NAME} characters.", param="name")
        return display_name(name)
    return display_name(uploads[0].filename)[-_MAX_NAME:] if uploads else "unnamed"
