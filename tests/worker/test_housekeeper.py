"""Housekeeping on its own thread: what is due is done by one worker, one's own disk by each."""

import io
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.exceptions import Unavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import JobError
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.storage import LocalBlobStore
from app.tables import Job
from tests.support.garbage import store_old
from tests.support.jobs import add_job, read_job
from tests.support.workers import wait_for
from worker import runs
from worker.housekeeper import Housekeeper

Sessions = sessionmaker[Session]
Make = Callable[..., Housekeeper]


@pytest.fixture
def make(sessions: Sessions, storage: LocalBlobStore, tmp_path: Path) -> Make:
    def make_one(interval: timedelta = timedelta(hours=1)) -> Housekeeper:
        return Housekeeper(
            sessions=sessions,
            storage=storage,
            runs_dir=tmp_path / "runs",
            interval=interval,
            blob_grace=timedelta(hours=24),
            history_retention=timedelta(days=90),
        )

    return make_one


def test_garbage_is_one_workers_each_hour(make: Make, storage: LocalBlobStore) -> None:
    first, second = store_old(storage, b"first"), store_old(storage, b"second")
    make().do_what_is_due()
    assert not any(storage.exists(sha256) for sha256 in (first, second))
    third = store_old(storage, b"third")
    make().do_what_is_due()
    assert storage.exists(third), "it is not due"


def test_a_thread_of_its_own_that_outlives_failures(
    make: Make, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recover, failures = (
        storage.recover,
        [Unavailable("storage_unavailable", "."), OSError(5, "disk"), RuntimeError("any")],
    )

    def fail_at_first() -> None:
        if failures:
            raise failures.pop()
        recover()

    monkeypatch.setattr(storage, "recover", fail_at_first)
    orphan = store_old(storage, b"orphan")
    keeper = make(timedelta(milliseconds=20))
    keeper.start()
    wait_for(lambda: not storage.exists(orphan), what="the garbage to go")
    keeper.stop()
    assert failures == []


def test_ones_own_disk(make: Make, sessions: Sessions, storage: LocalBlobStore, tmp_path: Path) -> None:
    """Folders of jobs that finished long ago go with their logs; what a killed upload staged goes."""
    ledger, jobs = Ledger(sessions), [add_job(sessions) for _ in range(3)]
    old, young, running = jobs
    for job_id in jobs:
        claim = ledger.claim("w", timedelta(seconds=60), job_id)
        assert claim is not None
        runs.open_run(tmp_path / "runs", job_id, 1).log.write_text("a log")
        if job_id != running:
            ledger.fail(claim, JobError(code="diverged", message="m"))
    runs.open_run(tmp_path / "runs", "job_of_another_database", 1)
    with sessions.begin() as session:
        session.execute(update(Job).where(Job.id == old).values(finished_at=now_plus(-timedelta(days=91))))
    with storage.batch() as batch:
        batch.stage(io.BytesIO(b"under way"))
        killed = tmp_path / "blobs" / "staging" / "killed"
        killed.mkdir()
        os.utime(killed, (1, 1))
        make().clean_own_disk()
        assert [path.name for path in (tmp_path / "blobs" / "staging").iterdir()] == [batch._folder.name]
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left == {young, running, "job_of_another_database"}
    make().clean_own_disk()


def test_a_job_that_is_resumed_while_folders_go_keeps_its_own(
    make: Make, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, jobs = Ledger(sessions), [add_job(sessions) for _ in range(2)]
    for job_id in jobs:
        claim = ledger.claim("w", timedelta(seconds=60), job_id)
        assert claim is not None
        ledger.fail(claim, JobError(code="diverged", message="m"))
        runs.open_run(tmp_path / "runs", job_id, 1)
    with sessions.begin() as session:
        session.execute(update(Job).values(finished_at=now_plus(-timedelta(days=91))))
    discard = runs.discard_folder

    def discard_and_resume(runs_dir: Path, job_id: str) -> None:
        discard(runs_dir, job_id)
        (other,) = set(jobs) - {job_id}
        with sessions.begin() as session:
            JobStore(session).request_resume(other)

    monkeypatch.setattr(runs, "discard_folder", discard_and_resume)
    make().clean_own_disk()
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left == {job_id for job_id in jobs if read_job(sessions, job_id).status is JobStatus.QUEUED}
    assert len(left) == 1
