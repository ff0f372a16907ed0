"""Jobs as users see and steer them."""

from datetime import timedelta

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc
from app.exceptions import Conflict, NotFound
from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, JobError, NewJob, Report
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Job, JobEvent, JobReport
from tests.support.jobs import add_dataset, add_job, read_job

LEASE = timedelta(seconds=60)


def cancel(sessions: sessionmaker[Session], job_id: str) -> JobStatus:
    with sessions() as session, session.begin():
        return JobStore(session).request_cancel(job_id)


def resume(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions() as session, session.begin():
        JobStore(session).request_resume(job_id)


def test_a_job_reads_back_as_it_was_submitted(sessions: sessionmaker[Session]) -> None:
    new = NewJob(
        id=new_id("job"),
        dataset_id=add_dataset(sessions),
        base_model="tiny-clip",
        classes=["cat", {"name": "dog", "prompts": ["a puppy"]}],
        templates=["{}"],
        hyperparameters={"epochs": "auto", "batch_size": 8},
        seed=2**62,
        max_attempts=5,
        promotion=Promotion.MANUAL,
        name="pets",
        metadata={"team": "a"},
    )
    with sessions() as session, session.begin():
        JobStore(session).add(new)
    view = read_job(sessions, new.id)
    same = ("id", "dataset_id", "classes", "templates", "hyperparameters", "seed", "promotion", "name", "metadata")
    for name in same:
        assert getattr(view, name) == getattr(new, name), name
    assert (view.status, view.attempt, view.max_attempts) == (JobStatus.QUEUED, 0, 5)
    assert view.created_at.tzinfo is not None
    assert [(t.status, t.message) for t in view.transitions] == [(JobStatus.QUEUED, "Accepted.")]
    assert view.started_at is view.finished_at is view.error is view.metrics is None
    assert view.verdict is view.classifier_id is view.adapted_classifier_id is None


def test_a_job_of_a_missing_dataset_is_refused(sessions: sessionmaker[Session]) -> None:
    with pytest.raises(NotFound):
        add_job(sessions, dataset_id="ds_gone")


def test_unknown_ids(sessions: sessionmaker[Session]) -> None:
    with sessions() as session, session.begin():
        assert JobStore(session).get("job_x") is None
        assert JobStore(session).last_event_id("job_x") == 0
    with pytest.raises(NotFound):
        cancel(sessions, "job_x")
    with pytest.raises(NotFound):
        resume(sessions, "job_x")


def test_lists_are_newest_first_and_page_without_gaps(sessions: sessionmaker[Session]) -> None:
    ids = sorted((add_job(sessions) for _ in range(5)), reverse=True)
    with sessions() as session, session.begin():
        store = JobStore(session)
        first = [job.id for job in store.list(limit=2)]
        second = [job.id for job in store.list(limit=2, after=first[-1])]
        rest = [job.id for job in store.list(limit=2, after=second[-1])]
    assert first + second + rest == ids


def test_cancelling_a_queued_job_is_immediate(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    assert cancel(sessions, job_id) is JobStatus.CANCELLED
    view = read_job(sessions, job_id)
    assert view.status is JobStatus.CANCELLED
    assert view.finished_at is not None
    assert Ledger(sessions).claim("w", LEASE) is None
    with pytest.raises(Conflict, match="job_not_cancellable"):
        cancel(sessions, job_id)


def test_cancelling_a_running_job_asks_once(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    claim = ledger.claim("w", LEASE)
    assert claim is not None
    assert not ledger.beat(claim, LEASE).cancel_requested
    assert cancel(sessions, job_id) is JobStatus.CANCELLING
    assert cancel(sessions, job_id) is JobStatus.CANCELLING
    assert ledger.beat(claim, LEASE).cancel_requested
    assert ledger.cancelled(claim) is JobStatus.CANCELLED
    history = [t.status.value for t in read_job(sessions, job_id).transitions]
    assert history == ["queued", "running", "cancelling", "cancelled"]


def test_resume_gives_a_failed_job_all_its_attempts_again(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, max_attempts=1)
    ledger = Ledger(sessions)
    first = ledger.claim("w", LEASE)
    assert first is not None
    ledger.fail(first, JobError(code="diverged", message="The loss is not finite.", param="learning_rate"))
    failed = read_job(sessions, job_id)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 1)
    assert failed.error == JobError(code="diverged", message="The loss is not finite.", param="learning_rate")

    resume(sessions, job_id)
    view = read_job(sessions, job_id)
    assert (view.status, view.attempt, view.error, view.finished_at) == (JobStatus.QUEUED, 0, None, None)
    second = ledger.claim("w", LEASE)
    assert second is not None
    assert (second.attempt, second.ordinal) == (2, 1), "the fence goes on while the count starts over"


@pytest.mark.parametrize("state", ["queued", "running", "cancelling", "succeeded"])
def test_other_jobs_cannot_be_resumed(sessions: sessionmaker[Session], state: str) -> None:
    job_id = add_job(sessions)
    with sessions() as session, session.begin():
        session.execute(update(Job).values(status=state))
    with pytest.raises(Conflict, match="job_not_resumable"):
        resume(sessions, job_id)
    assert read_job(sessions, job_id).status == state


def test_events_page_by_id(sessions: sessionmaker[Session]) -> None:
    job_id, other = add_job(sessions), add_job(sessions)
    Ledger(sessions).claim("w", LEASE, job_id)
    cancel(sessions, other)
    cancel(sessions, job_id)
    with sessions() as session, session.begin():
        store = JobStore(session)
        page = store.events(job_id, limit=2)
        rest = store.events(job_id, after=page[-1].id)
        last = store.last_event_id(job_id)
    events = [*page, *rest]
    assert [e.data["status"] for e in events] == ["queued", "running", "cancelling"]
    assert all(e.job_id == job_id and e.type is EventType.STATUS for e in events)
    assert [e.id for e in events] == sorted(e.id for e in events)
    assert last == events[-1].id


def test_a_message_is_due_until_sent_and_again_later(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    assert ledger.unsent() == [job_id]
    ledger.mark_notified([job_id])
    assert ledger.unsent() == []
    with sessions() as session, session.begin():  # half a minute passes
        session.execute(update(Job).values(notify_at=now_plus(timedelta(seconds=-1))))
    assert ledger.unsent() == [job_id], "the first message may have been lost"
    ledger.mark_notified([job_id])
    with sessions() as session, session.begin():
        wait = session.execute(update(Job).values(seed=1).returning(Job.notify_at, now_utc())).one()
    assert wait[0] is not None
    assert timedelta(seconds=50) < wait[0] - wait[1] <= timedelta(seconds=60), "each message doubles the wait"


def test_no_message_is_due_for_a_held_job_until_its_worker_dies(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    ledger.claim("w", LEASE)
    assert ledger.unsent() == []
    ledger.mark_notified([job_id])  # a sweeper that saw it queued a moment ago
    with sessions() as session, session.begin():
        session.execute(update(Job).values(lease_until=now_plus(timedelta(seconds=-1))))
    assert ledger.unsent() == [job_id]


def test_the_history_of_metrics_is_that_of_the_steps_that_counted(sessions: sessionmaker[Session]) -> None:
    """The second attempt goes on from step 15, and does 20 again."""
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    for steps in ((None, 10, 20, 30), (20, 40)):
        claim = ledger.claim("w", LEASE)
        assert claim is not None
        for step in steps:
            progress = {"phase": "preparing"} if step is None else {"phase": "training", "step": step}
            data = {"metrics": {"attempt": claim.attempt}, "progress": progress}
            ledger.report(claim, Report(events=((EventType.METRICS, data), (EventType.PHASE, {"phase": "x"}))))
        ledger.release(claim)
    with sessions() as session:
        history = JobStore(session).metrics_history(job_id)
        assert [(step, metrics["attempt"]) for step, metrics in history] == [(10, 1), (20, 2), (40, 2)]
        assert JobStore(session).metrics_history(new_id("job")) == []


def test_a_report_goes_with_its_job(sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    with sessions() as session, session.begin():
        session.execute(insert(JobReport).values(job_id=job_id, body={"num_images": 1}))
        assert JobStore(session).report(job_id) == {"num_images": 1}
        session.execute(delete(JobEvent))
        session.execute(delete(Job))
        assert JobStore(session).report(job_id) is None


def test_queue_length(sessions: sessionmaker[Session]) -> None:
    for _ in range(3):
        add_job(sessions)
    Ledger(sessions).claim("w", LEASE)
    with sessions() as session, session.begin():
        assert JobStore(session).num_queued() == 2
