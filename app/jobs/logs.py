"""The logs of jobs: what their trainers wrote, as lines for users to read.

A chunk of lines comes with a report of the attempt that holds the job, in the same transaction and behind the same
fence, so a zombie adds nothing. The first quarter of the bytes that a job may keep is for the beginning of its log, the
rest for the newest: what lies between goes, whole chunks at a time, and readers are told how many lines that was. See
docs/decisions/012-job-logs.md.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from app.database import now_utc
from app.jobs.events import claims_before_resumes
from app.jobs.messages import Claim, LogEntry, LogLine, LogStream
from app.log import escape_controls
from app.tables import JobLogChunk

HEAD_SHARE = 4


class JobLogStore:
    """Reads and writes logs on one session; the caller owns the transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(self, claim: Claim, lines: Sequence[LogLine], *, at_most_bytes: int) -> None:
        """Add lines to the log of a job whose fence the caller has just passed; lines told before are not repeated.

        Whatever the number of calls, at most ``at_most_bytes`` of lines are kept, as stored, and the newest chunk.
        """
        last = self._session.execute(
            select(JobLogChunk).where(JobLogChunk.job_id == claim.job_id).order_by(JobLogChunk.number.desc()).limit(1)
        ).scalar_one_or_none()
        if last is not None and last.attempt == claim.attempt:
            lines = [line for line in lines if line.number > last.last_told]
        if not lines:
            return
        now = self._session.scalar(select(now_utc()))
        assert now is not None  # noqa: S101 - a clock always answers
        stored = [
            [round((now - line.age).timestamp() * 1000), line.stream.value, escape_controls(line.text)]
            for line in lines
        ]
        num_bytes = len(json.dumps(stored).encode())
        end_byte = num_bytes + (last.end_byte if last else 0)
        number = last.number + 1 if last else 1
        self._session.execute(
            insert(JobLogChunk).values(
                job_id=claim.job_id,
                number=number,
                attempt=claim.attempt,
                ordinal=claim.ordinal,
                first_line=last.first_line + last.num_lines if last else 1,
                num_lines=len(stored),
                last_told=lines[-1].number,
                num_bytes=num_bytes,
                end_byte=end_byte,
                lines=stored,
            )
        )
        if end_byte <= at_most_bytes:
            return
        head = at_most_bytes // HEAD_SHARE
        self._session.execute(
            delete(JobLogChunk)
            .where(
                JobLogChunk.job_id == claim.job_id,
                JobLogChunk.number < number,
                JobLogChunk.end_byte > head,
                JobLogChunk.end_byte - JobLogChunk.num_bytes < end_byte - (at_most_bytes - head),
            )
            .execution_options(synchronize_session=False)
        )

    def entries(self, job_id: str) -> Sequence[LogEntry]:
        """All that is kept, oldest first, with a note where lines are missing. No more than a log's bound."""
        chunks = self._session.scalars(
            select(JobLogChunk).where(JobLogChunk.job_id == job_id).order_by(JobLogChunk.number)
        ).all()
        return list(_entries(chunks, claims_before_resumes(self._session, job_id) if chunks else ()))


def _entries(chunks: Sequence[JobLogChunk], resumes: Sequence[int]) -> Iterator[LogEntry]:
    expected = 1
    for chunk in chunks:
        num_resumed = bisect_left(resumes, chunk.attempt)
        if chunk.first_line > expected:
            text = f"{chunk.first_line - expected} lines are not kept: the log was longer than it may be"
            yield _entry(chunk, num_resumed, chunk.first_line - 1, [chunk.lines[0][0], LogStream.NOTE.value, text])
        for offset, line in enumerate(chunk.lines):
            yield _entry(chunk, num_resumed, chunk.first_line + offset, line)
        expected = chunk.first_line + chunk.num_lines


def _entry(chunk: JobLogChunk, num_resumed: int, number: int, line: Sequence[Any]) -> LogEntry:
    milliseconds, stream, text = line
    return LogEntry(
        line=number,
        claim=chunk.attempt,
        attempt=chunk.ordinal,
        num_resumed=num_resumed,
        at=datetime.fromtimestamp(milliseconds / 1000, UTC),
        stream=LogStream(stream),
        text=text,
    )
