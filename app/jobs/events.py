"""The durable events of jobs.

Every transaction that adds an event to a job has changed or inserted that job's row first. The row's lock then orders
the transactions, so within one job the ids become visible in order and a reader that asks for "after 17" misses
nothing. Across jobs no such order is promised.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.database import now_utc
from app.jobs.messages import Event, EventType, StatusChange
from app.jobs.status import JobStatus
from app.tables import JobEvent


def add_event(session: Session, job_id: str, kind: EventType, data: Mapping[str, Any]) -> None:
    """Append one event. The caller has written the job's row in this transaction."""
    session.execute(insert(JobEvent).values(job_id=job_id, at=now_utc(), type=kind.value, data=dict(data)))


def add_status_event(session: Session, job_id: str, status: JobStatus, message: str, attempt: int) -> None:
    """Append the event of a status move, in the same transaction as the move."""
    add_event(
        session,
        job_id,
        EventType.STATUS,
        {"status": status.value, "message": message, "attempt": attempt},
    )


def list_events(session: Session, job_id: str, *, after: int, limit: int) -> list[Event]:
    """The job's first ``limit`` events with ids above ``after``, in order."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id).limit(limit)
    return [
        Event(id=row.id, job_id=row.job_id, at=row.at, type=EventType(row.type), data=row.data)
        for row in session.scalars(query)
    ]


def last_event_id(session: Session, job_id: str) -> int:
    """Id of the job's newest event; 0 when it has none."""
    return session.scalar(select(func.max(JobEvent.id)).where(JobEvent.job_id == job_id)) or 0


def metrics_history(session: Session, job_id: str) -> list[tuple[int, dict[str, float]]]:
    """Steps and what was measured there, ascending. Steps that an attempt did again are those of the later attempt."""
    query = (
        select(JobEvent.data)
        .where(JobEvent.job_id == job_id, JobEvent.type == EventType.METRICS.value)
        .order_by(JobEvent.id)
    )
    history: list[tuple[int, dict[str, float]]] = []
    for data in session.scalars(query):
        step = (data.get("progress") or {}).get("step")
        if step is None:
            continue
        while history and history[-1][0] >= step:
            history.pop()
        history.append((step, data["metrics"]))
    return history


def training_end(session: Session, job_id: str) -> tuple[EventType, Mapping[str, Any]] | None:
    """The newest event of a training that ended sooner than planned: ``ROLLED_BACK`` or ``SETTLED``, with its data.

    Only of the last attempt: what is published is its training's.
    """
    kinds = (EventType.STATUS.value, EventType.ROLLED_BACK.value, EventType.SETTLED.value)
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type.in_(kinds)).order_by(JobEvent.id.desc())
    for row in session.scalars(query):
        if row.type != EventType.STATUS.value:
            return EventType(row.type), row.data
        if row.data["status"] == JobStatus.RUNNING.value:
            break
    return None


def claims_before_resumes(session: Session, job_id: str) -> list[int]:
    """For each time that the job was resumed, how often workers had taken it until then."""
    resumes, num_claims, before = [], 0, JobStatus.QUEUED
    for change in status_changes(session, [job_id])[job_id]:
        num_claims += change.status is JobStatus.RUNNING
        if before.is_terminal:
            resumes.append(num_claims)
        before = change.status
    return resumes


def status_changes(session: Session, job_ids: Sequence[str]) -> dict[str, tuple[StatusChange, ...]]:
    """Each job's history, oldest first."""
    query = (
        select(JobEvent.job_id, JobEvent.at, JobEvent.data)
        .where(JobEvent.job_id.in_(job_ids), JobEvent.type == EventType.STATUS.value)
        .order_by(JobEvent.id)
    )
    changes: dict[str, list[StatusChange]] = {job_id: [] for job_id in job_ids}
    for job_id, at, data in session.execute(query):
        changes[job_id].append(StatusChange(status=JobStatus(data["status"]), at=at, message=data["message"]))
    return {job_id: tuple(found) for job_id, found in changes.items()}
