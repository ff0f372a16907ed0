"""What finished jobs told while they ran: kept for a while, and then what is left says how they ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, delete, select
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, read_only
from app.housekeeping.chores import ChoreList, note_reached
from app.jobs.messages import EventType
from app.tables import Job, JobEvent, JobLogChunk

CHORE = "history"

FORGOTTEN = (EventType.METRICS.value, EventType.PHASE.value)
"""Events of which a job has many. The few others say what became of it."""
_JOBS_AT_ONCE = 20


@dataclass(kw_only=True)
class Forgotten:
    """What was removed so far."""

    num_jobs: int = 0
    """Finished jobs that were looked at."""
    num_events: int = 0
    num_log_chunks: int = 0


class History:
    """Removes old events and logs, some jobs a transaction."""

    def __init__(self, sessions: sessionmaker[Session], *, retention: timedelta) -> None:
        self._sessions = sessions
        self._retention = retention

    def forget(self, *, stop: Callable[[], bool] = lambda: False) -> Forgotten:
        """Go on from where the last call ended, through all jobs that finished longer ago than is kept."""
        found = Forgotten()
        after = ChoreList(self._sessions).reached(CHORE)
        while not stop() and (jobs := self._finished(after)):
            after = jobs[-1][1]
            with self._sessions.begin() as session:
                self._remove(session, [job_id for job_id, _ in jobs], found)
                note_reached(session, CHORE, after)
        return found

    def _finished(self, after: datetime | None) -> Sequence[tuple[str, datetime]]:
        """The next jobs in the order in which they finished, with all that finished at the same time as the last."""
        query = select(Job.id, Job.finished_at).where(
            Job.finished_at.is_not(None), Job.finished_at < now_plus(-self._retention)
        )
        if after is not None:
            query = query.where(Job.finished_at > after)
        with read_only(self._sessions) as session:
            first = session.execute(query.order_by(Job.finished_at).limit(_JOBS_AT_ONCE)).all()
            if not first:
                return []
            last = first[-1].finished_at
            same = session.execute(query.where(Job.finished_at == last)).all()
        return [(row.id, row.finished_at) for row in first if row.finished_at < last] + [(r.id, last) for r in same]

    @staticmethod
    def _remove(session: Session, job_ids: Sequence[str], found: Forgotten) -> None:
        # One that was resumed meanwhile keeps what it has.
        jobs = select(Job.id).where(Job.id.in_(job_ids), Job.finished_at.is_not(None))
        events = delete(JobEvent).where(JobEvent.job_id.in_(jobs), JobEvent.type.in_(FORGOTTEN))
        chunks = delete(JobLogChunk).where(JobLogChunk.job_id.in_(jobs))
        found.num_jobs += len(job_ids)
        found.num_events += _execute(session, events)
        found.num_log_chunks += _execute(session, chunks)


def _execute(session: Session, statement: Delete) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    return cast("CursorResult[Any]", result).rowcount
