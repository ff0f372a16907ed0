"""Many short jobs, and workers that die, freeze and come back all the time."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.jobs.status import JobStatus
from app.queue import CeleryTaskQueue
from app.tables import Classifier, Job
from tests.support.jobs import add_job, read_job
from tests.support.stacks import Stack
from tests.support.workers import WorkerProcess

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]

NUM_JOBS = 60
NUM_WORKERS = 6
NUM_BLOWS = 14
FROZEN_S = 3.0
"""More than the lease."""
SCRIPT = {"steps": 5, "step_ms": 60}


class Storm:
    """Workers, and what befalls them: as a seed has it, one after the other."""

    def __init__(self, start_worker: StartWorker, seed: int) -> None:
        self._start, self._random = start_worker, random.Random(seed)
        self.everybody: list[WorkerProcess] = []
        self.workers = [self._begin() for _ in range(NUM_WORKERS)]
        self._thaw_at: dict[WorkerProcess, float] = {}
        self.blows: Counter[str] = Counter()

    def _begin(self) -> WorkerProcess:
        worker = self._start("--trainer", "quick", ready=False, lease="PT1.5S", sweep_interval="PT0.5S")
        self.everybody.append(worker)
        return worker

    def blow(self) -> None:
        """Kill one and start another for it, or freeze one for longer than its lease."""
        awake = [n for n, worker in enumerate(self.workers) if worker not in self._thaw_at]
        if not awake:
            return
        n = self._random.choice(awake)
        victim, what = self.workers[n], self._random.choice(["killed", "frozen"])
        self.blows[what] += 1
        if what == "killed":
            victim.send(signal.SIGKILL)
            victim.wait()
            self.workers[n] = self._begin()
        else:
            victim.send(signal.SIGSTOP)
            self._thaw_at[victim] = time.monotonic() + FROZEN_S

    def thaw(self, *, everybody: bool = False) -> None:
        """Wake those whose time has come."""
        for worker, at in list(self._thaw_at.items()):
            if everybody or time.monotonic() >= at:
                worker.send(signal.SIGCONT)
                del self._thaw_at[worker]


def num_unfinished(sessions: Sessions) -> int:
    with read_only(sessions) as session:  # a frozen worker may hold SQLite's lock, and it is we who wake it
        return sum(not JobStatus(status).is_terminal for status in session.scalars(select(Job.status)))


@pytest.mark.timeout(240)
def test_every_job_of_many_is_published_once(start_worker: StartWorker, sessions: Sessions, stack: Stack) -> None:
    """The control, a zombie that publishes where the fence is off, is in test_zombies.py, where it can be placed."""
    job_ids = [add_job(sessions, max_attempts=1000, hyperparameters=SCRIPT) for _ in range(NUM_JOBS)]
    queue = CeleryTaskQueue(stack.broker_url) if stack.broker_url else None
    for job_id in job_ids if queue else ():
        assert queue is None or queue.send(job_id)
    storm = Storm(start_worker, seed=20)
    storm.workers[0].wait_until_ready()
    deadline = time.monotonic() + 200
    while num_unfinished(sessions):
        assert time.monotonic() < deadline, f"{num_unfinished(sessions)} jobs are left"
        if storm.blows.total() < NUM_BLOWS:
            storm.blow()
        time.sleep(0.4)
        storm.thaw()
    storm.thaw(everybody=True)
    if queue is not None:
        queue.close()

    assert min(storm.blows.values()) >= 4, storm.blows
    starts = 0
    for job_id in job_ids:
        job = read_job(sessions, job_id)
        moves = [t.status for t in job.transitions]
        starts += moves.count(JobStatus.RUNNING)
        assert (job.status, moves.count(JobStatus.SUCCEEDED), moves[-1]) == (
            JobStatus.SUCCEEDED,
            1,
            JobStatus.SUCCEEDED,
        )
    assert starts > NUM_JOBS, "the storm hit some jobs"
    with sessions() as session:
        assert sorted(session.scalars(select(Classifier.job_id))) == sorted(job_ids)
    published = Counter(e["job_id"] for w in storm.everybody for e in w.events("classifier_published"))
    assert set(published.values()) == {1}
