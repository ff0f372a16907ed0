"""A job on several devices: two real ranks on the CPU through the worker, and what the agent makes of their ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.messages import EventType, Scheduling
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.storage import BlobStore
from tests.support.jobs import add_job, read_job
from tests.support.supervision import training
from tests.support.tiny import CLASSES, make_base, make_images
from tests.support.workers import is_running, wait_for
from tests.worker.test_devices import take
from worker.child import ORPHANED
from worker.devices import Devices, Owned
from worker.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TRAINER = (sys.executable, "-m", "worker.trainer")


@pytest.fixture
def add_real_job(sessions: sessionmaker[Session], storage: BlobStore, tmp_path: Path) -> Callable[..., str]:
    """Submits a job of 36 images for two devices."""
    images = make_images(tmp_path / "images", 36)
    digests = tuple(storage.put_file(path) for path in images)

    def add(**hyperparameters: Any) -> str:
        chosen = {"epochs": 4, "batch_size": 8, "learning_rate_per_256": 1e-3, **hyperparameters}
        return add_job(
            sessions, digests=digests, classes=CLASSES, hyperparameters=chosen, scheduling=Scheduling(num_gpus=2)
        )

    return add


@pytest.fixture
def make_real(supervise: Callable[..., Supervisor], tmp_path: Path) -> Callable[..., Supervisor]:
    """Makes supervisors with the real trainer and two devices on the CPU."""
    base = make_base(tmp_path / "base")
    devices = Devices(Owned.parse("cpu:2"))
    patient = {name: timedelta(seconds=200) for name in ("lease", "stall_timeout", "silence_timeout", "stop_grace")}
    return lambda: supervise(models={"tiny-clip": base}, devices=devices, trainer=TRAINER, **patient)


def children_of(parent: int) -> list[int]:
    """Processes that it started."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def events_of(sessions: sessionmaker[Session], job_id: str, kind: EventType) -> list[Any]:
    with sessions() as session:
        return [e.data for e in JobStore(session).events(job_id) if e.type is kind]


def test_two_ranks_stop_at_a_checkpoint_go_on_and_publish_once(
    make_real: Callable[[], Supervisor],
    add_real_job: Callable[..., str],
    sessions: sessionmaker[Session],
    tmp_path: Path,
) -> None:
    job_id = add_real_job(epochs=60)
    first = make_real()
    thread = threading.Thread(target=first.run_one, daemon=True)
    thread.start()
    wait_for(training(sessions, job_id), timeout_s=150)
    first.stop()
    thread.join(timeout=150)
    assert not thread.is_alive()
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)
    stopped_at = (job.progress or {})["step"]
    assert make_real().run_one()
    job = read_job(sessions, job_id)
    assert job.status is JobStatus.SUCCEEDED, (tmp_path / "runs" / job_id / "attempt-2" / "trainer.log").read_text()
    assert job.adapted_classifier_id is not None
    assert (job.progress or {})["step"] == (job.progress or {})["total_steps"] == 240
    assert len(events_of(sessions, job_id, EventType.CHOICES)) == 2, "the first rank alone reports, once an attempt"
    log = (tmp_path / "runs" / job_id / "attempt-2" / "trainer.log").read_text()
    (resumed,) = [json.loads(line)["step"] for line in log.splitlines() if '"resumed"' in line]
    assert resumed >= stopped_at


def test_what_a_rank_finds_wrong_is_told(
    make_real: Callable[[], Supervisor], add_real_job: Callable[..., str], sessions: sessionmaker[Session]
) -> None:
    job_id = add_real_job(no_such=1)
    assert make_real().run_one()
    job = read_job(sessions, job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("unknown_field", "hyperparameters")


@pytest.mark.parametrize("victim", ["agent", "rank"])
def test_a_killed_agent_or_rank_takes_all_along_and_frees_the_devices(
    make_real: Callable[[], Supervisor],
    add_real_job: Callable[..., str],
    sessions: sessionmaker[Session],
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
) -> None:
    monkeypatch.setattr("worker.process.kernel_kills", lambda: 0)  # other tests bring such kills about
    job_id = add_real_job(epochs=2000)
    supervisor = make_real()
    thread = threading.Thread(target=supervisor.run_one, daemon=True)
    thread.start()
    wait_for(training(sessions, job_id), timeout_s=150)
    (agent,) = [pid for pid in children_of(os.getpid()) if len(children_of(pid)) == 2]
    ranks = children_of(agent)
    if victim == "agent":  # frozen, they cannot notice by themselves that it is gone
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
    os.kill(agent if victim == "agent" else ranks[1], signal.SIGKILL)
    thread.join(timeout=150)
    assert not thread.is_alive()
    wait_for(lambda: not any(map(is_running, (agent, *ranks))), timeout_s=5, what="the end of all")
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1)
    assert "worker_lost" in job.transitions[-1].message
    assert take(supervisor.devices, 2) is not None


RANK = """
from worker.child import TrainerLink
TrainerLink()
print("lives")
"""


@pytest.mark.parametrize("orphaned", [True, False])
def test_a_rank_whose_agent_is_gone_opens_nothing(*, orphaned: bool) -> None:
    """Not orphaned is the control: the same descriptor of the same parent is opened. An orphan's parent is another
    process, in a container the worker itself."""
    reports, report_write = os.pipe()
    stdin, held_open = os.pipe()
    agent = os.getpid() + orphaned
    environment = {"MUST_REPORT_FD": str(report_write), "MUST_AGENT_PID": str(agent), "WORLD_SIZE": "2", "RANK": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", RANK],
            stdin=stdin,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        for descriptor in (reports, report_write, stdin, held_open):
            os.close(descriptor)
    assert (ended.returncode, ended.stdout) == ((ORPHANED, "") if orphaned else (0, "lives\n")), ended.stderr


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("import os; os._exit(64 if os.environ['RANK'] == '1' else 0)", 64),
        ("import os; os.kill(os.getpid(), 11)", -11),
    ],
)
def test_the_agent_ends_as_its_first_failed_rank_and_leaves_nothing(program: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker.ranks", "2", "5", sys.executable, "-c", program]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr
    assert list(tmp_path.iterdir()) == []
