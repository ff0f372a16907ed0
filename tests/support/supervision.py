"""A supervisor in the test's own process, with the scripted trainer."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from app.jobs.ledger import Ledger
from app.jobs.messages import EventType
from app.jobs.store import JobStore
from app.storage import BlobStore
from tests.support.jobs import read_job
from worker.supervisor import Supervisor, SupervisorOptions

TRAINER = (sys.executable, "-m", "tests.support.scripted_trainer")


def make_supervisor(ledger: Ledger, storage: BlobStore, runs_dir: Path, **options: Any) -> Supervisor:
    """One with short times."""
    return Supervisor(
        ledger=ledger,
        storage=storage,
        options=SupervisorOptions(
            **{
                "models": {"tiny-clip": "local-dir:/nowhere"},
                "runs_dir": runs_dir,
                "lease": timedelta(seconds=20),
                "stall_timeout": timedelta(seconds=20),
                "silence_timeout": timedelta(seconds=20),
                "stop_grace": timedelta(seconds=10),
                "retry_delay": timedelta(0),
                "trainer": TRAINER,
                **options,
            }
        ),
    )


@contextmanager
def running(supervisor: Supervisor) -> Iterator[threading.Thread]:
    """Run one job in the background; the block must bring about its end."""
    thread = threading.Thread(target=supervisor.run_one, daemon=True)
    thread.start()
    yield thread
    thread.join(timeout=60)
    assert not thread.is_alive()


def training(sessions: sessionmaker[Session], job_id: str) -> Callable[[], bool]:
    """Whether the job has done a step."""
    return lambda: (read_job(sessions, job_id).progress or {}).get("step", 0) > 0


def grandchild_of(sessions: sessionmaker[Session], job_id: str) -> int:
    """Pid of the process that the job's trainer started."""
    with sessions() as session, session.begin():
        events = JobStore(session).events(job_id)
    return int(next(e.data["metrics"]["grandchild"] for e in events if e.type is EventType.METRICS))
