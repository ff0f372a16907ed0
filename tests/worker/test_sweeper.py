"""Housekeeping: hints that are owed, folders that nobody needs."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.idempotency.messages import KeyedRequest
from app.idempotency.store import IdempotencyStore
from app.jobs.errors import LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import JobError, Publication
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import IdempotencyKey, Job
from tests.support.jobs import add_job, read_job
from tests.support.workers import wait_for
from worker import runs
from worker.sweeper import Sweeper

LEASE = timedelta(seconds=60)


def make(sessions: sessionmaker[Session], runs_dir: Path, answers: dict[str, bool] | None = None) -> Sweeper:
    send = None if answers is None else lambda job_id: answers[job_id]
    return Sweeper(Ledger(sessions), interval=LEASE, runs_dir=runs_dir, send_hint=send)


def test_hints_are_sent_until_the_broker_takes_them(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    first, second = add_job(sessions), add_job(sessions)
    answers = {first: True, second: False}
    sweeper = make(sessions, tmp_path, answers)
    sweeper.sweep()
    assert Ledger(sessions).unsent() == [second]
    answers[second] = True
    sweeper.sweep()
    assert Ledger(sessions).unsent() == []


def test_a_dead_workers_job_that_nobody_takes_is_queued_by_the_second_sweep(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    job_id = add_job(sessions)
    assert Ledger(sessions).claim("w", -LEASE) is not None
    sweeper = make(sessions, tmp_path)
    for status in (JobStatus.RUNNING, JobStatus.QUEUED):
        sweeper.sweep()
        assert read_job(sessions, job_id).status is status


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), OSError(5, "disk"), ValueError("anything")])
def test_nothing_ends_the_sweeping(
    sessions: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    failures, sweep = [failure], Ledger.sweep

    def fail_at_first(ledger: Ledger, *silent: Any) -> Any:
        if failures:
            raise failures.pop()
        return sweep(ledger, *silent)

    monkeypatch.setattr(Ledger, "sweep", fail_at_first)
    job_id = add_job(sessions)
    assert Ledger(sessions).claim("w", -LEASE) is not None
    sweeper = Sweeper(Ledger(sessions), interval=timedelta(seconds=0.02), runs_dir=tmp_path)
    sweeper.start()
    wait_for(lambda: read_job(sessions, job_id).status is JobStatus.QUEUED, what="the dead worker's job")
    sweeper.stop()


def test_without_a_broker_nothing_is_marked(sessions: sessionmaker[Session], tmp_path: Path) -> None:
    job_id = add_job(sessions)
    make(sessions, tmp_path).sweep()
    assert Ledger(sessions).unsent() == [job_id]


def folder(runs_dir: Path, job_id: str, attempt: int = 1) -> runs.RunFolder:
    run = runs.open_run(runs_dir, job_id, attempt)
    (run.checkpoints / "step").write_text("1")
    run.spec.write_text("{}")
    run.log.write_text("log")
    return run


@pytest.mark.parametrize("days", [0, 8])
def test_checkpoints_go_when_nobody_can_want_them(sessions: sessionmaker[Session], tmp_path: Path, days: int) -> None:
    ledger = Ledger(sessions)
    done, failed, waiting = (add_job(sessions) for _ in range(3))
    claims = {c.job_id: c for _ in range(2) if (c := ledger.claim("w", LEASE)) is not None}
    files = {"bundle.json": "0" * 64}
    ledger.publish(
        claims[done],
        Publication(classifier_id="clf_1", files=files, version="0" * 64, metrics={}, verdict=None),
    )
    ledger.fail(claims[failed], JobError(code="diverged", message="m"))
    with sessions() as session, session.begin():
        session.execute(
            update(Job).where(Job.id == failed).values(finished_at=now_plus(-timedelta(days=days, seconds=1)))
        )
    kept = {job_id: folder(tmp_path, job_id) for job_id in (done, failed, waiting, "job_unknown")}
    make(sessions, tmp_path).tidy()
    assert {job_id: run.checkpoints.exists() for job_id, run in kept.items()} == {
        done: False,
        failed: days == 0,
        waiting: True,
        "job_unknown": True,
    }
    assert all(run.log.exists() for run in kept.values())
    assert not kept[done].spec.exists()


def test_a_job_that_is_resumed_while_others_are_tidied_up_keeps_what_it_has(
    sessions: sessionmaker[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, jobs = Ledger(sessions), [add_job(sessions) for _ in range(2)]
    for job_id in jobs:
        claim = ledger.claim("w", LEASE, job_id)
        assert claim is not None
        ledger.fail(claim, JobError(code="diverged", message="m"))
    with sessions() as session, session.begin():
        session.execute(update(Job).values(finished_at=now_plus(-timedelta(days=8))))
    kept = {job_id: folder(tmp_path, job_id) for job_id in jobs}
    discard = runs.discard_job

    def discard_and_resume(runs_dir: Path, job_id: str) -> None:
        discard(runs_dir, job_id)
        (other,) = set(jobs) - {job_id}
        with sessions() as session, session.begin():
            JobStore(session).request_resume(other)

    monkeypatch.setattr(runs, "discard_job", discard_and_resume)
    make(sessions, tmp_path).tidy()
    left = {job_id for job_id, run in kept.items() if run.checkpoints.exists()}
    assert left == {job_id for job_id in jobs if read_job(sessions, job_id).status is JobStatus.QUEUED}
    assert len(left) == 1


def test_earlier_checkpoints_are_found_newest_attempt_first(tmp_path: Path) -> None:
    for attempt in (1, 2, 10, 11):
        folder(tmp_path, "job_1", attempt)
    (tmp_path / "job_1" / "attempt-x").mkdir()
    found = runs.earlier_checkpoints(tmp_path, "job_1", 11)
    assert [path.parent.name for path in found] == ["attempt-10", "attempt-2", "attempt-1"]
    assert runs.earlier_checkpoints(tmp_path, "job_2", 1) == []


def test_idempotency_keys_are_forgotten_once_their_time_is_over(
    sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    with sessions.begin() as session:
        for key, lock in (("over", -LEASE), ("held", LEASE)):
            IdempotencyStore(session).claim(KeyedRequest(tenant="t", key=key, digest="0"), "token", lock)
    make(sessions, tmp_path).tidy()
    with sessions.begin() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["held"]
