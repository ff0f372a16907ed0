"""A RabbitMQ that is killed and comes back, or loses patience with a consumer."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs import hint
from app.jobs.status import JobStatus
from app.queue import CeleryTaskQueue
from tests.chaos.test_broker import starts
from tests.chaos.test_workers import num_classifiers, wait_until, wait_until_training
from tests.support.brokers import RabbitMQServer, rabbitmq_server
from tests.support.databases import empty_database
from tests.support.jobs import add_job
from tests.support.stacks import Stack
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]

pytestmark = pytest.mark.services
ON_HINTS_ALONE = ("--no-asking", "--no-resend")
TIMED_OUT = "delivery acknowledgement on channel 1 timed out"


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """Waits two seconds for an acknowledgement; thirty minutes is usual."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq"), consumer_timeout_ms=2000) as server:
        yield server


@pytest.fixture
def stack(
    request: pytest.FixtureRequest, tmp_path: Path, rabbitmq: RabbitMQServer, monkeypatch: pytest.MonkeyPatch
) -> Stack:
    """PostgreSQL with this RabbitMQ, and a queue of the test's own."""
    queue = f"must_test_{secrets.token_hex(6)}"
    monkeypatch.setattr(hint, "QUEUE", queue)
    return Stack(database_url=empty_database("postgresql", request, tmp_path), broker_url=rabbitmq.url, queue=queue)


@pytest.fixture
def sender(stack: Stack, rabbitmq: RabbitMQServer) -> Iterator[CeleryTaskQueue]:
    sender = CeleryTaskQueue(rabbitmq.url)
    yield sender
    sender.close()


def test_a_job_longer_than_the_consumer_timeout_is_published_once_and_hints_are_heard_afterwards(
    start_worker: StartWorker, sessions: Sessions, sender: CeleryTaskQueue
) -> None:
    """A second hint waits behind the job that the first began, for longer than RabbitMQ has patience.

    What does not survive that is shown by the test below.
    """
    job_id = add_job(sessions, hyperparameters={"steps": 200, "step_ms": 30})
    assert sender.send(job_id)
    worker = start_worker(*ON_HINTS_ALONE, lease="PT600S")
    wait_until_training(sessions, job_id)
    assert sender.send(new_id("job"))
    wait_for(lambda: TIMED_OUT in worker.log_path.read_text(), what="the timeout")
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 1
    assert num_classifiers(sessions) == 1
    later = add_job(sessions)
    assert sender.send(later)
    wait_until(sessions, later, JobStatus.SUCCEEDED)


def test_the_hint_of_a_running_job_is_delivered_again_to_who_acknowledges_late(
    start_worker: StartWorker, sessions: Sessions, sender: CeleryTaskQueue
) -> None:
    """The control, twice over: its timeout is that of the job's own hint, which finds no job, and its Celery, not
    listening again, ends the worker."""
    job_id = add_job(sessions, hyperparameters={"steps": 200, "step_ms": 30})
    assert sender.send(job_id)
    worker = start_worker(*ON_HINTS_ALONE, "--acks-late", "--listen-once", lease="PT600S")
    wait_for(lambda: TIMED_OUT in worker.log_path.read_text(), what="the timeout")
    assert worker.wait() != 0
    heir = start_worker(*ON_HINTS_ALONE)
    wait_for(lambda: heir.events("hint_dropped"), what="the hint to be delivered again")
    assert heir.events("hint_dropped")[0]["job_id"] == job_id
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 1
    assert num_classifiers(sessions) == 1


def test_after_a_restart_a_running_job_is_published_once_and_hints_are_heard(
    start_worker: StartWorker, sessions: Sessions, rabbitmq: RabbitMQServer, sender: CeleryTaskQueue
) -> None:
    """A hint that waited outlives the broker's death, for it was on its disk."""
    job_id, nobody = add_job(sessions, hyperparameters={"steps": 200, "step_ms": 30}), new_id("job")
    worker = start_worker(*ON_HINTS_ALONE, lease="PT600S")
    assert sender.send(job_id)
    wait_until_training(sessions, job_id)
    assert sender.send(nobody)
    rabbitmq.restart()
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 1
    assert num_classifiers(sessions) == 1
    wait_for(lambda: [e for e in worker.events("hint_dropped") if e["job_id"] == nobody], what="the hint that waited")
    later = add_job(sessions)
    assert sender.send(later)
    wait_until(sessions, later, JobStatus.SUCCEEDED)
