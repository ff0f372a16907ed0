"""With a broker: messages that are doubled, lost or forged, and a worker that is told to go."""

import signal
from collections.abc import Callable

from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs.hint import TASK_NAME
from app.jobs.status import JobStatus
from app.queue import CeleryTaskQueue
from tests.chaos.test_workers import status, wait_until, wait_until_training
from tests.support.jobs import add_job, read_job
from tests.support.stacks import RABBITMQ, REDIS, Stack, only
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]


def starts(sessions: Sessions, job_id: str) -> int:
    return [t.status for t in read_job(sessions, job_id).transitions].count(JobStatus.RUNNING)


@only(REDIS, RABBITMQ)
def test_a_message_sent_twenty_times_has_one_owner(start_worker: StartWorker, sessions: Sessions, stack: Stack) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 20, "step_ms": 20})
    queue = CeleryTaskQueue(stack.broker_url)
    assert all(queue.send(job_id) for _ in range(20))
    workers = [start_worker(worker_concurrency="3", lease="PT600S") for _ in range(2)]
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    heard = wait_for(lambda: sum(len(w.events("hint_dropped")) for w in workers) >= 19, what="all messages to be heard")
    queue.close()
    assert heard
    assert starts(sessions, job_id) == 1
    assert sum(len(w.events("job_claimed")) for w in workers) == 1


@only(REDIS)
def test_a_lost_message_is_made_up_for_and_forged_ones_do_no_harm(
    start_worker: StartWorker, sessions: Sessions, stack: Stack
) -> None:
    job_id = add_job(sessions)  # its message never reached the broker
    forger = Celery(broker=stack.broker_url, set_as_current=False)
    for arguments in ([new_id("job")], ["../../etc"], [7], [], [job_id, "more"], [{"a": 1}]):
        forger.send_task(TASK_NAME, args=arguments, queue=stack.queue)
    forger.send_task("os.system", args=["true"], queue=stack.queue)
    forger.send_task(TASK_NAME, args=[job_id], queue=stack.queue, serializer="pickle")
    worker = start_worker()
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 1
    later = add_job(sessions)
    wait_until(sessions, later, JobStatus.SUCCEEDED)
    # The worker asks by itself too, and may be done before it has heard a single hint.
    wait_for(lambda: len(worker.events("hint_forged")) >= 4, what="the forged hints to be heard")
    forger.close()


@only(REDIS, RABBITMQ)
def test_a_worker_behind_a_broker_stops_gracefully(start_worker: StartWorker, sessions: Sessions, stack: Stack) -> None:
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 80, "step_ms": 30})
    first = start_worker(lease="PT600S")
    wait_until_training(sessions, job_id)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert status(sessions, job_id) is JobStatus.QUEUED
    start_worker(lease="PT600S")  # a busy machine must not cost a start
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert starts(sessions, job_id) == 2
