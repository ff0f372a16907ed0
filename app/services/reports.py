"""What a finished job changed, and what a few labels say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.datasets.store import DatasetStore
from app.exceptions import Conflict, NotFound
from app.ids import is_id
from app.inference.audits import Audit, audit
from app.ingest.manifest import AcceptedImage
from app.jobs.messages import EventType, JobView
from app.jobs.store import JobStore

MAX_POINTS = 200
"""Of a curve."""


@dataclass(frozen=True, kw_only=True)
class ReportView:
    """A job with what its trainer told of the result, and those of the images told of that are still there."""

    job: JobView
    body: Mapping[str, Any]
    history: Sequence[tuple[int, Mapping[str, float]]]
    """Steps and what was measured there."""
    images: Mapping[int, AcceptedImage]
    training_end: tuple[EventType, Mapping[str, Any]] | None = None
    """The event of a training that ended sooner than planned."""

    @property
    def class_names(self) -> list[str]:
        """In the order of the indices."""
        return [c["name"] for c in self.job.classes]


class ReportService:
    """Reads reports, and counts labels by them."""

    def __init__(self, *, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def get(self, job_id: str) -> ReportView:
        """The report of a job that has succeeded; raises `NotFound`, and `Conflict` ``report_not_ready``."""
        if not is_id("job", job_id):
            raise NotFound
        with read_only(self._sessions) as session:
            store = JobStore(session)
            job, body = store.get(job_id), store.report(job_id)
            if job is None:
                raise NotFound
            if body is None:
                raise Conflict("report_not_ready", "A job has a report once it has succeeded.")
            images: Mapping[int, AcceptedImage] = {}
            if job.dataset_id is not None:
                images = DatasetStore(session).images_at(job.dataset_id, _positions(body))
            return ReportView(
                job=job,
                body=body,
                history=_thinned(store.metrics_history(job_id)),
                images=images,
                training_end=store.training_end(job_id),
            )

    def audit(self, job_id: str, labels: Sequence[tuple[int, str | None]]) -> Audit:
        """What labels of the images to label, by position, say; None is none of the classes. Nothing is kept.

        Raises as `get`, and `InvalidInput`.
        """
        view = self.get(job_id)
        return audit(view.body["audit"], view.class_names, labels)


def _positions(body: Mapping[str, Any]) -> set[int]:
    return {image["position"] for image in (*body["changed"], *body["uncertain"], *body["audit"]["images"])}


def _thinned(history: Sequence[tuple[int, Mapping[str, float]]]) -> Sequence[tuple[int, Mapping[str, float]]]:
    """At most `MAX_POINTS`, evenly, the first and the last among them."""
    last = len(history) - 1
    if last < MAX_POINTS:
        return history
    return [history[round(i * last / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]
