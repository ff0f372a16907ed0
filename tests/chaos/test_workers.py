"""Workers that die, freeze, come back, and are told to go."""

import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.messages import Event
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Classifier
from tests.support.jobs import add_job, read_job
from tests.support.stacks import EMBEDDED, only
from tests.support.workers import WorkerProcess, is_running, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]


def status(sessions: Sessions, job_id: str) -> JobStatus:
    return read_job(sessions, job_id).status


def wait_until(sessions: Sessions, job_id: str, target: JobStatus) -> None:
    wait_for(lambda: status(sessions, job_id) is target, what=f"{target} of {job_id}")


def wait_until_training(sessions: Sessions, job_id: str) -> None:
    wait_for(lambda: (read_job(sessions, job_id).progress or {}).get("step", 0) > 0, what="a first step")


def events_of(sessions: Sessions, job_id: str) -> list[Event]:
    with sessions() as session, session.begin():
        return list(JobStore(session).events(job_id, limit=1000))


def steps_of(folder: Path, job_id: str) -> list[list[str]]:
    """The steps that each attempt did."""
    attempts = sorted((folder / "runs" / job_id).glob("attempt-*"))
    return [(a / "steps.txt").read_text().split() if (a / "steps.txt").exists() else [] for a in attempts]


def num_classifiers(sessions: Sessions) -> int:
    with sessions() as session, session.begin():
        return session.scalar(select(func.count()).select_from(Classifier)) or 0


def wait_for_attempt(sessions: Sessions, job_id: str, ordinal: int) -> None:
    wait_for(lambda: read_job(sessions, job_id).attempt >= ordinal, what=f"attempt {ordinal}")


def freeze(worker: WorkerProcess, sessions: Sessions) -> None:
    """Stop it where it holds no lock of SQLite's, for which everybody would wait."""
    database = sessions.kw["bind"].url
    while True:
        worker.send(signal.SIGSTOP)
        if database.get_backend_name() != "sqlite":
            return
        with closing(sqlite3.connect(database.database, timeout=1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                worker.send(signal.SIGCONT)
                time.sleep(0.05)
            else:
                return


def written_by_the_dead(events: list[Event]) -> list[dict[str, Any]]:
    """Events of attempt 1 that came after attempt 2 had begun."""
    attempts = [e.data.get("attempt", 0) for e in events]
    start = attempts.index(2) if 2 in attempts else len(attempts)
    return [dict(e.data) for e in events[start:] if e.data.get("attempt") == 1]


def test_a_killed_worker_takes_its_trainer_along_and_another_goes_on(
    start_worker: StartWorker, sessions: Sessions, tmp_path: Path
) -> None:
    # An unfinished last step keeps the folders: a published job would have been tidied up.
    script = {"steps": 60, "step_ms": 30, "crash_at": {"60": "fatal"}}
    job_id = add_job(sessions, hyperparameters=script)
    first = start_worker()
    wait_until_training(sessions, job_id)
    trainer = first.trainer_pid()
    assert is_running(trainer)
    first.send(signal.SIGKILL)
    wait_for(lambda: not is_running(trainer), what="the trainer's end")
    second = start_worker()
    wait_until(sessions, job_id, JobStatus.FAILED)
    assert [e["ordinal"] for e in second.events("job_claimed")] == [2]
    before, after = steps_of(tmp_path, job_id)
    assert before, "the first attempt had got somewhere"
    assert [int(s) for s in after] == list(range(len(before) + 1, 60)) or len(before) + len(after) in {59, 60}, (
        "at most the step that was under way is done twice"
    )


@pytest.mark.parametrize("fence", ["fenced", "unfenced"])
def test_a_frozen_worker_that_comes_back_cannot_write(
    start_worker: StartWorker, sessions: Sessions, fence: str
) -> None:
    """Unfenced is the negative control: there the zombie's writes must be seen."""
    arguments = ["--no-fence"] if fence == "unfenced" else []
    job_id = add_job(sessions, hyperparameters={"steps": 150, "step_ms": 40})
    zombie = start_worker(*arguments)
    wait_until_training(sessions, job_id)
    freeze(zombie, sessions)  # its trainer runs on
    heir = start_worker(*arguments)
    wait_for_attempt(sessions, job_id, 2)
    zombie.send(signal.SIGCONT)
    if fence == "unfenced":
        wait_for(lambda: written_by_the_dead(events_of(sessions, job_id)), what="the zombie's writes")
        return
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    wait_for(lambda: zombie.events("lease_lost"), what="the zombie to notice")
    assert written_by_the_dead(events_of(sessions, job_id)) == []
    assert num_classifiers(sessions) == 1
    assert len(heir.events("classifier_published")) == 1
    assert zombie.events("classifier_published") == []
    assert not is_running(zombie.trainer_pid())


@only(EMBEDDED)
def test_cancelling_while_the_worker_is_dead_ends_too(start_worker: StartWorker, sessions: Sessions) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 1000, "step_ms": 20})
    first = start_worker()
    wait_until_training(sessions, job_id)
    first.send(signal.SIGKILL)
    with sessions() as session, session.begin():
        JobStore(session).request_cancel(job_id)
    start_worker()
    wait_until(sessions, job_id, JobStatus.CANCELLED)


@only(EMBEDDED)
def test_a_graceful_stop_loses_nothing(start_worker: StartWorker, sessions: Sessions, tmp_path: Path) -> None:
    job_id = add_job(
        sessions, max_attempts=1, hyperparameters={"steps": 60, "step_ms": 30, "crash_at": {"60": "fatal"}}
    )
    first = start_worker(lease="PT600S")
    wait_until_training(sessions, job_id)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert status(sessions, job_id) is JobStatus.QUEUED, "no need to wait for the lease"
    assert read_job(sessions, job_id).attempt == 0
    start_worker(lease="PT600S")
    wait_until(sessions, job_id, JobStatus.FAILED)
    before, after = steps_of(tmp_path, job_id)
    assert [int(s) for s in (*before, *after)] == list(range(1, 60)), "no step was done twice"


@only(EMBEDDED)
@pytest.mark.parametrize("bounded", [True, False])
def test_a_poison_job_stops_and_others_are_unaffected(
    start_worker: StartWorker, sessions: Sessions, *, bounded: bool
) -> None:
    """With attempts to spare, the control, it goes on."""
    script = {"crash_at": {"1": f"signal {signal.SIGSEGV.value}"}}
    poison = add_job(sessions, max_attempts=3 if bounded else 1000, hyperparameters=script)
    others = [add_job(sessions) for _ in range(2)]
    start_worker(worker_concurrency="2")
    for job_id in others:
        wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    if not bounded:
        wait_for_attempt(sessions, poison, 5)
        return
    wait_until(sessions, poison, JobStatus.FAILED)
    job = read_job(sessions, poison)
    assert job.error is not None
    assert (job.error.code, job.attempt) == ("worker_lost", 3)
