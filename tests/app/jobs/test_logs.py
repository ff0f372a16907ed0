"""Logs of jobs: fenced, told once, bounded, gone with their job."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.jobs.claims import ClaimStore
from app.jobs.errors import LeaseLost
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError, LogEntry, LogLine, LogStream, Report
from app.jobs.store import JobStore
from app.tables import Job, JobLogChunk
from tests.support.jobs import add_job

LEASE = timedelta(seconds=60)
LIMIT = 128 * 1024


def line(number: int, text: str | None = None, age: float = 0) -> LogLine:
    told = f"line {number}" if text is None else text
    return LogLine(number=number, age=timedelta(seconds=age), stream=LogStream.STDOUT, text=told)


def entries(sessions: sessionmaker[Session], job_id: str) -> list[LogEntry]:
    with sessions() as session, session.begin():
        return list(JobStore(session).log(job_id))


def texts(sessions: sessionmaker[Session], job_id: str) -> list[str]:
    return [entry.text for entry in entries(sessions, job_id)]


def take(ledger: Ledger, job_id: str) -> Claim:
    claim = ledger.claim("w", LEASE, job_id)
    assert claim is not None
    return claim


def test_lines_are_kept_with_their_attempt_and_the_databases_time(sessions: sessionmaker[Session]) -> None:
    job_id, ledger = add_job(sessions), Ledger(sessions)
    claim = take(ledger, job_id)
    ledger.report(claim, Report(log=(line(1, age=3600), line(2, "evil \x1b[31m \x00"))))
    ledger.retry_later(claim, JobError(code="c", message="m"), timedelta(0))
    ledger.report(take(ledger, job_id), Report(log=(line(1, "again"),)))
    found = entries(sessions, job_id)
    assert [(e.line, e.attempt, e.claim, e.text) for e in found] == [
        (1, 1, 1, "line 1"), (2, 1, 1, "evil \\x1b[31m \\x00"), (3, 2, 2, "again"),
    ]  # fmt: skip
    assert abs(datetime.now(UTC) - timedelta(hours=1) - found[0].at) < timedelta(seconds=60)


def test_lines_that_are_told_again_are_kept_once(sessions: sessionmaker[Session]) -> None:
    job_id, ledger = add_job(sessions), Ledger(sessions)
    claim = take(ledger, job_id)
    ledger.report(claim, Report(log=(line(1), line(2))))
    ledger.report(claim, Report(log=(line(1), line(2))))
    ledger.report(claim, Report(log=(line(2), line(3))))
    assert texts(sessions, job_id) == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize("fence", ["fenced", "unfenced"])
def test_a_zombies_lines_are_refused(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch, fence: str
) -> None:
    """Unfenced is the negative control: there the zombie's line is in the log."""
    job_id, ledger = add_job(sessions), Ledger(sessions)
    zombie = take(ledger, job_id)
    with sessions() as session, session.begin():
        session.execute(update(Job).values(lease_until=now_plus(-LEASE)))
    heir = take(ledger, job_id)
    ledger.report(heir, Report(log=(line(1, "the heir's"),)))
    if fence == "unfenced":
        monkeypatch.setattr(ClaimStore, "_fence", lambda _, claim: (Job.id == claim.job_id,))
        ledger.report(zombie, Report(log=(line(1, "the zombie's"),)))
        assert texts(sessions, job_id) == ["the heir's", "the zombie's"]
        return
    with pytest.raises(LeaseLost):
        ledger.report(zombie, Report(log=(line(1, "the zombie's"),)))
    assert texts(sessions, job_id) == ["the heir's"]


def stored_bytes(sessions: sessionmaker[Session], job_id: str) -> int:
    with sessions() as session, session.begin():
        chunks = session.scalars(select(JobLogChunk.lines).where(JobLogChunk.job_id == job_id))
        return sum(len(json.dumps(lines)) for lines in chunks)


def test_a_log_is_bounded_keeps_both_ends_and_says_what_is_missing(sessions: sessionmaker[Session]) -> None:
    """And that the bound is the reason: with room for all, the same lines are all there."""
    bounded, whole = add_job(sessions), add_job(sessions)
    small, large = Ledger(sessions, max_log_bytes=LIMIT), Ledger(sessions, max_log_bytes=10**9)
    for ledger, job_id in ((small, bounded), (large, whole)):
        claim = take(ledger, job_id)
        for first in range(1, 3001, 50):
            ledger.report(claim, Report(log=tuple(line(n, f"{n} {'x' * 80}") for n in range(first, first + 50))))
            if ledger is small:
                assert stored_bytes(sessions, job_id) <= LIMIT
    assert len(entries(sessions, whole)) == 3000
    found = entries(sessions, bounded)
    assert stored_bytes(sessions, bounded) > LIMIT * 0.8
    assert (found[0].line, found[-1].line) == (1, 3000)
    (note,) = [entry for entry in found if entry.stream is LogStream.NOTE]
    at = found.index(note)
    missing = int(note.text.split()[0])
    assert len(found) - 1 + missing == 3000
    assert found[at - 1].line + missing == note.line == found[at + 1].line - 1
    assert all(entry.text.startswith(f"{entry.line} ") for entry in found if entry is not note)


def test_a_later_attempt_leaves_the_beginning_of_the_first(sessions: sessionmaker[Session]) -> None:
    job_id, ledger = add_job(sessions), Ledger(sessions, max_log_bytes=LIMIT)
    for attempt in (1, 2, 3):
        claim = take(ledger, job_id)
        for first in range(1, 2001, 100):
            ledger.report(claim, Report(log=tuple(line(n, f"{n} {'x' * 80}") for n in range(first, first + 100))))
        if attempt < 3:
            ledger.retry_later(claim, JobError(code="c", message="m"), timedelta(0))
    found = entries(sessions, job_id)
    assert stored_bytes(sessions, job_id) <= LIMIT
    assert (found[0].attempt, found[-1].attempt) == (1, 3)
    assert sum(entry.stream is LogStream.NOTE for entry in found) == 1


def test_a_log_goes_with_its_job(sessions: sessionmaker[Session]) -> None:
    job_id, other, ledger = add_job(sessions), add_job(sessions), Ledger(sessions)
    for each in (job_id, other):
        ledger.report(take(ledger, each), Report(log=(line(1),)))
    with sessions() as session, session.begin():
        session.execute(delete(Job).where(Job.id == job_id))
        left = session.scalars(select(JobLogChunk.job_id)).all()
        assert session.scalar(select(func.count()).select_from(Job)) == 1
    assert left == [other]
