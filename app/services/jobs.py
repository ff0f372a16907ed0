"""Jobs as their users steer them. The ledger is app/jobs; running them is the worker's."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.datasets.messages import DatasetView
from app.exceptions import InvalidInput, NotFound
from app.idempotency.recorder import Recorder, unrecorded
from app.ids import is_id, new_id
from app.inference.classes import ClassList, class_list_to_rows
from app.inference.predictor import Predictor, ZeroShotSource
from app.ingest.uploads import Upload
from app.jobs.messages import Event, JobView, LogEntry, NewJob, Scheduling
from app.jobs.outlook import OutlookStore
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.queue import TaskQueue
from app.services.classifiers import ClassifierService
from app.services.cursors import require_cursor
from app.services.datasets import DatasetService

_log = structlog.get_logger(__name__)

MIN_IMAGES = 2
"""Fewer make no batch."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What a user asks for, apart from the images. A missing seed is drawn; the job shows it."""

    classes: ClassList
    base_model: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    promotion: Promotion = Promotion.AUTO
    scheduling: Scheduling = field(default_factory=Scheduling)
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


class JobService:
    """What the product does with jobs."""

    def __init__(
        self,
        *,
        sessions: sessionmaker[Session],
        queue: TaskQueue,
        datasets: DatasetService,
        classifiers: ClassifierService,
        predictor: Predictor,
        max_attempts: int,
        max_running_per_tenant: int | None = None,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._datasets = datasets
        self._classifiers = classifiers
        self._predictor = predictor
        self._max_attempts = max_attempts
        self._max_running = max_running_per_tenant

    def submit(
        self, dataset_id: str, request: JobRequest, *, tenant: str, record: Recorder[JobView] = unrecorded
    ) -> JobView:
        """Accept a job of a tenant; returns it as accepted. Raises `NotFound` and `InvalidInput`.

        When this returns it is in the ledger and survives any crash; the message is only a hint.
        """
        dataset = self._datasets.get(dataset_id)
        source = self._check(request)
        self._check_batch(dataset, request)
        new = self._new_job(dataset_id, source, request, tenant)
        with self._sessions.begin() as session:
            job, is_due = self._accept(session, new, record)
        if is_due:  # else the sweeper tells the workers when its time has come
            self._enqueue(job.id)
        return job

    def submit_with_images(
        self, uploads: Sequence[Upload], request: JobRequest, *, tenant: str, record: Recorder[JobView] = unrecorded
    ) -> JobView:
        """Make a dataset and accept a job on it, both or neither. Raises as `submit` and `Ingestor.ingest` do."""
        source = self._check(request)  # before any image is unpacked
        dataset = self._datasets.take_in(uploads, name=request.name)
        new = self._new_job(dataset.id, source, request, tenant)
        with self._sessions.begin() as session:
            self._check_batch(self._datasets.add(session, dataset).dataset, request)
            job, is_due = self._accept(session, new, record)
        if is_due:
            self._enqueue(job.id)
        return job

    def get(self, job_id: str) -> JobView:
        """The job of an id; raises `NotFound`."""
        self._require_id(job_id)
        with read_only(self._sessions) as session:
            return self._read(session, job_id)

    def list(self, *, limit: int, after: str | None) -> Sequence[JobView]:
        """A page of jobs, newest first; raises `MalformedRequest` ``invalid_cursor``."""
        require_cursor("job", after)
        with read_only(self._sessions) as session:
            return JobStore(session).list(limit=limit, after=after)

    def cancel(self, job_id: str) -> JobView:
        """Cancel a queued job at once, ask a running one to stop; raises `NotFound` and `Conflict`."""
        self._require_id(job_id)
        with self._sessions.begin() as session:
            JobStore(session).request_cancel(job_id)
        return self.get(job_id)

    def resume(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again; raises `NotFound` and `Conflict`."""
        self._require_id(job_id)
        with self._sessions.begin() as session:
            JobStore(session).request_resume(job_id)
        self._enqueue(job_id)
        return self.get(job_id)

    def promote(self, job_id: str) -> JobView:
        """Have a job that succeeded answer with its adapted classifier; raises `NotFound` and `Conflict`."""
        self._require_id(job_id)
        with self._sessions.begin() as session:
            JobStore(session).request_promotion(job_id)
        return self.get(job_id)

    def events(self, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """The job's events with ids above ``after``, oldest first; raises `NotFound`."""
        self._require_id(job_id)
        with read_only(self._sessions) as session:
            store = JobStore(session)
            found = store.events(job_id, after=after, limit=limit)
            if not found and store.get(job_id) is None:
                raise NotFound
        return found

    def log(self, job_id: str) -> Sequence[LogEntry]:
        """What is kept of what the job's trainers wrote, oldest first; raises `NotFound`."""
        self._require_id(job_id)
        with read_only(self._sessions) as session:
            store = JobStore(session)
            found = store.log(job_id)
            if not found and store.get(job_id) is None:
                raise NotFound
        return found

    def _check(self, request: JobRequest) -> ZeroShotSource:
        """Refuse what can be known to be wrong before any image is read. Returns what is to be adapted."""
        source = self._classifiers.zero_shot_source(request.classes, base_model=request.base_model)
        self._predictor.check_hyperparameters(source.base_model, request.hyperparameters)
        return source

    def _new_job(self, dataset_id: str, source: ZeroShotSource, request: JobRequest, tenant: str) -> NewJob:
        rows = class_list_to_rows(request.classes)
        return NewJob(
            id=new_id("job"),
            dataset_id=dataset_id,
            base_model=source.base_model,
            classes=rows.classes,
            templates=rows.templates,
            hyperparameters=dict(request.hyperparameters),
            seed=secrets.randbits(31) if request.seed is None else request.seed,
            max_attempts=self._max_attempts,
            promotion=request.promotion,
            tenant=tenant,
            scheduling=request.scheduling,
            name=request.name,
            metadata=dict(request.metadata),
        )

    def _check_batch(self, dataset: DatasetView, request: JobRequest) -> None:
        """The trainer checks again: images may be added until a worker takes the job."""
        if dataset.num_images < MIN_IMAGES:
            raise InvalidInput("too_few_unique_images", "An adaptation needs several images.", param="dataset_id")
        batch_size = request.hyperparameters.get("batch_size")
        if isinstance(batch_size, int) and batch_size > self._predictor.num_trained_on(dataset.num_images):
            raise InvalidInput(
                "invalid_combination", "The batch is larger than what is trained on of the dataset.", param="batch_size"
            )

    def _accept(self, session: Session, new: NewJob, record: Recorder[JobView]) -> tuple[JobView, bool]:
        """Returns the job as accepted, and whether workers may have it at once."""
        store = JobStore(session)
        store.add(new)
        job, is_due = self._read(session, new.id), store.is_due(new.id)
        record(session, job)
        return job, is_due

    def _read(self, session: Session, job_id: str) -> JobView:
        found = JobStore(session).get(job_id)
        if found is None:
            raise NotFound
        if found.status is not JobStatus.QUEUED:
            return found
        return replace(found, outlook=OutlookStore(session, max_running_per_tenant=self._max_running).of(job_id))

    def _enqueue(self, job_id: str) -> None:
        """Tell the workers of a job that is committed: whatever fails from here on, the sweeper makes up for."""
        if not self._queue.send(job_id):
            return
        try:
            with self._sessions.begin() as session:
                JobStore(session).mark_notified([job_id])
        except SQLAlchemyError as e:
            _log.warning("hint_not_noted", job_id=job_id, error=str(e)[:300])

    @staticmethod
    def _require_id(job_id: str) -> None:
        if not is_id("job", job_id):
            raise NotFound
