"""Rows of datasets <-> messages; the caller owns the transaction."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from app.database import now_utc
from app.datasets.messages import DatasetView, RejectedRow
from app.ingest.manifest import AcceptedImage, IngestReport, RejectedImage
from app.tables import Dataset, DatasetImage, Job, RejectedFile

_ROWS_AT_ONCE = 5000
_ACTIVE = ("queued", "running", "cancelling")


class DatasetStore:
    """Reads and writes on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, dataset_id: str, name: str) -> None:
        """Insert a dataset without images."""
        self._session.execute(
            insert(Dataset).values(
                id=dataset_id,
                name=name,
                created_at=now_utc(),
                num_images=0,
                num_duplicates=0,
                num_ignored=0,
                num_rejected=0,
                total_bytes=0,
            )
        )

    def lock(self, dataset_id: str) -> bool:
        """Keep others from changing the dataset until the transaction ends; False when there is none."""
        query = select(Dataset.id).where(Dataset.id == dataset_id).with_for_update()
        return self._session.scalar(query) is not None

    def extend(self, dataset_id: str, report: IngestReport) -> int:
        """Add an upload to a dataset that is locked, or new; returns how many images it did not have yet."""
        known = set(self._session.scalars(select(DatasetImage.sha256).where(DatasetImage.dataset_id == dataset_id)))
        new = [image for image in report.images if image.sha256 not in known]
        self._insert_images(dataset_id, new)
        self._insert_rejected(dataset_id, report.rejected)
        self._session.execute(
            update(Dataset)
            .where(Dataset.id == dataset_id)
            .values(
                num_images=Dataset.num_images + len(new),
                num_duplicates=Dataset.num_duplicates + report.num_duplicates + len(report.images) - len(new),
                num_ignored=Dataset.num_ignored + report.num_ignored,
                num_rejected=Dataset.num_rejected + len(report.rejected),
                total_bytes=Dataset.total_bytes + sum(image.num_bytes for image in new),
            )
        )
        return len(new)

    def get(self, dataset_id: str) -> DatasetView | None:
        """The dataset, or None when there is none of this id."""
        row = self._session.get(Dataset, dataset_id, populate_existing=True)
        return None if row is None else _view(row)

    def list(self, *, limit: int, after: str | None = None) -> Sequence[DatasetView]:
        """Up to ``limit`` datasets, newest first; with ``after``, those older than that id."""
        query = select(Dataset).order_by(Dataset.id.desc()).limit(limit)
        if after is not None:
            query = query.where(Dataset.id < after)
        return [_view(row) for row in self._session.scalars(query)]

    def has_active_jobs(self, dataset_id: str) -> bool:
        """Whether a job that has not ended refers to the dataset."""
        query = select(exists().where(Job.dataset_id == dataset_id, Job.status.in_(_ACTIVE)))
        return bool(self._session.scalar(query))

    def delete(self, dataset_id: str) -> None:
        """Remove the dataset and its lists; blobs stay for the sweeper."""
        self._session.execute(delete(Dataset).where(Dataset.id == dataset_id))

    def position_of(self, dataset_id: str, sha256: str) -> int | None:
        """Where an image stands in its dataset."""
        query = select(DatasetImage.position).where(
            DatasetImage.dataset_id == dataset_id, DatasetImage.sha256 == sha256
        )
        return self._session.scalar(query)

    def images(self, dataset_id: str, *, limit: int, after: int | None) -> Sequence[AcceptedImage]:
        """Up to ``limit`` images behind a position, in order."""
        query = select(DatasetImage).where(DatasetImage.dataset_id == dataset_id)
        if after is not None:
            query = query.where(DatasetImage.position > after)
        rows = self._session.scalars(query.order_by(DatasetImage.position).limit(limit))
        return [_image(row) for row in rows]

    def images_at(self, dataset_id: str, positions: Collection[int]) -> Mapping[int, AcceptedImage]:
        """Those images of a few positions that there are. A dataset only grows, so a position stays an image's own."""
        query = select(DatasetImage).where(
            DatasetImage.dataset_id == dataset_id, DatasetImage.position.in_(list(positions))
        )
        return {row.position: _image(row) for row in self._session.scalars(query)}

    def rejected(self, dataset_id: str, *, limit: int, after: int | None) -> Sequence[RejectedRow]:
        """Up to ``limit`` rejected files behind a position, in order."""
        query = select(RejectedFile).where(RejectedFile.dataset_id == dataset_id)
        if after is not None:
            query = query.where(RejectedFile.position > after)
        rows = self._session.scalars(query.order_by(RejectedFile.position).limit(limit))
        return [
            RejectedRow(
                position=row.position, file=RejectedImage(filename=row.filename, code=row.code, detail=row.detail)
            )
            for row in rows
        ]

    def _insert_images(self, dataset_id: str, images: Sequence[AcceptedImage]) -> None:
        start = self._next_position(DatasetImage, dataset_id)
        rows = [
            {
                "dataset_id": dataset_id,
                "position": position,
                "sha256": image.sha256,
                "filename": image.filename,
                "format": image.format,
                "width": image.width,
                "height": image.height,
                "num_bytes": image.num_bytes,
                "warning": image.warning,
            }
            for position, image in enumerate(images, start)
        ]
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._session.execute(insert(DatasetImage), rows[first : first + _ROWS_AT_ONCE])

    def _insert_rejected(self, dataset_id: str, rejected: Sequence[RejectedImage]) -> None:
        start = self._next_position(RejectedFile, dataset_id)
        rows = [
            {
                "dataset_id": dataset_id,
                "position": position,
                "filename": file.filename,
                "code": file.code,
                "detail": file.detail,
            }
            for position, file in enumerate(rejected, start)
        ]
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._session.execute(insert(RejectedFile), rows[first : first + _ROWS_AT_ONCE])

    def _next_position(self, table: type[DatasetImage] | type[RejectedFile], dataset_id: str) -> int:
        last = self._session.scalar(select(func.max(table.position)).where(table.dataset_id == dataset_id))
        return 0 if last is None else last + 1


def _image(row: DatasetImage) -> AcceptedImage:
    return AcceptedImage(
        sha256=row.sha256,
        filename=row.filename,
        format=row.format,
        width=row.width,
        height=row.height,
        num_bytes=row.num_bytes,
        warning=row.warning,
    )


def _view(row: Dataset) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        num_images=row.num_images,
        num_duplicates=row.num_duplicates,
        num_ignored=row.num_ignored,
        num_rejected=row.num_rejected,
        total_bytes=row.total_bytes,
    )
