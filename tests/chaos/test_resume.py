"""The trainer that users' jobs run, under a worker that is killed."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.status import JobStatus
from app.storage import make_storage
from app.tables import Classifier
from tests.support.jobs import add_job, read_job
from tests.support.stacks import EMBEDDED, only
from tests.support.tiny import CLASSES, make_base, make_images
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]

EPOCHS, STEPS_PER_EPOCH = 80, 3
HYPERPARAMETERS = {"epochs": EPOCHS, "batch_size": 8, "learning_rate_per_256": 1e-3, "confidence_threshold": 0.3}
PATIENCE_S = 200.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), only(EMBEDDED)]


@pytest.fixture
def add(sessions: Sessions, tmp_path: Path) -> Callable[..., str]:
    """Adds jobs on the same images."""
    storage = make_storage(str(tmp_path / "blobs"), tmp_path / "cache")
    digests = tuple(storage.put_file(path) for path in make_images(tmp_path / "images", 8 * STEPS_PER_EPOCH))

    def submit() -> str:
        return add_job(
            sessions,
            digests=digests,
            classes=[{"name": name} for name in CLASSES],
            templates=["a {} thing"],
            seed=3,
            max_attempts=9,
            hyperparameters=HYPERPARAMETERS,
        )

    return submit


@pytest.fixture
def start(start_worker: StartWorker, tmp_path: Path) -> Callable[[], WorkerProcess]:
    """Starts workers with the real trainer and a base model that trains in milliseconds."""
    models = json.dumps({"tiny-clip": make_base(tmp_path / "base")})
    return lambda: start_worker("--trainer", "real", models=models, lease="PT6S", checkpoint_interval="PT0.2S")


def step_of(sessions: Sessions, job_id: str) -> int:
    return int((read_job(sessions, job_id).progress or {}).get("step") or 0)


def resumed_at(folder: Path, job_id: str, attempt: int) -> list[int]:
    """Where the trainer of an attempt says that it went on."""
    log = folder / "runs" / job_id / f"attempt-{attempt}" / "trainer.log"  # there once anything was said
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")] if log.exists() else []
    return [line["step"] for line in told if line["event"] == "resumed"]


def weights(sessions: Sessions, job_id: str) -> str:
    """sha256 of what the job's classifier weighs."""
    with sessions() as session:
        files = session.scalars(
            select(Classifier.files).where(Classifier.job_id == job_id, Classifier.kind == "adapted")
        )
        return str(files.one()["weights.safetensors"])


def test_a_job_whose_worker_was_killed_three_times_has_the_weights_of_one_that_nothing_befell(
    start: Callable[[], WorkerProcess], add: Callable[..., str], sessions: Sessions, tmp_path: Path
) -> None:
    """That a checkpoint which lost a number would be seen, the control, and that no more than an interval is done
    again, is in tests/must_core/test_crash.py."""
    straight, killed = add(), add()
    worker = start()
    total = EPOCHS * STEPS_PER_EPOCH
    kills = sorted(random.Random(9).sample(range(total // 10, total * 2 // 3), 3))
    wait_for(lambda: read_job(sessions, straight).status.is_terminal, timeout_s=PATIENCE_S, what="the straight run")
    for n, step in enumerate(kills):
        wait_for(
            lambda step=step, n=n: read_job(sessions, killed).attempt > n and step_of(sessions, killed) >= step,
            timeout_s=PATIENCE_S,
            what=f"step {step}",
        )
        assert read_job(sessions, killed).status is JobStatus.RUNNING
        worker.send(signal.SIGKILL)
        worker.wait()
        worker = start()
    wait_for(lambda: read_job(sessions, killed).status.is_terminal, timeout_s=PATIENCE_S, what="the killed run")
    job = read_job(sessions, killed)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 4)
    resumes = [resumed_at(tmp_path, killed, attempt) for attempt in (1, 2, 3, 4)]
    assert resumes[0] == []
    assert all(0 < step[0] < total for step in resumes[1:]), resumes
    assert resumes == sorted(resumes), "each went on further"
    assert weights(sessions, killed) == weights(sessions, straight)
