"""Rows of classifiers <-> messages; the caller owns the transaction. Adapted ones are inserted by the ledger."""

from collections.abc import Sequence

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from app.classifiers.messages import ClassifierView, NewClassifier
from app.database import now_utc
from app.exceptions import NotFound
from app.tables import Classifier


class ClassifierStore:
    """Reads, inserts and deletes on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add_zero_shot(self, new: NewClassifier) -> None:
        """Insert a classifier that is text alone."""
        self._session.execute(
            insert(Classifier).values(
                id=new.id,
                name=new.name,
                kind="zero_shot",
                base_model=new.base_model,
                classes=new.classes,
                templates=new.templates,
                job_id=new.job_id,
                files={},
                version=new.version,
                metrics={},
                unknown_below=new.unknown_below,
                created_at=now_utc(),
            )
        )

    def get(self, classifier_id: str) -> ClassifierView | None:
        """The classifier, or None when there is none of this id."""
        row = self._session.get(Classifier, classifier_id)
        return None if row is None else _view(row)

    def delete(self, classifier_id: str) -> None:
        """Remove a classifier. Raises `NotFound`, and the database's `IntegrityError` while something refers to it."""
        gone = delete(Classifier).where(Classifier.id == classifier_id).returning(Classifier.id)
        if self._session.execute(gone).one_or_none() is None:
            raise NotFound

    def list(self, *, limit: int, after: str | None = None) -> Sequence[ClassifierView]:
        """Up to ``limit`` classifiers, newest first; with ``after``, those older than that id."""
        query = select(Classifier).order_by(Classifier.id.desc()).limit(limit)
        if after is not None:
            query = query.where(Classifier.id < after)
        return [_view(row) for row in self._session.scalars(query)]


def _view(row: Classifier) -> ClassifierView:
    return ClassifierView(
        id=row.id,
        name=row.name,
        kind=row.kind,
        base_model=row.base_model,
        classes=row.classes,
        templates=row.templates,
        job_id=row.job_id,
        files=row.files,
        version=row.version,
        metrics=row.metrics,
        unknown_below=row.unknown_below,
        created_at=row.created_at,
    )
