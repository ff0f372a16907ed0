"""What a storm left in the database and the storage, counted. Reads only; a count that should be none is a defect."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.exceptions import Unavailable
from app.jobs.messages import EventType
from app.jobs.status import JobStatus, may_move
from app.storage import BlobStore
from app.tables import Classifier, Job, JobEvent
from bench.chaos.storm import Fault

STATUS = EventType.STATUS.value
ECHO = timedelta(seconds=1.5)
"""What an attempt tells for so long after a fault was under way before it."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Counts of jobs, unless said otherwise."""

    accepted: int
    """Submissions that were answered with 202."""
    succeeded: int
    attempts: int
    """Of all jobs together."""
    lost: int
    """Accepted, and not there, another submission's, or without an end."""
    not_succeeded: int
    """Ended otherwise."""
    submitted_twice: int
    """There is another one of the same submission."""
    published_otherwise_than_once: int
    """Succeeded, and there is not exactly one adapted classifier, or not exactly one move to ``succeeded``."""
    written_by_the_dead: int
    """Events of an attempt after it had ended or a later one had begun. Not seen: of one that was given back, while its
    heir runs, for the two have one number."""
    illegal_moves: int
    """Of their status."""
    damaged: int
    """Files of classifiers that are not there or are not what was stored."""

    @property
    def defects(self) -> int:
        """Sum of what should be none."""
        return (
            self.lost
            + self.not_succeeded
            + self.submitted_twice
            + self.published_otherwise_than_once
            + self.written_by_the_dead
            + self.illegal_moves
            + self.damaged
        )


def audit(session: Session, storage: BlobStore, accepted: Mapping[str, str]) -> Audit:
    """Count. ``accepted``: names of submissions -> ids of their jobs; no other jobs are in the database."""
    jobs = {row.id: row for row in session.execute(select(Job.id, Job.name, Job.status, Job.attempt))}
    published = Counter(session.scalars(select(Classifier.job_id).where(Classifier.kind == "adapted")))
    events = _events_by_job(session)
    succeeded = [job_id for job_id, job in jobs.items() if job.status == JobStatus.SUCCEEDED]
    moves = {job_id: [e.status for e in events[job_id] if e.status is not None] for job_id in jobs}
    return Audit(
        accepted=len(accepted),
        succeeded=len(succeeded),
        attempts=sum(job.attempt for job in jobs.values()),
        lost=sum(
            i not in jobs or jobs[i].name != name or not JobStatus(jobs[i].status).is_terminal
            for name, i in accepted.items()
        ),
        not_succeeded=sum(JobStatus(job.status).is_terminal for job in jobs.values()) - len(succeeded),
        submitted_twice=len(jobs) - len({job.name for job in jobs.values()}),
        published_otherwise_than_once=sum(
            published[i] != 1 or moves[i].count(JobStatus.SUCCEEDED) != 1 for i in succeeded
        )
        + sum(job_id not in succeeded for job_id in published),
        written_by_the_dead=sum(_is_written_by_the_dead(events[job_id]) for job_id in jobs),
        illegal_moves=sum(not all(may_move(a, b) for a, b in pairwise(moves[job_id])) for job_id in jobs),
        damaged=sum(_is_damaged(storage, sha256) for sha256 in _files(session)),
    )


@dataclass(frozen=True)
class _Event:
    attempt: int
    status: JobStatus | None


def _events_by_job(session: Session) -> Mapping[str, list[_Event]]:
    found: dict[str, list[_Event]] = defaultdict(list)
    for row in session.execute(select(JobEvent.job_id, JobEvent.type, JobEvent.data).order_by(JobEvent.id)):
        status = JobStatus(row.data["status"]) if row.type == STATUS else None
        found[row.job_id].append(_Event(row.data.get("attempt", 0), status))
    return found


def _is_written_by_the_dead(events: Sequence[_Event]) -> bool:
    """Of an attempt that had let go, or while a later one ran. Who is given back does not count, so that numbers of
    attempts may come again, but not before the job is claimed again."""
    latest, held = 0, False
    for event in events:
        if event.status is JobStatus.RUNNING:
            held, latest = True, event.attempt
        elif event.status is not None and event.status is not JobStatus.CANCELLING:
            held = False
        elif not held or event.attempt < latest:
            return True
    return False


def _files(session: Session) -> Iterable[str]:
    return {sha256 for files in session.scalars(select(Classifier.files)) for sha256 in files.values()}


def _is_damaged(storage: BlobStore, sha256: str) -> bool:
    try:
        storage.verify(sha256)
    except Unavailable:
        return True
    return False


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """After a fault of some kind."""

    kind: str
    seconds: float | None
    """Until the job that it hit was taken up again; None where its attempt went on, or was at an end by an earlier
    fault."""


def recoveries(session: Session, faults: Sequence[Fault]) -> list[Recovery]:
    """How soon things went on, one for each job that a fault hit. Of several faults that befell an attempt, the first
    after which it told nothing any more is the one that ended it."""
    hits: dict[tuple[str, int], list[Fault]] = defaultdict(list)
    for fault in sorted(faults, key=lambda fault: fault.at):
        for hit in fault.jobs.items():
            hits[hit].append(fault)
    found = [Recovery(kind=f.kind, seconds=f.back_after_s) for f in faults if f.back_after_s is not None]
    for (job_id, _), befell in hits.items():
        again = _next_start(session, job_id, befell[-1].at)
        told = _last_told(session, job_id, befell[0].at, again)
        fatal = next((fault for fault in befell if told is None or told <= fault.at + ECHO), befell[-1])
        for fault in befell:
            seconds = (again - fault.at).total_seconds() if again is not None and fault is fatal else None
            found.append(Recovery(kind=fault.kind, seconds=seconds))
    return found


def _next_start(session: Session, job_id: str, after: datetime) -> datetime | None:
    running = JobEvent.data["status"].as_string() == JobStatus.RUNNING.value
    query = select(func.min(JobEvent.at)).where(
        JobEvent.job_id == job_id, JobEvent.type == STATUS, running, JobEvent.at > after
    )
    return session.scalar(query)


def _last_told(session: Session, job_id: str, since: datetime, until: datetime | None) -> datetime | None:
    """When the attempt last told how it goes."""
    told = (JobEvent.job_id == job_id, JobEvent.type != STATUS, JobEvent.at > since)
    query = select(func.max(JobEvent.at)).where(*told)
    return session.scalar(query if until is None else query.where(JobEvent.at < until))
