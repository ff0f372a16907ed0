"""What jobs leave behind in the worker: no process, and no memory that grows with their number."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.jobs.claims import ClaimStore
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Job
from tests.support.jobs import add_job, read_job
from tests.support.supervision import grandchild_of, running, training
from tests.support.workers import is_running, wait_for
from worker.supervisor import Supervisor

WARM_UP = 10
NUM_JOBS = 50
MOST_GROWTH = 6 * 1024**2
"""Of resident memory over the jobs after the warm-up: 150 KiB a job."""


@pytest.mark.parametrize("end", ["succeeded", "failed", "crashed", "killed", "cancelled", "stopped", "lost"])
def test_no_descendant_outlives_its_job(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], end: str
) -> None:
    """Each trainer starts a process that would sleep for minutes; that it lives while the job does is the control."""
    scripts: dict[str, dict[str, Any]] = {
        "succeeded": {"steps": 20, "step_ms": 100},
        "failed": {"steps": 20, "step_ms": 100, "crash_at": {"20": "fatal"}},
        "crashed": {"steps": 20, "step_ms": 100, "crash_at": {"20": "signal 11"}},
        "killed": {"steps": 50, "step_ms": 50, "crash_at": {"20": "hang"}},
    }
    endless = {"steps": 10_000, "step_ms": 20, "deaf": end == "stopped"}
    script = {"grandchild": True, **scripts.get(end, endless)}
    job_id = add_job(sessions, max_attempts=2 if end == "lost" else 1, hyperparameters=script)
    supervisor = supervise(stall_timeout=timedelta(seconds=4), stop_grace=timedelta(seconds=1))
    with running(supervisor):
        wait_for(training(sessions, job_id), what="a step")
        grandchild = grandchild_of(sessions, job_id)
        assert is_running(grandchild)
        if end == "cancelled":
            with sessions() as session, session.begin():
                JobStore(session).request_cancel(job_id)
        if end == "stopped":
            supervisor.stop()
        if end == "lost":
            with sessions() as session, session.begin():
                session.execute(update(Job).values(lease_until=now_plus(timedelta(seconds=-1))))
                assert ClaimStore(session).take("heir", timedelta(seconds=60), job_id) is not None
    expected = {
        "succeeded": JobStatus.SUCCEEDED, "cancelled": JobStatus.CANCELLED, "stopped": JobStatus.QUEUED,
        "lost": JobStatus.RUNNING,
    }  # fmt: skip
    assert read_job(sessions, job_id).status is expected.get(end, JobStatus.FAILED)
    wait_for(lambda: not is_running(grandchild), what="the end of the trainer's own child")


def held(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a supervisor held after each of many jobs."""
    command = [sys.executable, "-m", "tests.support.many_jobs", str(folder), str(NUM_JOBS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("held ")]
    assert len(found) == NUM_JOBS
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("defect", ["sound", "leak"])
def test_a_supervisor_holds_no_more_after_fifty_jobs_than_after_ten(tmp_path: Path, defect: str) -> None:
    """A third each succeed, fail and crash. Leak, which keeps 512 KiB of each job, is the negative control."""
    after = held(tmp_path, *(["leak"] if defect == "leak" else []))
    growth = after[-1]["resident"] - after[WARM_UP]["resident"]
    assert (growth > MOST_GROWTH) == (defect == "leak"), growth
    for name in ("files", "threads", "children"):
        assert after[-1][name] == after[WARM_UP][name], name
    assert after[-1]["children"] == []
    assert not after[-1]["torch"], "and no GPU either: it never loads what could hold one"
