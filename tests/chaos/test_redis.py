"""A Redis that forgets, restarts, fills up, holds nonsense, or delivers again what somebody works on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs.hint import QUEUE
from app.jobs.status import JobStatus
from app.queue import CeleryTaskQueue
from tests.chaos.test_broker import starts, wait_for_sweeps
from tests.chaos.test_workers import num_classifiers, status, wait_until, wait_until_training
from tests.support.brokers import RedisServer, redis_server
from tests.support.clock import Clock
from tests.support.databases import empty_database
from tests.support.jobs import add_job, read_job
from tests.support.stacks import Stack
from tests.support.workers import WorkerProcess, is_running, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]

pytestmark = pytest.mark.services
ON_HINTS_ALONE = ("--no-asking", "--no-resend")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Stack:
    """PostgreSQL with a Redis of the test's own."""
    return Stack(database_url=empty_database("postgresql", request, tmp_path), broker_url=redis.url, queue=QUEUE)


class Sender(CeleryTaskQueue):
    """Makes no pauses."""

    def __init__(self, broker_url: str) -> None:
        self._now = Clock()
        super().__init__(broker_url, clock=self._now)

    def send(self, job_id: str) -> bool:
        self._now.now += self.PAUSE_S
        return super().send(job_id)


@pytest.fixture
def sender(redis: RedisServer) -> Iterator[Sender]:
    sender = Sender(redis.url)
    yield sender
    sender.close()


def break_with_a_hint(redis: RedisServer, worker: WorkerProcess, sender: Sender) -> None:
    """Have a worker that listens receive a hint from a Redis that is full: it cannot note that it has it."""
    worker.send(signal.SIGSTOP)
    assert sender.send(new_id("job"))  # the worker's open request takes it at once
    with redis.full():
        worker.send(signal.SIGCONT)
        wait_for(lambda: worker.events("hints_not_heard") or worker.process.poll() is not None, what="Celery to break")


def befall(fault: str, redis: RedisServer, worker: WorkerProcess, sender: Sender) -> None:
    if fault == "flush":
        redis.client.flushall()
    if fault in {"restart", "restart thrice"}:
        for _ in range(3 if fault == "restart thrice" else 1):
            redis.restart()
    if fault == "full":
        break_with_a_hint(redis, worker, sender)
    if fault == "nonsense":
        redis.client.lpush(QUEUE, "no message at all")


FAULTS = ["flush", "restart", "restart thrice", "full"]


def test_whatever_befalls_redis_running_jobs_go_on_and_queued_ones_start(
    start_worker: StartWorker, sessions: Sessions, redis: RedisServer, sender: Sender
) -> None:
    running = add_job(sessions, hyperparameters={"steps": 10_000, "step_ms": 20})
    worker = start_worker(worker_concurrency="2", lease="PT600S")
    wait_until_training(sessions, running)
    trainer = worker.trainer_pid()
    wait_for(lambda: "ready." in worker.log_path.read_text(), what="the worker to listen")
    for fault in FAULTS:
        queued = add_job(sessions)
        sender.send(queued)
        befall(fault, redis, worker, sender)
        wait_until(sessions, queued, JobStatus.SUCCEEDED)
        assert starts(sessions, queued) == 1
    assert status(sessions, running) is JobStatus.RUNNING
    assert read_job(sessions, running).attempt == 1
    assert is_running(trainer)
    assert worker.process.poll() is None


@pytest.mark.parametrize("flags", [[], ["--listen-once"]], ids=["protected", "listens once"])
def test_whatever_befalls_redis_hints_are_heard_afterwards(
    start_worker: StartWorker, sessions: Sessions, redis: RedisServer, sender: Sender, flags: list[str]
) -> None:
    """The control ends when its Redis is full, and its job with it."""
    worker = start_worker(*ON_HINTS_ALONE, *flags)
    wait_for(lambda: "ready." in worker.log_path.read_text(), what="the worker to listen")
    if flags:
        befall("full", redis, worker, sender)
        assert worker.wait() != 0
        return
    for fault in [*FAULTS, "nonsense"]:
        befall(fault, redis, worker, sender)
        job_id = add_job(sessions)
        assert sender.send(job_id)
        wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    held = num_polling(worker)
    for n in range(len(worker.events("hints_not_heard")), 10):
        befall("nonsense", redis, worker, sender)
        wait_for(lambda n=n: len(worker.events("hints_not_heard")) > n, what="Celery to break")  # type: ignore[misc]
    assert num_polling(worker) <= held, "descriptors of a Celery that is no more"


def num_polling(worker: WorkerProcess) -> int:
    """Epoll descriptors that a worker has open."""
    num = 0
    for descriptor in Path(f"/proc/{worker.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            num += "eventpoll" in str(descriptor.readlink())
    return num


def test_a_worker_that_is_told_to_go_while_redis_is_frozen_gives_its_job_back_and_ends(
    start_worker: StartWorker, sessions: Sessions, redis: RedisServer, sender: Sender
) -> None:
    """Both workers have begun to take a hint, which Redis is to note. The control waits for that for ever."""
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 10_000, "step_ms": 20})
    worker = start_worker("--no-resend", lease="PT600S")
    wait_until_training(sessions, job_id)
    control = start_worker(*ON_HINTS_ALONE, "--patient")
    workers = [worker, control]
    for each in workers:
        wait_for(lambda each=each: "ready." in each.log_path.read_text(), what="the worker to listen")  # type: ignore[misc]
        each.send(signal.SIGSTOP)
    assert sender.send(new_id("job"))
    assert sender.send(new_id("job"))
    with redis.frozen():
        for each in workers:
            each.send(signal.SIGCONT)
        wait_for_sweeps(sessions, 10)  # both had time to read their hints
        for each in workers:
            each.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert status(sessions, job_id) is JobStatus.QUEUED
        assert control.process.poll() is None
    assert control.wait() == 0


@pytest.mark.parametrize("flags", [[], ["--acks-late"]], ids=["acks early", "acks late"])
def test_a_job_longer_than_the_visibility_timeout_is_published_once(
    start_worker: StartWorker, sessions: Sessions, redis: RedisServer, sender: Sender, flags: list[str]
) -> None:
    """The control acknowledges late: its hint is delivered again meanwhile, and the ledger has no job for it."""
    workers = [start_worker(*ON_HINTS_ALONE, "--visibility-timeout=1", *flags, lease="PT600S") for _ in range(2)]
    job_id = add_job(sessions, hyperparameters={"steps": 150, "step_ms": 40})
    assert sender.send(job_id)
    wait_until_training(sessions, job_id)
    if not flags:
        assert redis.client.hlen("unacked") == 0, "there is nothing to deliver again"
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 1
    assert num_classifiers(sessions) == 1
    assert [e["job_id"] for w in workers for e in w.events("hint_dropped")] == ([job_id] if flags else [])
