"""Jobs as their users see and steer them. Translates between rows and messages; the caller owns the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    SQLColumnExpression,
    and_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.database import now_plus, now_utc, plus_seconds
from app.exceptions import Conflict, NotFound
from app.jobs import events as job_events
from app.jobs.logs import JobLogStore
from app.jobs.messages import Event, EventType, JobError, JobView, LogEntry, NewJob, Scheduling, StatusChange
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.turns import is_due, is_queued
from app.tables import Classifier, Dataset, Job, JobReport, UtcDateTime

RESEND_AFTER = timedelta(seconds=30)
"""Wait between the first and the second message about a job that nobody claims. Doubles with each message."""
MAX_DOUBLINGS = 6

# The PostgreSQL driver would write an enum member by its name, so SQL gets plain strings.
QUEUED = JobStatus.QUEUED.value
RUNNING = JobStatus.RUNNING.value


class JobStore:
    """Reads and user-side writes of jobs on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, new: NewJob) -> None:
        """Insert a queued job. Raises `NotFound` when its dataset is gone."""
        wishes = new.scheduling
        due = _due(literal(wishes.not_before, UtcDateTime()))
        statement = insert(Job).values(
            id=new.id,
            status=QUEUED,
            name=new.name,
            user_metadata=new.metadata,
            dataset_id=new.dataset_id,
            base_model=new.base_model,
            classes=new.classes,
            templates=new.templates,
            hyperparameters=new.hyperparameters,
            seed=new.seed,
            promotion=new.promotion.value,
            created_at=now_utc(),
            attempt=0,
            attempts_forgiven=0,
            max_attempts=new.max_attempts,
            tenant=new.tenant,
            **asdict(wishes),
            available_at=due,
            pending_until=plus_seconds(due, literal(wishes.max_pending_s, Integer)),
            notify_at=due,
            num_notified=0,
        )
        try:
            self._session.execute(statement)
        except IntegrityError as e:
            raise NotFound from e
        job_events.add_status_event(self._session, new.id, JobStatus.QUEUED, "Accepted.", 0)

    def is_due(self, job_id: str) -> bool:
        """It waits for a worker, and for nothing else. By the database's clock."""
        return self._session.scalar(select(Job.id).where(Job.id == job_id, is_due())) is not None

    def get(self, job_id: str) -> JobView | None:
        """The job, or None when there is none of this id."""
        return next(iter(self._views(select(Job).where(Job.id == job_id))), None)

    def list(self, *, limit: int, after: str | None = None) -> Sequence[JobView]:
        """Up to ``limit`` jobs, newest first; with ``after``, those older than that id."""
        query = select(Job).order_by(Job.id.desc()).limit(limit)
        return self._views(query if after is None else query.where(Job.id < after))

    def request_cancel(self, job_id: str) -> JobStatus:
        """Cancel: a queued job at once, a running one by asking its worker. Asking twice is asking once.

        Returns the status after the request. Raises `NotFound`, and `Conflict` when the job has ended.
        """
        moved = self._session.execute(
            update(Job)
            .where(Job.id == job_id, Job.status.in_([QUEUED, RUNNING]))
            .values(
                status=case((Job.status == QUEUED, JobStatus.CANCELLED.value), else_=JobStatus.CANCELLING.value),
                finished_at=case((Job.status == QUEUED, now_utc()), else_=Job.finished_at),
                notify_at=None,
                estimated_finish_at=None,
            )
            .returning(Job.status, Job.attempt, Job.attempts_forgiven)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if moved is not None:
            status = JobStatus(moved.status)
            message = "Cancelled before it ran." if status is JobStatus.CANCELLED else "Asked to cancel."
            shown = moved.attempt - moved.attempts_forgiven
            job_events.add_status_event(self._session, job_id, status, message, shown)
            return status
        if self._status(job_id) is JobStatus.CANCELLING:
            return JobStatus.CANCELLING
        raise Conflict("job_not_cancellable", "The job has already ended.")

    def request_resume(self, job_id: str) -> None:
        """Queue a failed or cancelled job again, with all its attempts anew. It goes on from its last checkpoint if
        that is still there. Raises `NotFound`, and `Conflict` for a job in any other status."""
        # A dataset that is being deleted is waited for; otherwise the job could be queued without one.
        due = _due(Job.not_before)
        dataset = select(Dataset.id).join(Job, Job.dataset_id == Dataset.id).where(Job.id == job_id)
        self._session.execute(dataset.with_for_update(of=Dataset))
        moved = self._session.execute(
            update(Job)
            .where(
                Job.id == job_id,
                Job.status.in_([JobStatus.FAILED.value, JobStatus.CANCELLED.value]),
                Job.dataset_id.is_not(None),
            )
            .values(
                status=QUEUED,
                attempts_forgiven=Job.attempt,  # the fence itself never goes back
                owner=None,
                finished_at=None,
                error=None,
                running_s=0.0,
                available_at=due,
                pending_until=plus_seconds(due, Job.max_pending_s),
                notify_at=due,
                num_notified=0,
            )
            .returning(Job.id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if moved is None:
            self._status(job_id)
            raise Conflict(
                "job_not_resumable", "Only a failed or cancelled job whose dataset is still there can be resumed."
            )
        job_events.add_status_event(self._session, job_id, JobStatus.QUEUED, "Resumed.", 0)

    def request_promotion(self, job_id: str) -> None:
        """Have a job answer with its adapted classifier. Asking twice is asking once.

        Raises `NotFound`, and `Conflict` when the job has not succeeded, is never to be promoted, or has no adapted
        classifier any more.
        """
        self._status(job_id)
        # The classifier is locked until the end of the transaction: nobody deletes it before the job answers with it,
        # and one that is being deleted is waited for. What is asked of the job never changes again.
        adapted_id = self._session.scalar(
            select(Classifier.id)
            .join(Job, Job.id == Classifier.job_id)
            .where(
                Job.id == job_id,
                Job.status == JobStatus.SUCCEEDED.value,
                Job.promotion != Promotion.NEVER.value,
                Classifier.kind == "adapted",
            )
            .with_for_update(of=Classifier, read=True, key_share=True)
        )
        if adapted_id is None:
            raise Conflict(
                "not_promotable",
                "Only a job that has succeeded and still has its adapted classifier can be promoted, "
                "unless its option is never.",
            )
        moved = self._session.execute(
            update(Job)
            .where(Job.id == job_id, Job.classifier_id.is_distinct_from(adapted_id))
            .values(classifier_id=adapted_id)
            .returning(Job.id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if moved is not None:
            job_events.add_event(self._session, job_id, EventType.PROMOTED, {"classifier_id": adapted_id})

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Sequence[Event]:
        """The job's first ``limit`` events with ids above ``after``, in order."""
        return job_events.list_events(self._session, job_id, after=after, limit=limit)

    def last_event_id(self, job_id: str) -> int:
        """Id of the job's newest event; 0 when it has none."""
        return job_events.last_event_id(self._session, job_id)

    def report(self, job_id: str) -> Mapping[str, Any] | None:
        """What the job's trainer told of its result; None when there is nothing."""
        return self._session.scalar(select(JobReport.body).where(JobReport.job_id == job_id))

    def log(self, job_id: str) -> Sequence[LogEntry]:
        """What is kept of the job's log, oldest first."""
        return JobLogStore(self._session).entries(job_id)

    def metrics_history(self, job_id: str) -> Sequence[tuple[int, Mapping[str, float]]]:
        """Steps of the training and what was measured there, ascending."""
        return job_events.metrics_history(self._session, job_id)

    def training_end(self, job_id: str) -> tuple[EventType, Mapping[str, Any]] | None:
        """How its training ended where that was sooner than planned."""
        return job_events.training_end(self._session, job_id)

    def num_queued(self) -> int:
        """How many jobs wait for a worker."""
        query = select(func.count()).select_from(Job).where(is_queued())
        return self._session.scalar(query) or 0

    def unsent(self, limit: int) -> Sequence[str]:
        """Ids of jobs that wait for a worker and whose next broker message is due, longest due first."""
        due = func.coalesce(Job.notify_at, Job.lease_until).label("due")
        # Two queries, for no one index has both kinds.
        waiting = union_all(
            select(Job.id, due).where(is_due(), due <= now_utc()),
            select(Job.id, due).where(Job.status == RUNNING, Job.lease_until < now_utc(), due <= now_utc()),
        ).subquery()  # the latter's worker died
        return self._session.scalars(select(waiting.c.id).order_by(waiting.c.due, waiting.c.id).limit(limit)).all()

    def mark_notified(self, job_ids: Iterable[str]) -> None:
        """Note that a message about each job went out just now. A job claimed meanwhile is left as it is."""
        wait = case(
            *((Job.num_notified == n, now_plus(RESEND_AFTER * 2**n)) for n in range(MAX_DOUBLINGS)),
            else_=now_plus(RESEND_AFTER * 2**MAX_DOUBLINGS),
        )
        unclaimed = or_(Job.status == QUEUED, Job.lease_until < now_utc())
        self._session.execute(
            update(Job)
            .where(Job.id.in_(list(job_ids)), unclaimed)
            .values(notify_at=wait, num_notified=Job.num_notified + 1)
            .execution_options(synchronize_session=False)
        )

    def _status(self, job_id: str) -> JobStatus:
        found = self._session.scalar(select(Job.status).where(Job.id == job_id))
        if found is None:
            raise NotFound
        return JobStatus(found)

    def _views(self, query: Select[Job]) -> Sequence[JobView]:
        adapted = and_(Classifier.job_id == Job.id, Classifier.kind == "adapted")
        joined = query.outerjoin(Classifier, adapted).add_columns(Classifier.id)
        rows = self._session.execute(joined.execution_options(populate_existing=True)).all()
        history = job_events.status_changes(self._session, [job.id for job, _ in rows])
        return [_view(job, adapted_id, history[job.id]) for job, adapted_id in rows]


def _view(job: Job, adapted_id: str | None, transitions: tuple[StatusChange, ...]) -> JobView:
    return JobView(
        id=job.id,
        status=JobStatus(job.status),
        name=job.name,
        metadata=job.user_metadata,
        dataset_id=job.dataset_id,
        base_model=job.base_model,
        classes=job.classes,
        templates=job.templates,
        hyperparameters=job.hyperparameters,
        choices=job.choices,
        seed=job.seed,
        promotion=Promotion(job.promotion),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        estimated_finish_at=job.estimated_finish_at,
        attempt=job.attempt - job.attempts_forgiven,
        max_attempts=job.max_attempts,
        progress=job.progress,
        metrics=job.metrics,
        verdict=job.verdict,
        error=JobError(**job.error) if job.error else None,
        classifier_id=job.classifier_id,
        adapted_classifier_id=adapted_id,
        transitions=transitions,
        tenant=job.tenant,
        scheduling=Scheduling(
            priority=job.priority,
            not_before=job.not_before,
            max_runtime_s=job.max_runtime_s,
            max_pending_s=job.max_pending_s,
            num_gpus=job.num_gpus,
        ),
        runtime_s=job.running_s,
    )


def _due(not_before: SQLColumnExpression[Any]) -> ColumnElement[datetime]:
    """Now, or ``not_before`` when that is later."""
    return case((not_before > now_utc(), not_before), else_=now_utc())
