"""Who lives keeps its job, however starved and whatever its clock says; who is dead loses it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.jobs.status import JobStatus
from tests.chaos.test_workers import Sessions, StartWorker, wait_for_attempt, wait_until, wait_until_training
from tests.support.jobs import add_job, read_job
from tests.support.stacks import EMBEDDED, REDIS, only
from tests.support.workers import wait_for

NUM_BUSY = 2
BUSY = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"


@pytest.fixture
def starve() -> Iterator[Callable[[int], None]]:
    """Confines a process to one processor, and has others keep that one busy: two minutes at most."""
    processes: list[subprocess.Popen[bytes]] = []

    def confine(pid: int) -> None:
        processor = {min(os.sched_getaffinity(0))}
        for task in Path(f"/proc/{pid}/task").iterdir():  # what they start from now on stays there too
            os.sched_setaffinity(int(task.name), processor)
        for _ in range(NUM_BUSY):
            processes.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY]))
            os.sched_setaffinity(processes[-1].pid, processor)

    yield confine
    for process in processes:
        process.kill()
        process.wait()


@only(EMBEDDED)
@pytest.mark.parametrize("beats", [True, False])
def test_a_starved_worker_keeps_its_job_for_twenty_leases(
    start_worker: StartWorker, sessions: Sessions, starve: Callable[[int], None], *, beats: bool
) -> None:
    """Another one looks for dropped jobs all the time. Without beats, the control, it takes the job though its worker
    is as alive (and would stop by itself before, so that is off, too)."""
    job_id = add_job(sessions, hyperparameters={"steps": 32, "step_ms": 1000})
    worker = start_worker("--trainer", "quick", *([] if beats else ["--no-beats", "--no-overdue"]), lease="PT1.5S")
    trainer = worker.trainer_pid()
    for pid in (worker.process.pid, trainer):
        starve(pid)
    other = start_worker(lease="PT1.5S")
    if not beats:
        wait_for_attempt(sessions, job_id, 2)
        return
    wait_for(lambda: read_job(sessions, job_id).status.is_terminal, timeout_s=200, what="the end")
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)
    assert (job.finished_at - job.started_at).total_seconds() > 20 * 1.5
    assert other.events("job_claimed") == []


@only(REDIS)
@pytest.mark.parametrize("shift_s", [-3600, 3600])
@pytest.mark.parametrize("clock", ["database", "own"])
def test_a_worker_whose_clock_is_an_hour_off_keeps_its_job_and_takes_nobodys(
    start_worker: StartWorker, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, clock: str, shift_s: int
) -> None:
    """SQLite's clock is its host's, and all its workers are there. The control is a lease by the worker's own clock:
    behind, its job is taken for dropped at once; ahead, it is not for an hour after the worker's death."""
    arguments = ["--no-database-clock"] if clock == "own" else []
    job_id = add_job(sessions, hyperparameters={"steps": 150 if clock == "database" else 100_000, "step_ms": 40})
    with monkeypatch.context() as wrong:
        wrong.setenv("TEST_CLOCK_SHIFT_S", str(shift_s))
        worker = start_worker(*arguments, lease="PT20S")
    (started,) = worker.events("worker_started")
    if clock == "own" and shift_s < 0:
        wait_for_attempt(sessions, job_id, 2)  # it needs no other to do that to itself
        return
    wait_until_training(sessions, job_id)
    other = start_worker()
    (right,) = other.events("worker_started")
    assert (started["timestamp"] > right["timestamp"]) == (shift_s > 0), "its clock is off"
    if clock == "database":
        wait_until(sessions, job_id, JobStatus.SUCCEEDED)
        assert (read_job(sessions, job_id).attempt, other.events("job_claimed")) == (1, [])
    else:
        worker.send(signal.SIGKILL)
        wait_until(sessions, add_job(sessions), JobStatus.SUCCEEDED)
        assert read_job(sessions, job_id).attempt == 1


@only(EMBEDDED)
@pytest.mark.parametrize("sweeps", [True, False])
def test_a_worker_that_dies_in_the_last_attempt_fails_the_job(
    start_worker: StartWorker, sessions: Sessions, *, sweeps: bool
) -> None:
    """Nobody may take it over. Without a sweeper, the control, it would be said to run for ever."""
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 1000, "step_ms": 20})
    first = start_worker()
    wait_until_training(sessions, job_id)
    first.send(signal.SIGKILL)
    start_worker(*([] if sweeps else ["--no-sweeper"]))
    if not sweeps:
        for _ in range(3):  # longer than its lease
            wait_until(sessions, add_job(sessions, hyperparameters={"steps": 50, "step_ms": 20}), JobStatus.SUCCEEDED)
        assert read_job(sessions, job_id).status is JobStatus.RUNNING
        return
    wait_until(sessions, job_id, JobStatus.FAILED)
    error = read_job(sessions, job_id).error
    assert error is not None
    assert error.code == "worker_lost"
