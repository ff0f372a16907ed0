"""What finished jobs keep, and for how long."""

from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.housekeeping import history
from app.housekeeping.history import History
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, JobError, LogLine, LogStream, Publication, Report
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Job
from tests.support.jobs import add_job, read_job

Sessions = sessionmaker[Session]
LEASE = timedelta(seconds=60)
KEPT = timedelta(days=90)


def run(sessions: Sessions, *, days_ago: float | None) -> str:
    """A job that told this and that, and failed so long ago; None: it runs still."""
    job_id, ledger = add_job(sessions), Ledger(sessions)
    claim = ledger.claim("w", LEASE, job_id)
    assert claim is not None
    line = LogLine(number=1, age=timedelta(0), stream=LogStream.STDOUT, text="a line")
    events = (
        (EventType.PHASE, {"phase": "training"}),
        (EventType.METRICS, {"metrics": {"loss": 1.0}, "progress": {"step": 1}}),
        (EventType.CHOICES, {"choices": {}}),
        (EventType.ROLLED_BACK, {"reasons": [], "to_step": 1}),
    )
    ledger.report(claim, Report(events=events, log=(line,)))
    if days_ago is not None:
        ledger.fail(claim, JobError(code="diverged", message="m"))
        with sessions.begin() as session:
            finished = now_plus(-timedelta(days=days_ago))
            session.execute(update(Job).where(Job.id == job_id).values(finished_at=finished))
    return job_id


def told(sessions: Sessions, job_id: str) -> tuple[list[EventType], int]:
    """Kinds of a job's events, and lines of its log."""
    with sessions.begin() as session:
        store = JobStore(session)
        return [event.type for event in store.events(job_id)], len(store.log(job_id))


ALL = [EventType.STATUS, EventType.STATUS, EventType.PHASE, EventType.METRICS, EventType.CHOICES, EventType.ROLLED_BACK]
LEFT = [EventType.STATUS, EventType.STATUS, EventType.CHOICES, EventType.ROLLED_BACK]


def test_old_jobs_keep_what_became_of_them(sessions: Sessions) -> None:
    old, young, running = (run(sessions, days_ago=days) for days in (91, 89, None))
    transitions = read_job(sessions, old).transitions
    assert told(sessions, old) == ([*ALL, EventType.STATUS], 1)
    found = History(sessions, retention=KEPT).forget()
    assert (found.num_jobs, found.num_events, found.num_log_chunks) == (1, 2, 1)
    assert told(sessions, old) == ([*LEFT, EventType.STATUS], 0)
    assert told(sessions, young) == ([*ALL, EventType.STATUS], 1)
    assert told(sessions, running) == (ALL, 1)
    assert read_job(sessions, old).transitions == transitions


def test_each_job_is_looked_at_once_and_a_resumed_one_again(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_JOBS_AT_ONCE", 2)
    days = (200, 190, 190, 190, 180, 170)
    jobs = [run(sessions, days_ago=n) for n in days]
    with sessions.begin() as session:  # some that finished at the very same time
        same = session.get(Job, jobs[1])
        assert same is not None
        session.execute(update(Job).where(Job.id.in_(jobs[1:4])).values(finished_at=same.finished_at))
    keeper = History(sessions, retention=KEPT)
    assert keeper.forget(stop=iter([False, True]).__next__).num_jobs == 4, "it ended early"
    assert keeper.forget().num_jobs == 2
    assert keeper.forget().num_jobs == 0
    assert all(told(sessions, job_id)[1] == 0 for job_id in jobs)

    with sessions.begin() as session:
        JobStore(session).request_resume(jobs[0])
    ledger = Ledger(sessions)
    claim = ledger.claim("w", LEASE, jobs[0])
    assert claim is not None
    ledger.report(claim, Report(events=((EventType.PHASE, {"phase": "training"}),)))
    files = {"bundle.json": "0" * 64}
    ledger.publish(claim, Publication(classifier_id="clf_1", files=files, version="0", metrics={}, verdict=None))
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == jobs[0]).values(finished_at=now_plus(-timedelta(days=91))))
    assert (keeper.forget().num_events, read_job(sessions, jobs[0]).status) == (1, JobStatus.SUCCEEDED)


def test_a_job_resumed_meanwhile_keeps_what_it_has(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = run(sessions, days_ago=91)
    remove = History._remove

    def resume_then_remove(session: Session, *rest: object) -> None:
        JobStore(session).request_resume(job_id)
        remove(session, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(History, "_remove", staticmethod(resume_then_remove))
    History(sessions, retention=KEPT).forget()
    assert told(sessions, job_id) == ([*ALL, EventType.STATUS, EventType.STATUS], 1)
