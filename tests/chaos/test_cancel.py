"""A cancel in every phase of a job: prompt, final, and all that the job held is free."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from tests.chaos.test_workers import num_classifiers, status, steps_of, wait_until, wait_until_training
from tests.support.jobs import add_job
from tests.support.stacks import EMBEDDED, only
from tests.support.workers import WorkerProcess, is_running, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]


def cancel(sessions: Sessions, job_id: str) -> JobStatus:
    with sessions() as session, session.begin():
        return JobStore(session).request_cancel(job_id)


@pytest.mark.parametrize("phase", ["preparing", "training", "publishing"])
def test_a_cancel_frees_what_the_job_held(
    start_worker: StartWorker, sessions: Sessions, tmp_path: Path, phase: str
) -> None:
    """The worker has one slot: the last job shows that it is free, and the one that was queued that it never ran."""
    job_id = add_job(sessions, hyperparameters={"steps": 10_000 if phase == "training" else 2, "step_ms": 10})
    worker = start_worker(*([] if phase == "training" else ["--hold", phase]), lease="PT600S")
    if phase == "training":
        wait_until_training(sessions, job_id)
    else:
        wait_for(lambda: worker.events("held"), what=phase)
    queued, last = add_job(sessions), add_job(sessions)
    assert cancel(sessions, queued) is JobStatus.CANCELLED
    assert cancel(sessions, job_id) is JobStatus.CANCELLING
    (tmp_path / "go-on").touch()
    wait_until(sessions, job_id, JobStatus.CANCELLED)
    wait_until(sessions, last, JobStatus.SUCCEEDED)
    assert (status(sessions, job_id), status(sessions, queued)) == (JobStatus.CANCELLED, JobStatus.CANCELLED)
    assert not any(is_running(e["trainer_pid"]) for e in worker.events("trainer_started"))
    assert [e["job_id"] for e in worker.events("job_claimed")] == [job_id, last]
    assert num_classifiers(sessions) == 1
    left = {path.name for path in (tmp_path / "runs" / job_id / "attempt-1").iterdir()}
    assert not left & {"images", "output"}


@only(EMBEDDED)
@pytest.mark.parametrize("obeys", [True, False])
def test_a_cancel_stops_the_training(
    start_worker: StartWorker, sessions: Sessions, tmp_path: Path, *, obeys: bool
) -> None:
    """The control: a worker that does not heed trains to the end, though the job is cancelled there."""
    num_steps = 200
    job_id = add_job(sessions, hyperparameters={"steps": num_steps, "step_ms": 20})
    start_worker(*([] if obeys else ["--no-obedience"]), lease="PT600S")
    wait_until_training(sessions, job_id)
    cancel(sessions, job_id)
    wait_until(sessions, job_id, JobStatus.CANCELLED)
    (done,) = steps_of(tmp_path, job_id)
    assert (len(done) < num_steps) == obeys
    assert num_classifiers(sessions) == 0
