"""Life and progress: two timers, two stories."""

import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.status import JobStatus
from tests.support.jobs import add_job, read_job
from tests.support.supervision import grandchild_of, running, training
from tests.support.workers import is_running, wait_for
from worker.relay import Relay
from worker.supervisor import Supervisor

STALL = timedelta(seconds=4)
"""Longer than a trainer takes to start on a busy machine."""


def test_a_hung_trainer_is_killed_with_its_children(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    script = {"steps": 3, "crash_at": {"2": "hang"}, "grandchild": True}
    job_id = add_job(sessions, max_attempts=1, hyperparameters=script)
    assert supervise(stall_timeout=STALL).run_one()
    job = read_job(sessions, job_id)
    assert job.error is not None
    assert job.error.code == "trainer_stalled"
    wait_for(lambda: not is_running(grandchild_of(sessions, job_id)))


@pytest.mark.parametrize("manner", ["hang", "babble", "close"])
def test_life_without_progress_ends_in_a_kill_and_a_retry_that_goes_on(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path, manner: str
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 3, "crash_at": {"2": manner}, "only_attempt": 1})
    supervisor = supervise(stall_timeout=STALL)
    assert supervisor.run_one()
    job = read_job(sessions, job_id)
    assert job.status is JobStatus.QUEUED
    assert "trainer_stalled" in job.transitions[-1].message
    assert supervisor.run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    assert (tmp_path / "runs" / job_id / "attempt-1").exists()


def test_that_life_counted_as_progress_would_be_seen(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one timer for both, and who only talks is never stopped."""
    monkeypatch.setattr(Relay, "stalled_s", Relay.silent_s)
    job_id = add_job(sessions, hyperparameters={"steps": 3, "crash_at": {"2": "babble"}})
    supervisor = supervise(stall_timeout=STALL, stop_grace=timedelta(0))
    with running(supervisor):
        wait_for(training(sessions, job_id))
        time.sleep(2 * STALL.total_seconds())
        assert read_job(sessions, job_id).status is JobStatus.RUNNING
        supervisor.stop()
    assert read_job(sessions, job_id).status is JobStatus.QUEUED


def test_long_work_without_steps_is_left_alone(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 2, "crash_at": {"2": "work 8"}})
    assert supervise(stall_timeout=STALL).run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED


def test_that_work_that_counts_for_nothing_would_be_killed(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same trainer, whose parts are signs of life alone."""
    reach = Relay._reach
    monkeypatch.setattr(Relay, "_reach", lambda self, mark, n: mark == "work" or reach(self, mark, n))
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 2, "crash_at": {"2": "work 8"}})
    assert supervise(stall_timeout=STALL).run_one()
    error = read_job(sessions, job_id).error
    assert error is not None
    assert error.code == "trainer_stalled"


@pytest.mark.parametrize(
    ("silence_timeout", "code"), [(5, "trainer_unresponsive"), (600, "trainer_stalled")], ids=["watched", "control"]
)
def test_a_frozen_process_is_noticed_by_its_silence(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], silence_timeout: float, code: str
) -> None:
    script = {"steps": 3, "crash_at": {"2": f"signal {signal.SIGSTOP.value}"}}
    job_id = add_job(sessions, max_attempts=1, hyperparameters=script)
    options = {"silence_timeout": timedelta(seconds=silence_timeout), "stall_timeout": timedelta(seconds=12)}
    assert supervise(**options).run_one()
    error = read_job(sessions, job_id).error
    assert error is not None
    assert error.code == code


def test_a_slow_but_talking_trainer_is_left_alone(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 10, "step_ms": 500})
    assert supervise(stall_timeout=STALL).run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
