"""Claim, lease, fence, publish once, sweep: what the ledger promises its workers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.exceptions import Conflict, NotFound
from app.ids import new_id
from app.jobs.claims import ClaimStore
from app.jobs.errors import LeaseLost, LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, EventType, JobError, Publication, Report
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Classifier, Job, JobReport
from tests.support.jobs import add_job, read_job, verdict

LEASE = timedelta(seconds=60)
NOW = timedelta(0)
OOPS = JobError(code="worker_lost", message="The trainer died.")


@pytest.fixture
def ledger(sessions: sessionmaker[Session]) -> Ledger:
    return Ledger(sessions)


def take(ledger: Ledger, owner: str = "w1", job_id: str | None = None) -> Claim:
    claim = ledger.claim(owner, LEASE, job_id)
    assert claim is not None
    return claim


def expire(sessions: sessionmaker[Session]) -> None:
    """Let every lease run out."""
    with sessions() as session, session.begin():
        session.execute(update(Job).where(Job.lease_until.is_not(None)).values(lease_until=now_plus(-LEASE)))


def request_cancel(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions() as session, session.begin():
        JobStore(session).request_cancel(job_id)


def publication(**fields: Any) -> Publication:
    return Publication(
        **{
            "classifier_id": new_id("clf"),
            "files": {"bundle.json": "0" * 64},
            "version": "1" * 64,
            "metrics": {"agreement": 0.9},
            "verdict": verdict(),
            **fields,
        }
    )


def num_classifiers(sessions: sessionmaker[Session]) -> int:
    with sessions() as session, session.begin():
        return session.scalar(select(func.count()).select_from(Classifier)) or 0


def test_the_oldest_job_is_claimed_first(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    ids = [add_job(sessions) for _ in range(3)]
    with sessions() as session, session.begin():
        session.execute(update(Job).where(Job.id == ids[2]).values(created_at=now_plus(-LEASE)))
    assert [take(ledger).job_id for _ in range(3)] == [ids[2], ids[0], ids[1]]
    assert ledger.claim("w1", LEASE) is None


def test_a_claim_says_what_to_do(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, digests=("b" * 64, "a" * 64), hyperparameters={"epochs": 2}, seed=7)
    claim = take(ledger)
    assert (claim.job_id, claim.owner, claim.attempt, claim.ordinal) == (job_id, "w1", 1, 1)
    assert (claim.hyperparameters, claim.seed, claim.classes) == ({"epochs": 2}, 7, ["cat", "dog"])
    assert ledger.image_digests(claim.dataset_id) == ["b" * 64, "a" * 64]
    view = read_job(sessions, job_id)
    assert (view.status, view.attempt, view.progress) == (JobStatus.RUNNING, 1, {"phase": "preparing"})
    assert view.started_at is not None


def test_unknown_and_held_jobs_are_not_claimed(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    assert ledger.claim("w1", LEASE, "job_unknown") is None
    job_id = add_job(sessions)
    take(ledger, job_id=job_id)
    assert ledger.claim("w2", LEASE, job_id) is None


@pytest.mark.parametrize("hint", ["named", "any"])
def test_many_claims_at_once_have_one_winner(ledger: Ledger, sessions: sessionmaker[Session], hint: str) -> None:
    job_id = add_job(sessions)
    barrier = Barrier(8)

    def claim(n: int) -> Claim | None:
        barrier.wait(timeout=10)
        return ledger.claim(f"w{n}", LEASE, job_id if hint == "named" else None)

    with ThreadPoolExecutor(8) as pool:
        claims = [c for c in pool.map(claim, range(8)) if c is not None]
    assert len(claims) == 1
    assert read_job(sessions, job_id).attempt == 1


def test_concurrent_claims_share_out_the_jobs(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    ids = {add_job(sessions) for _ in range(12)}
    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(lambda n: take(ledger, f"w{n}"), range(12)))
    assert {c.job_id for c in claims} == ids


def test_an_expired_lease_is_taken_over_and_the_zombie_is_fenced(
    ledger: Ledger, sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions)
    zombie = take(ledger, "w1")
    expire(sessions)
    heir = take(ledger, "w2")
    assert (heir.job_id, heir.attempt, heir.ordinal) == (job_id, 2, 2)
    before = read_job(sessions, job_id)
    for write in writes(ledger, zombie):
        with pytest.raises(LeaseLost):
            write()
    assert read_job(sessions, job_id) == before
    assert num_classifiers(sessions) == 0
    assert not ledger.beat(heir, LEASE).cancel_requested


def test_the_same_owner_is_fenced_by_its_attempt(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    zombie = take(ledger, "w1")
    expire(sessions)
    take(ledger, "w1")
    for write in writes(ledger, zombie):
        with pytest.raises(LeaseLost):
            write()


def test_negative_control_without_the_fence_the_zombie_writes(
    ledger: Ledger, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = add_job(sessions)
    zombie = take(ledger, "w1")
    expire(sessions)
    heir = take(ledger, "w2")
    monkeypatch.setattr(ClaimStore, "_fence", lambda _, claim: (Job.id == claim.job_id,))
    ledger.report(zombie, Report(metrics={"loss": 666.0}))
    assert read_job(sessions, job_id).metrics == {"loss": 666.0}, "the fence is what kept this out"
    ledger.release(zombie)
    assert read_job(sessions, job_id).status is JobStatus.QUEUED
    monkeypatch.undo()
    with pytest.raises(LeaseLost):
        ledger.beat(heir, LEASE)


def writes(ledger: Ledger, claim: Claim) -> list[Callable[[], object]]:
    """Every write that a worker can make under a claim."""
    return [
        lambda: ledger.beat(claim, LEASE),
        lambda: ledger.report(claim, Report(progress={"phase": "training"}, metrics={"loss": 1.0})),
        lambda: ledger.report(claim, Report(events=((EventType.PHASE, {"phase": "training"}),))),
        lambda: ledger.release(claim),
        lambda: ledger.retry_later(claim, OOPS, NOW),
        lambda: ledger.fail(claim, OOPS),
        lambda: ledger.cancelled(claim),
        lambda: ledger.publish(claim, publication()),
    ]


def test_a_beat_keeps_the_lease_and_revives_an_expired_one(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    claim = take(ledger)
    expire(sessions)
    ledger.beat(claim, LEASE)
    assert ledger.claim("w2", LEASE) is None


def test_a_wrong_wall_clock_rescues_nothing(
    ledger: Ledger, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_job(sessions)
    take(ledger)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert ledger.claim("w2", LEASE) is None
    assert ledger.sweep().failed == ()


def test_reports_are_stored_and_events_kept_in_order(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    claim = take(ledger)
    choices = {"epochs": {"value": 3, "reason": "few images"}}
    beat = ledger.report(
        claim,
        Report(
            progress={"phase": "training", "step": 1, "total_steps": 9},
            choices=choices,
            remaining=timedelta(hours=1),
            events=((EventType.PHASE, {"phase": "training"}), (EventType.CHOICES, {"choices": choices})),
        ),
    )
    assert not beat.cancel_requested
    ledger.report(claim, Report(metrics={"loss": 0.5}))
    view = read_job(sessions, job_id)
    assert (view.progress or {})["step"] == 1, "a report leaves alone what it does not mention"
    assert (view.metrics, view.choices) == ({"loss": 0.5}, choices)
    assert view.estimated_finish_at is not None
    assert timedelta(minutes=59) < view.estimated_finish_at - view.created_at < timedelta(minutes=61)
    with sessions() as session, session.begin():
        events = JobStore(session).events(job_id)
    assert [e.type for e in events] == ["status", "status", "phase", "choices"]
    assert events[2].data == {"phase": "training", "attempt": 1}


def test_a_report_that_is_no_number_is_refused_alike(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    claim = take(ledger)
    with pytest.raises(Exception, match="JSON compliant"):
        ledger.report(claim, Report(metrics={"loss": float("nan")}))
    ledger.beat(claim, LEASE)


def test_a_released_job_is_free_at_once_and_keeps_its_attempts(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, max_attempts=1)
    for n in range(1, 4):
        claim = take(ledger)
        assert (claim.attempt, claim.ordinal) == (n, 1), "a deploy is nobody's fault, the fence grows anyway"
        assert ledger.release(claim) is JobStatus.QUEUED
        assert ledger.release(claim) is JobStatus.QUEUED, "the answer was lost, the call repeated"
        assert read_job(sessions, job_id).attempt == 0
    with pytest.raises(LeaseLost):
        ledger.beat(claim, LEASE)


def test_a_retry_waits_and_the_last_one_fails(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, max_attempts=2)
    first = take(ledger)
    assert ledger.retry_later(first, OOPS, LEASE) is JobStatus.QUEUED
    assert ledger.retry_later(first, OOPS, LEASE) is JobStatus.QUEUED
    assert ledger.claim("w1", LEASE) is None, "backing off"
    assert ledger.unsent() == []
    with sessions() as session, session.begin():
        session.execute(update(Job).values(available_at=now_plus(NOW), notify_at=now_plus(NOW)))
    assert ledger.unsent() == [job_id]
    last = take(ledger)
    assert last.is_last
    assert ledger.retry_later(last, OOPS, LEASE) is JobStatus.FAILED
    assert ledger.retry_later(last, OOPS, LEASE) is JobStatus.FAILED
    view = read_job(sessions, job_id)
    assert (view.status, view.error, view.attempt) == (JobStatus.FAILED, OOPS, 2)
    assert [t.status.value for t in view.transitions] == ["queued", "running", "queued", "running", "failed"]


def test_publishing_is_once_and_repeatable(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, name="pets")
    claim = take(ledger)
    first = publication()
    assert ledger.publish(claim, first) == first.classifier_id
    assert ledger.publish(claim, publication()) == first.classifier_id, "the answer was lost, the call repeated"
    view = read_job(sessions, job_id)
    assert (view.status, view.classifier_id, view.metrics) == (
        JobStatus.SUCCEEDED,
        first.classifier_id,
        {"agreement": 0.9},
    )
    assert view.verdict == verdict()
    assert view.finished_at is not None
    with sessions() as session, session.begin():
        row = session.scalars(select(Classifier)).one()
    assert (row.job_id, row.kind, row.name, row.files) == (job_id, "adapted", "pets", dict(first.files))
    for write in writes(ledger, claim)[:-1]:
        with pytest.raises(LeaseLost):
            write()


@pytest.mark.parametrize("promotion", Promotion)
@pytest.mark.parametrize("outcome", ["adapted", "zero_shot", "inconclusive", None])
def test_a_job_answers_with_what_verdict_and_promotion_say(
    ledger: Ledger, sessions: sessionmaker[Session], outcome: str | None, promotion: Promotion
) -> None:
    job_id = add_job(sessions, name="pets", promotion=promotion)
    claim = take(ledger)
    assert claim.promotion is promotion
    new = publication(verdict=None if outcome is None else verdict(outcome))
    published = ledger.publish(claim, new)
    view = read_job(sessions, job_id)
    assert (view.status, view.promotion) == (JobStatus.SUCCEEDED, promotion)
    assert view.classifier_id == published
    assert view.adapted_classifier_id == new.classifier_id
    with sessions() as session, session.begin():
        rows = {row.kind: row for row in session.scalars(select(Classifier))}
        told = [(e.type, e.data) for e in JobStore(session).events(job_id)]
    assert rows["adapted"].files == dict(new.files)
    if promotion is Promotion.AUTO and outcome in {"adapted", None}:
        assert published == new.classifier_id
        assert set(rows) == {"adapted"}
    else:
        assert set(rows) == {"adapted", "zero_shot"}
        zero_shot = rows["zero_shot"]
        assert (zero_shot.id, zero_shot.job_id, zero_shot.name, zero_shot.files) == (published, job_id, "pets", {})
        adapted = rows["adapted"]
        for name in ("base_model", "classes", "templates"):
            assert getattr(zero_shot, name) == getattr(adapted, name), name
        assert "adapted one is kept" in view.transitions[-1].message
    if outcome is None:
        assert [kind for kind, _ in told] == ["status"] * 3
    else:
        reasons = verdict(outcome)["reasons"]
        assert told[2] == (EventType.VERDICT, {"outcome": outcome, "reasons": reasons, "attempt": 1})
        assert [kind for kind, _ in told] == ["status", "status", "verdict", "status"], "the move comes last"


def promote(sessions: sessionmaker[Session], job_id: str) -> None:
    with sessions() as session, session.begin():
        JobStore(session).request_promotion(job_id)


@pytest.mark.parametrize("promotion", [Promotion.AUTO, Promotion.MANUAL])
@pytest.mark.parametrize("outcome", ["adapted", "zero_shot", "inconclusive", None])
def test_a_promotion_makes_the_adapted_classifier_the_jobs_own_once(
    ledger: Ledger, sessions: sessionmaker[Session], outcome: str | None, promotion: Promotion
) -> None:
    job_id = add_job(sessions, promotion=promotion)
    new = publication(verdict=None if outcome is None else verdict(outcome))
    promoted_before = ledger.publish(take(ledger), new) == new.classifier_id
    before = read_job(sessions, job_id)
    for _ in range(2):
        promote(sessions, job_id)
        view = read_job(sessions, job_id)
        assert view.classifier_id == view.adapted_classifier_id == new.classifier_id
        assert (view.status, view.verdict, view.transitions) == (before.status, before.verdict, before.transitions)
    with sessions() as session, session.begin():
        told = [e.data for e in JobStore(session).events(job_id) if e.type is EventType.PROMOTED]
    assert told == ([] if promoted_before else [{"classifier_id": new.classifier_id}])
    assert num_classifiers(sessions) == (1 if promoted_before else 2), "nothing is made and nothing goes"


def test_promotions_at_once_are_one(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, promotion=Promotion.MANUAL)
    ledger.publish(take(ledger), publication())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: promote(sessions, job_id), range(4)))
    with sessions() as session, session.begin():
        assert [e.type for e in JobStore(session).events(job_id)].count(EventType.PROMOTED) == 1


def test_a_job_that_is_never_to_be_promoted_is_not(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, promotion=Promotion.NEVER)
    published = ledger.publish(take(ledger), publication())
    with pytest.raises(Conflict, match="not_promotable"):
        promote(sessions, job_id)
    assert read_job(sessions, job_id).classifier_id == published


def test_only_jobs_that_have_succeeded_are_promoted(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    for move in (lambda: take(ledger), lambda: request_cancel(sessions, job_id), ledger.sweep):
        with pytest.raises(Conflict, match="not_promotable"):
            promote(sessions, job_id)
        move()
    with pytest.raises(NotFound):
        promote(sessions, "job_x")


def test_a_publication_repeated_after_a_promotion_changes_nothing(
    ledger: Ledger, sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions)
    claim = take(ledger)
    first = publication(verdict=verdict("zero_shot"))
    ledger.publish(claim, first)
    promote(sessions, job_id)
    before = read_job(sessions, job_id)
    assert ledger.publish(claim, publication(verdict=verdict("zero_shot"))) == first.classifier_id
    assert read_job(sessions, job_id) == before
    assert num_classifiers(sessions) == 2


@pytest.mark.parametrize("outcome", ["adapted", "zero_shot"])
def test_the_database_refuses_a_second_publication(
    ledger: Ledger, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    """Two calls that both found nothing published, whatever the fence let through."""
    job_id = add_job(sessions)
    claim = take(ledger)
    first = publication(verdict=verdict(outcome))
    ledger.publish(claim, first)
    before = read_job(sessions, job_id)
    monkeypatch.setattr(ClaimStore, "classifier_of", lambda _, job_id: None)  # noqa: ARG005
    with pytest.raises(IntegrityError):
        ledger.publish(claim, publication(verdict=verdict(outcome)))
    monkeypatch.undo()
    assert read_job(sessions, job_id) == before


def test_publishing_is_both_or_neither(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    second_job = add_job(sessions)
    taken = publication()
    ledger.publish(take(ledger), taken)
    claim = take(ledger)
    with pytest.raises(IntegrityError):  # an id that exists already
        ledger.publish(claim, publication(classifier_id=taken.classifier_id))
    assert read_job(sessions, second_job).status is JobStatus.RUNNING
    assert ledger.publish(claim, publication()) is not None
    assert num_classifiers(sessions) == 2


def test_a_report_comes_with_the_publication_once(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    claim = take(ledger)
    for body in ({"num_images": 1}, {"num_images": 2}):
        ledger.publish(claim, publication(report=body))
    with sessions() as session:
        assert session.execute(select(JobReport.job_id, JobReport.body)).all() == [(job_id, {"num_images": 1})]


def test_a_zombies_report_is_not_kept(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    zombie = take(ledger)
    expire(sessions)
    take(ledger, "w2")
    with pytest.raises(LeaseLost):
        ledger.publish(zombie, publication(report={"num_images": 1}))
    with sessions() as session:
        assert session.scalars(select(JobReport)).all() == []


def test_a_lost_answer_to_the_commit_is_repaired_by_repeating(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions)
    claim = take(ledger)

    def answer_lost(session: Session) -> None:
        event.remove(sessions, "after_commit", answer_lost)
        raise OperationalError("COMMIT", {}, Exception("connection reset by peer"))

    event.listen(sessions, "after_commit", answer_lost)
    first = publication()
    with pytest.raises(LedgerUnavailable):
        ledger.publish(claim, first)
    assert ledger.publish(claim, publication()) == first.classifier_id
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("ending", ["release", "retry", "fail", "cancelled", "publish"])
def test_a_cancel_wins_over_every_other_ending(ledger: Ledger, sessions: sessionmaker[Session], ending: str) -> None:
    job_id = add_job(sessions)
    claim = take(ledger)
    request_cancel(sessions, job_id)
    end = {
        "release": lambda: ledger.release(claim),
        "retry": lambda: ledger.retry_later(claim, OOPS, NOW),
        "fail": lambda: ledger.fail(claim, OOPS),
        "cancelled": lambda: ledger.cancelled(claim),
        "publish": lambda: ledger.publish(claim, publication()),
    }[ending]
    for _ in range(2):
        assert end() is (None if ending == "publish" else JobStatus.CANCELLED)
    view = read_job(sessions, job_id)
    assert (view.status, view.error, view.classifier_id) == (JobStatus.CANCELLED, None, None)
    assert view.finished_at is not None
    assert num_classifiers(sessions) == 0


def test_a_cancel_and_a_publication_at_once_have_one_outcome(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    for _ in range(10):
        job_id = add_job(sessions)
        claim = take(ledger)
        barrier = Barrier(2)

        def cancel(job_id: str = job_id, barrier: Barrier = barrier) -> bool:
            barrier.wait(timeout=10)
            try:
                request_cancel(sessions, job_id)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(cancel)
            barrier.wait(timeout=10)
            published = ledger.publish(claim, publication())
            assert asked.result() == (published is None)
        status = read_job(sessions, job_id).status
        assert status is (JobStatus.CANCELLED if published is None else JobStatus.SUCCEEDED)


def test_the_sweeper_ends_what_nobody_can_take_over(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    exhausted = add_job(sessions, max_attempts=1)
    cancelling = add_job(sessions, max_attempts=1)
    retryable = add_job(sessions, max_attempts=2)
    claims = [take(ledger) for _ in range(3)]
    request_cancel(sessions, cancelling)
    assert ledger.sweep() == type(ledger.sweep())(), "living workers are left alone"
    expire(sessions)
    swept = ledger.sweep()
    assert (swept.cancelled, set(swept.silent)) == ((cancelling,), {exhausted, retryable})
    assert take(ledger, "w2").job_id == retryable
    assert ledger.claim("w2", LEASE) is None, "nobody can take over the last attempt"
    assert ledger.sweep(swept.silent) == type(swept)(failed=(exhausted,))
    view = read_job(sessions, exhausted)
    assert view.status is JobStatus.FAILED
    assert view.error is not None
    assert view.error.code == "worker_lost"
    assert view.finished_at is not None
    assert read_job(sessions, cancelling).status is JobStatus.CANCELLED
    for claim in claims:
        for write in writes(ledger, claim):
            with pytest.raises(LeaseLost):
                write()
    assert read_job(sessions, retryable).status is JobStatus.RUNNING


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_a_worker_that_answers_between_two_sweeps_keeps_its_job(
    ledger: Ledger, sessions: sessionmaker[Session], max_attempts: int
) -> None:
    """After an outage that everybody shares. The other job is the control: its worker does not answer, and it loses
    its job as this one would if nobody waited for the second sweep. The last attempt has the same patience."""
    kept, lost = (add_job(sessions, max_attempts=max_attempts) for _ in range(2))
    claims = {claim.job_id: claim for claim in (take(ledger), take(ledger))}
    expire(sessions)
    first = ledger.sweep()
    assert (set(first.silent), first.failed, first.requeued) == ({kept, lost}, (), ())
    ledger.beat(claims[kept], LEASE)
    second = ledger.sweep(first.silent)
    assert (second.failed, second.requeued) == (((lost,), ()) if max_attempts == 1 else ((), (lost,)))
    assert ledger.sweep(first.silent) == type(second)()
    assert read_job(sessions, kept).status is JobStatus.RUNNING
    if max_attempts == 2:
        assert ledger.release(claims[lost]) is JobStatus.QUEUED, "it wanted to give it back anyway"


def test_sweepers_at_once_end_each_job_once(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    ids = sorted(add_job(sessions, max_attempts=1) for _ in range(10))
    for _ in ids:
        take(ledger)
    expire(sessions)
    with ThreadPoolExecutor(4) as pool:
        swept = list(pool.map(lambda _: ledger.sweep(ids), range(4)))
    assert sorted(job_id for s in swept for job_id in s.failed) == ids
    for job_id in ids:
        assert [t.status.value for t in read_job(sessions, job_id).transitions].count("failed") == 1


def test_statuses_of_some_jobs(ledger: Ledger, sessions: sessionmaker[Session]) -> None:
    done, waiting = add_job(sessions), add_job(sessions)
    ledger.publish(take(ledger), publication())
    statuses = ledger.statuses([done, waiting, "job_unknown"])
    assert {job_id: status for job_id, (status, _) in statuses.items()} == {done: "succeeded", waiting: "queued"}
    assert timedelta(0) <= statuses[done][1] < timedelta(seconds=30)
