"""A trainer that is killed again and again does nothing twice but the step that was under way."""

import os
import random
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.status import JobStatus
from tests.support.jobs import add_job, read_job
from tests.support.supervision import running
from tests.support.workers import wait_for
from worker import runs
from worker.supervisor import Supervisor

NUM_KILLS = 10
NUM_STEPS = 200
LAST_KILL = 60
"""A busy machine may be late with it."""


def steps_of(folder: Path, job_id: str, attempt: int) -> list[int]:
    """The steps that an attempt did."""
    done = folder / "runs" / job_id / f"attempt-{attempt}" / "steps.txt"
    return [int(step) for step in done.read_text().split()] if done.exists() else []


def trainer_of(job_id: str) -> int:
    """The process of the job's trainer."""

    def found() -> int | None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"scripted_trainer" in command and job_id.encode() in command:
                return int(path.parent.name)
        return None

    return wait_for(found, what="a trainer") or 0


@pytest.mark.parametrize("checkpoints", ["kept", "forgotten"])
def test_each_of_ten_resumes_does_at_most_a_step_again(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: str,
) -> None:
    """Forgotten is the control: there, each attempt begins at the beginning."""
    if checkpoints == "forgotten":
        monkeypatch.setattr(runs, "earlier_checkpoints", lambda *_: [])
    # The last step is never done: a job that ends well would be tidied up.
    script = {"steps": NUM_STEPS, "step_ms": 20, "crash_at": {str(NUM_STEPS): "fatal"}}
    job_id = add_job(sessions, max_attempts=NUM_KILLS + 1, hyperparameters=script)
    supervisor = supervise()
    kills = sorted(random.Random(8).sample(range(1, LAST_KILL), NUM_KILLS))
    for attempt, step in enumerate(kills, 1):
        with running(supervisor):
            wait_for(lambda a=attempt, s=step: max(steps_of(tmp_path, job_id, a), default=0) >= s, what=f"step {step}")
            os.kill(trainer_of(job_id), signal.SIGKILL)
        assert read_job(sessions, job_id).status is JobStatus.QUEUED
    assert supervisor.run_one()
    assert read_job(sessions, job_id).status is JobStatus.FAILED
    done = [steps_of(tmp_path, job_id, attempt) for attempt in range(1, NUM_KILLS + 2)]
    if checkpoints == "forgotten":
        assert all(steps[0] == 1 for steps in done)
        return
    done_twice = sum(map(len, done)) - len({step for steps in done for step in steps})
    assert sorted({step for steps in done for step in steps}) == list(range(1, NUM_STEPS))
    assert done_twice <= NUM_KILLS
    for before, after in pairwise(done):
        assert not after or after[0] in {before[-1], before[-1] + 1}
