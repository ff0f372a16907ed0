"""Rows that contradict each other: what no constraint of the database can forbid."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.admin.problems import Problem
from app.classifiers.messages import bundle_version
from app.jobs.messages import EventType
from app.jobs.status import JobStatus, may_move
from app.tables import Alias, AliasMove, Classifier, Dataset, DatasetImage, Job, JobEvent, JobReport, RejectedFile

_ROWS_AT_ONCE = 1000

_SUCCEEDED = Job.status == JobStatus.SUCCEEDED.value
_HELD = Job.status.in_([status.value for status in JobStatus if status.is_held])
_ENDED = Job.status.in_([status.value for status in JobStatus if status.is_terminal])


class _Rule(NamedTuple):
    """Rows that should not be: the query selects an id and what to say besides."""

    code: str
    sentence: str
    query: Select[*tuple[Any, ...]]


def _jobs(where: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return select(Job.id, Job.status).where(where)


def _miscounted(column: Any, counted: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Datasets whose column is not what was counted of their rows."""
    found = counted.subquery()
    actual = func.coalesce(found.c[1], 0)
    return select(Dataset.id, column, actual).outerjoin(found, found.c[0] == Dataset.id).where(column != actual)


_of_images = select(DatasetImage.dataset_id, func.count()).group_by(DatasetImage.dataset_id)
_of_bytes = select(DatasetImage.dataset_id, func.sum(DatasetImage.num_bytes)).group_by(DatasetImage.dataset_id)
_of_rejected = select(RejectedFile.dataset_id, func.count()).group_by(RejectedFile.dataset_id)
_answering = select(Job.id, Job.classifier_id, Classifier.job_id).join(Classifier, Job.classifier_id == Classifier.id)
_publishing = select(Classifier.id, Job.id, Job.status).join(Job, Job.id == Classifier.job_id)
_reported = select(Job.id, Job.status).join(JobReport, JobReport.job_id == Job.id)
_last_moves = select(Alias.name, Alias.classifier_id, AliasMove.classifier_id).outerjoin(
    AliasMove,
    and_(AliasMove.tenant == Alias.tenant, AliasMove.name == Alias.name, AliasMove.number == Alias.num_moves),
)
_has_status_event = exists().where(JobEvent.job_id == Job.id, JobEvent.type == EventType.STATUS.value)

RULES = (
    _Rule(
        "job_without_classifier",
        "is {} and answers with no classifier",
        _jobs(and_(_SUCCEEDED, Job.classifier_id.is_(None))),
    ),
    _Rule(
        "job_with_early_classifier",
        "is {} and answers with a classifier",
        _jobs(and_(~_SUCCEEDED, Job.classifier_id.is_not(None))),
    ),
    _Rule(
        "job_with_foreign_classifier",
        "answers with {}, which is of job {}",
        _answering.where(Classifier.job_id.is_distinct_from(Job.id)),
    ),
    _Rule("classifier_of_unfinished_job", "is of {}, which is {}", _publishing.where(~_SUCCEEDED)),
    _Rule("report_of_unfinished_job", "is {} and has a report", _reported.where(~_SUCCEEDED)),
    _Rule("job_without_dataset", "is {} and has no dataset", _jobs(and_(~_ENDED, Job.dataset_id.is_(None)))),
    _Rule(
        "job_without_lease",
        "is {} and nobody holds it",
        _jobs(and_(_HELD, or_(Job.lease_until.is_(None), Job.owner.is_(None)))),
    ),
    _Rule("job_with_lease", "is {} and has a lease", _jobs(and_(~_HELD, Job.lease_until.is_not(None)))),
    _Rule("job_without_end", "is {} and never finished", _jobs(and_(_ENDED, Job.finished_at.is_(None)))),
    _Rule("job_with_early_end", "is {} and has finished", _jobs(and_(~_ENDED, Job.finished_at.is_not(None)))),
    _Rule(
        "job_without_error",
        "is {} for no reason",
        _jobs(and_(Job.status == JobStatus.FAILED.value, Job.error.is_(None))),
    ),
    _Rule(
        "job_with_wrong_attempts",
        "forgives {} of {} attempts",
        select(Job.id, Job.attempts_forgiven, Job.attempt).where(Job.attempts_forgiven > Job.attempt),
    ),
    _Rule("job_without_history", "is {}, and no event says how that came", _jobs(~_has_status_event)),
    _Rule(
        "alias_without_its_move",
        "is {}, and was last pointed at {}",
        _last_moves.where(AliasMove.classifier_id.is_distinct_from(Alias.classifier_id)),
    ),
    _Rule("dataset_with_wrong_count", "says {} images and has {}", _miscounted(Dataset.num_images, _of_images)),
    _Rule("dataset_with_wrong_bytes", "says {} bytes and has {}", _miscounted(Dataset.total_bytes, _of_bytes)),
    _Rule(
        "dataset_with_wrong_rejected",
        "says {} rejected files and lists {}",
        _miscounted(Dataset.num_rejected, _of_rejected),
    ),
)


def broken_rules(session: Session, rule: _Rule) -> Iterator[Problem]:
    """The rows that break a rule."""
    for row in session.execute(rule.query.execution_options(yield_per=_ROWS_AT_ONCE)):
        yield Problem(code=rule.code, subject=row[0], detail=rule.sentence.format(*row[1:]))


def broken_histories(session: Session) -> Iterator[Problem]:
    """Jobs whose events tell of a move that there is not, or end elsewhere than the job."""
    query = (
        select(JobEvent.job_id, JobEvent.id, JobEvent.data, Job.status)
        .join(Job, Job.id == JobEvent.job_id)
        .where(JobEvent.type == EventType.STATUS.value)
        .order_by(JobEvent.job_id, JobEvent.id)
    )
    job_id, at, status = "", "", ""
    for row in session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)):
        if row.job_id != job_id:
            yield from _wrong_end(job_id, at, status)
            job_id, at = row.job_id, ""
        target = str(row.data.get("status"))
        if not _is_move(at, target):
            yield Problem(
                code="illegal_move",
                subject=job_id,
                detail=f"event {row.id} moves it from {at or 'nothing'} to {target}",
            )
        at, status = target, row.status
    yield from _wrong_end(job_id, at, status)


def _is_move(source: str, target: str) -> bool:
    if target not in set(JobStatus):
        return False
    if not source:
        return target == JobStatus.QUEUED.value
    return source in set(JobStatus) and may_move(JobStatus(source), JobStatus(target))


def _wrong_end(job_id: str, at: str, status: str) -> Iterator[Problem]:
    if at != status:
        yield Problem(code="history_ends_elsewhere", subject=job_id, detail=f"is {status}; its events end at {at}")


def broken_bundles(session: Session) -> Iterator[Problem]:
    """Classifiers whose files are not what their kind and version say."""
    query = select(Classifier.id, Classifier.kind, Classifier.files, Classifier.version)
    for row in session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)):
        adapted = row.kind == "adapted"
        if adapted is not bool(row.files):
            yield Problem(
                code="classifier_with_wrong_files",
                subject=row.id,
                detail=f"is {row.kind} and has {len(row.files)} files",
            )
        elif adapted and row.version != bundle_version(row.files):
            yield Problem(
                code="classifier_with_wrong_version", subject=row.id, detail="its version is not that of its files"
            )
