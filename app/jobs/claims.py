"""Jobs as a worker holds them. Each write names the claim it is made under; one that matches no row changes nothing
and raises `LeaseLost`. Translates between rows and messages; the ledger owns the transaction.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, case, func, insert, select, update
from sqlalchemy.orm import Session

from app.classifiers.messages import NewClassifier
from app.classifiers.store import ClassifierStore
from app.database import now_plus, now_utc, seconds_between, wait_for_turn
from app.ids import new_id
from app.jobs.errors import LeaseLost
from app.jobs.events import add_event, add_status_event
from app.jobs.logs import JobLogStore
from app.jobs.messages import Beat, Claim, EventType, JobError, Publication, Report
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.turns import Terms, attempts_left, is_claimable, is_dropped, is_silent, is_this_ones_turn, next_job
from app.tables import Classifier, DatasetImage, Job, JobReport

QUEUED = JobStatus.QUEUED.value
RUNNING = JobStatus.RUNNING.value
CANCELLING = JobStatus.CANCELLING.value

CLAIM_LOCK = 0x6D757375
"""Any constant: the advisory lock under which workers claim one after the other."""
FENCE_JUMP = 1000
"""More attempts than any job has between a backup and the day it is restored."""
NO_TERMS = Terms()

PENDING_TOO_LONG = JobError(
    code="pending_too_long", message="No worker took the job in the time it was to wait.", param="max_pending_s"
)
WORKER_LOST = JobError(
    code="worker_lost", message="The worker stopped answering, and no attempts are left. The job can be resumed."
)


class ClaimStore:
    """Guarded writes of attempts on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, owner: str, lease: timedelta, job_id: str | None, terms: Terms = NO_TERMS) -> Claim | None:
        """Claim the job whose turn it is, or only ``job_id``. None when there is none."""
        wait_for_turn(self._session, CLAIM_LOCK)
        found = self._lock_next(terms) if job_id is None else self._lock(job_id, terms)
        if found is None:
            return None
        row = self._session.execute(
            update(Job)
            .where(Job.id == found, is_claimable())
            .values(
                status=RUNNING,
                owner=owner,
                running_s=Job.running_s + _held_until_lease_end(),
                claimed_at=now_utc(),
                pending_until=None,
                lease_until=now_plus(lease),
                attempt=Job.attempt + 1,
                started_at=func.coalesce(Job.started_at, now_utc()),
                notify_at=None,
                num_notified=0,
                progress={"phase": "preparing"},
                estimated_finish_at=None,
            )
            .returning(
                Job.attempt,
                Job.attempts_forgiven,
                Job.max_attempts,
                Job.dataset_id,
                Job.base_model,
                Job.classes,
                Job.templates,
                Job.hyperparameters,
                Job.seed,
                Job.promotion,
                Job.num_gpus,
                _runtime_exceeded().label("runtime_exceeded"),
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            return None
        ordinal = row.attempt - row.attempts_forgiven
        message = f"Attempt {ordinal} of {row.max_attempts}."
        add_status_event(self._session, found, JobStatus.RUNNING, message, ordinal)
        return Claim(
            job_id=found,
            owner=owner,
            attempt=row.attempt,
            ordinal=ordinal,
            max_attempts=row.max_attempts,
            dataset_id=row.dataset_id,
            base_model=row.base_model,
            classes=row.classes,
            templates=row.templates,
            hyperparameters=row.hyperparameters,
            seed=row.seed,
            promotion=Promotion(row.promotion),
            num_gpus=row.num_gpus,
            runtime_exceeded=bool(row.runtime_exceeded),
        )

    def _lock_next(self, terms: Terms) -> str | None:
        """Lock the job whose turn it is; one that is being cancelled right now is passed over."""
        passed_over: list[str] = []
        while (found := next_job(self._session, terms, but=passed_over)) is not None:
            if self._lock_row(found):
                return found
            passed_over.append(found)
        return None

    def _lock(self, job_id: str, terms: Terms) -> str | None:
        return job_id if is_this_ones_turn(self._session, job_id, terms) and self._lock_row(job_id) else None

    def _lock_row(self, job_id: str) -> bool:
        # SQLite has no row locks and needs none: the whole transaction holds its write lock.
        query = select(Job.id).where(Job.id == job_id, is_claimable()).with_for_update(skip_locked=True)
        return self._session.scalar(query) is not None

    def extend(self, claim: Claim, lease: timedelta) -> Beat:
        """Move the end of the lease to ``lease`` from now. An expired lease that nobody took is revived."""
        return self._write(claim, {"lease_until": now_plus(lease)})

    def record(self, claim: Claim, report: Report, *, max_log_bytes: int) -> Beat:
        """Store news of the attempt."""
        values: dict[str, Any] = {
            name: dict(value)
            for name in ("progress", "metrics", "choices")
            if (value := getattr(report, name)) is not None
        }
        if report.remaining is not None:
            values["estimated_finish_at"] = now_plus(report.remaining)
        beat = self._write(claim, values)
        for kind, data in report.events:
            add_event(self._session, claim.job_id, kind, {**data, "attempt": claim.ordinal})
        if report.log:
            JobLogStore(self._session).append(claim, report.log, at_most_bytes=max_log_bytes)
        return beat

    def settle(
        self,
        claim: Claim,
        target: JobStatus,
        message: str,
        values: Mapping[str, Any] | None = None,
        *,
        events: Iterable[tuple[EventType, Mapping[str, Any]]] = (),
    ) -> JobStatus:
        """End the attempt: running moves to ``target``, and cancelling to cancelled whatever the target.

        ``events`` are told before the move, and only if it is made. Repeating a call whose answer was lost returns
        the same. Returns where the job ended up.
        """
        moves = [(JobStatus.RUNNING, target), (JobStatus.CANCELLING, JobStatus.CANCELLED)]
        if target is JobStatus.CANCELLED:
            moves = moves[1:]
        for source, destination in moves:
            more = {} if destination is not target else dict(values or {})
            if destination.is_terminal:
                more |= {"finished_at": now_utc()}
            moved = self._session.execute(
                update(Job)
                .where(*self._fence(claim), Job.status == source.value)
                .values(
                    status=destination.value,
                    running_s=Job.running_s + _taken(now_utc()),
                    lease_until=None,
                    estimated_finish_at=None,
                    **more,
                )
                .returning(Job.id)
                .execution_options(synchronize_session=False)
            ).one_or_none()
            if moved is not None:
                for kind, data in events if destination is target else ():
                    add_event(self._session, claim.job_id, kind, {**data, "attempt": claim.ordinal})
                said = message if destination is target else "Cancelled."
                add_status_event(self._session, claim.job_id, destination, said, claim.ordinal)
                return destination
        return self._settled_before(claim, target)

    def insert_adapted(self, claim: Claim, publication: Publication) -> str:
        """Make the adapted classifier exist; UNIQUE(job_id, kind) refuses a second one. Returns its id."""
        self._session.execute(
            insert(Classifier).values(
                id=publication.classifier_id,
                name=self._name_of(claim.job_id),
                kind="adapted",
                base_model=claim.base_model,
                classes=claim.classes,
                templates=claim.templates,
                job_id=claim.job_id,
                files=dict(publication.files),
                version=publication.version,
                metrics=dict(publication.metrics),
                unknown_below=publication.unknown_below,
                created_at=now_utc(),
            )
        )
        return publication.classifier_id

    def insert_report(self, claim: Claim, publication: Publication) -> None:
        """Keep what the trainer told of its result, if it did. The caller has settled the job in this transaction."""
        if publication.report is not None:
            self._session.execute(insert(JobReport).values(job_id=claim.job_id, body=dict(publication.report)))

    def insert_zero_shot(self, claim: Claim, publication: Publication) -> str:
        """Make a classifier of the same classes exist that is text alone. Returns its id."""
        new = NewClassifier(
            id=new_id("clf"),
            name=self._name_of(claim.job_id),
            base_model=claim.base_model,
            classes=claim.classes,
            templates=claim.templates,
            job_id=claim.job_id,
            unknown_below=publication.zero_shot_unknown_below,
        )
        ClassifierStore(self._session).add_zero_shot(new)
        return new.id

    def set_classifier(self, claim: Claim, classifier_id: str) -> None:
        """Have the job answer with a classifier. The caller has settled the job in this transaction."""
        self._session.execute(
            update(Job)
            .where(*self._fence(claim))
            .values(classifier_id=classifier_id)
            .execution_options(synchronize_session=False)
        )

    def progress_of(self, job_id: str) -> dict[str, Any]:
        """How far the job was when it last said so."""
        return self._session.scalar(select(Job.progress).where(Job.id == job_id)) or {}

    def classifier_of(self, job_id: str) -> str | None:
        """Id of the classifier that the job answers with; None until it is published."""
        return self._session.scalar(select(Job.classifier_id).where(Job.id == job_id))

    def image_digests(self, dataset_id: str) -> Sequence[str]:
        """sha256 of the dataset's images, in order."""
        query = select(DatasetImage.sha256).where(DatasetImage.dataset_id == dataset_id)
        return self._session.scalars(query.order_by(DatasetImage.position)).all()

    def fail_exhausted(self, job_ids: Collection[str]) -> Sequence[str]:
        """Fail those of these jobs that are `silent` in their last attempt. Returns their ids."""
        dead = and_(is_silent(), ~attempts_left(), Job.id.in_(job_ids))
        values = {"status": JobStatus.FAILED.value, "error": WORKER_LOST.to_dict()}
        return self._sweep(dead, values, JobStatus.FAILED, WORKER_LOST.message)

    def fail_expired(self) -> Sequence[str]:
        """Fail queued jobs that nobody took in time. Returns their ids."""
        late = and_(Job.status == QUEUED, Job.pending_until < now_utc())
        values = {"status": JobStatus.FAILED.value, "error": PENDING_TOO_LONG.to_dict()}
        return self._sweep(late, values, JobStatus.FAILED, PENDING_TOO_LONG.message)

    def silent(self) -> Sequence[str]:
        """Ids of running jobs whose lease ran out."""
        return self._session.scalars(select(Job.id).where(is_silent()).order_by(Job.id)).all()

    def requeue_dropped(self, job_ids: Collection[str]) -> Sequence[str]:
        """Queue those of these jobs that are `silent` with attempts left. Returns their ids."""
        dead = and_(is_dropped(), Job.id.in_(job_ids))
        values = {
            "status": JobStatus.QUEUED.value,
            "available_at": now_utc(),
            "notify_at": now_utc(),
            "num_notified": 0,
        }
        return self._sweep(dead, values, JobStatus.QUEUED, "Its worker stopped answering. Trying again.")

    def finish_cancelling(self) -> Sequence[str]:
        """Cancel jobs whose worker died before it could obey. Returns their ids."""
        dead = and_(Job.status == CANCELLING, Job.lease_until < now_utc())
        values = {"status": JobStatus.CANCELLED.value}
        return self._sweep(dead, values, JobStatus.CANCELLED, "Cancelled; its worker had stopped answering.")

    def forget_workers(self, message: str) -> None:
        """Take all jobs from all workers, in a ledger that was put back to an earlier state: none of them may write.

        Held jobs are queued again and the attempt is not counted, those to be cancelled are cancelled. The fence jumps
        over whatever a worker may hold from the time that is lost.
        """
        values = {
            "status": QUEUED,
            "attempts_forgiven": Job.attempts_forgiven + 1,
            "available_at": now_utc(),
            "notify_at": now_utc(),
            "num_notified": 0,
        }
        self._sweep(Job.status == RUNNING, values, JobStatus.QUEUED, message)
        self._sweep(Job.status == CANCELLING, {"status": JobStatus.CANCELLED.value}, JobStatus.CANCELLED, message)
        self._session.execute(
            update(Job)
            .values(attempt=Job.attempt + FENCE_JUMP, attempts_forgiven=Job.attempts_forgiven + FENCE_JUMP)
            .execution_options(synchronize_session=False)
        )

    def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[JobStatus, timedelta]]:
        """Of those jobs that exist: the status, and how long ago the job finished (zero when it has not)."""
        query = select(Job.id, Job.status, Job.finished_at, now_utc().label("now")).where(Job.id.in_(job_ids))
        return {
            row.id: (JobStatus(row.status), row.now - row.finished_at if row.finished_at else timedelta(0))
            for row in self._session.execute(query)
        }

    def _name_of(self, job_id: str) -> str | None:
        return self._session.scalar(select(Job.name).where(Job.id == job_id))

    def _fence(self, claim: Claim) -> tuple[ColumnElement[bool], ...]:
        return (Job.id == claim.job_id, Job.owner == claim.owner, Job.attempt == claim.attempt)

    def _write(self, claim: Claim, values: Mapping[str, Any]) -> Beat:
        row = self._session.execute(
            update(Job)
            .where(*self._fence(claim), Job.status.in_([RUNNING, CANCELLING]))
            # Naming a column even when nothing changes keeps this a write: it locks the row and tests the fence.
            .values(owner=claim.owner, **values)
            .returning(Job.status, _runtime_exceeded().label("runtime_exceeded"))
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            raise LeaseLost(claim.job_id, claim.attempt)
        return Beat(cancel_requested=row.status == CANCELLING, runtime_exceeded=bool(row.runtime_exceeded))

    def _settled_before(self, claim: Claim, target: JobStatus) -> JobStatus:
        row = self._session.execute(
            select(Job.status, Job.owner).where(Job.id == claim.job_id, Job.attempt == claim.attempt)
        ).one_or_none()
        # A requeued job has no owner any more; the attempt alone shows that it was this claim that let go.
        mine = row is not None and (row.owner == claim.owner or row.status == QUEUED)
        if row is not None and mine and row.status in {target.value, JobStatus.CANCELLED.value}:
            return JobStatus(row.status)
        raise LeaseLost(claim.job_id, claim.attempt)

    def _sweep(
        self, dead: ColumnElement[bool], values: Mapping[str, Any], status: JobStatus, message: str
    ) -> Sequence[str]:
        # In no order: SQLite would read the whole table to find them in it.
        ids = self._session.scalars(select(Job.id).where(dead).with_for_update(skip_locked=True)).all()
        for job_id in ids:
            attempt = self._session.execute(
                update(Job)
                .where(Job.id == job_id, dead)
                .values(
                    owner=None,
                    running_s=Job.running_s + _held_until_lease_end(),
                    lease_until=None,
                    estimated_finish_at=None,
                    **({"finished_at": now_utc()} if status.is_terminal else {}),
                    **values,
                )
                .returning(Job.attempt - Job.attempts_forgiven)
                .execution_options(synchronize_session=False)
            ).scalar_one()
            add_status_event(self._session, job_id, status, message, attempt)
        return ids


def _held_until_lease_end() -> ColumnElement[float]:
    """What the attempt of a dead worker took, as far as anybody knows; 0 when no worker holds the job."""
    return _taken(Job.lease_until)


def _runtime_exceeded() -> ColumnElement[bool]:
    """Of a held job: all its attempts together have taken what they may. NULL when they may take any time."""
    # A difference on purpose: within RETURNING, SQLite (3.40) finds 40.0 >= column true where the column holds 100.
    return Job.running_s + _taken(now_utc()) - Job.max_runtime_s >= 0


def _taken(until: SQLColumnExpression[Any]) -> ColumnElement[float]:
    """What the attempt took; 0 where no worker holds the job, and where the clock was set back meanwhile."""
    seconds = func.coalesce(seconds_between(Job.claimed_at, until), 0.0)
    return case((seconds > 0, seconds), else_=0.0)
