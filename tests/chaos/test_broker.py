"""With a broker: messages that are doubled, lost or forged, and a worker that is told to go."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs import store
from app.jobs.hint import TASK_NAME
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.queue import CeleryTaskQueue
from app.tables import Worker
from tests.chaos.test_workers import status, wait_until, wait_until_training
from tests.support.jobs import add_job, read_job
from tests.support.stacks import EMBEDDED, RABBITMQ, REDIS, Stack, only
from tests.support.workers import WorkerProcess, is_running, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]


def starts(sessions: Sessions, job_id: str) -> int:
    return [t.status for t in read_job(sessions, job_id).transitions].count(JobStatus.RUNNING)


def queue_of(stack: Stack) -> CeleryTaskQueue:
    """What sends to the stack's workers, as the API does."""
    assert stack.broker_url is not None
    return CeleryTaskQueue(stack.broker_url)


@only(REDIS, RABBITMQ)
def test_a_message_sent_twenty_times_has_one_owner(start_worker: StartWorker, sessions: Sessions, stack: Stack) -> None:
    job_id = add_twenty_messages(sessions, stack)
    workers = [start_worker(worker_concurrency="3", lease="PT600S") for _ in range(2)]
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    wait_for(lambda: sum(len(w.events("hint_dropped")) for w in workers) >= 19, what="all messages to be heard")
    assert starts(sessions, job_id) == 1
    assert sum(len(w.events("job_claimed")) for w in workers) == 1


@only(REDIS)
def test_without_the_guarded_claim_a_message_sent_twenty_times_has_several_owners(
    start_worker: StartWorker, sessions: Sessions, stack: Stack
) -> None:
    """The control."""
    job_id = add_twenty_messages(sessions, stack)
    start_worker("--no-guard", "--no-asking", worker_concurrency="3", lease="PT600S")
    wait_for(lambda: starts(sessions, job_id) > 1, what="a second owner")


def add_twenty_messages(sessions: Sessions, stack: Stack) -> str:
    """A job, and as many messages about it."""
    job_id = add_job(sessions, hyperparameters={"steps": 20, "step_ms": 20})
    queue = queue_of(stack)
    assert all(queue.send(job_id) for _ in range(20))
    queue.close()
    return job_id


@only(REDIS, RABBITMQ)
@pytest.mark.parametrize("resend", ["sent again", "not sent again"])
def test_a_job_whose_message_is_purged_starts(
    start_worker: StartWorker, sessions: Sessions, stack: Stack, monkeypatch: pytest.MonkeyPatch, resend: str
) -> None:
    """These workers take jobs on hints alone. The control, where nobody sends another, has the job waiting after many
    sweeps, until somebody does. That workers ask by themselves too is shown elsewhere."""
    monkeypatch.setattr(store, "RESEND_AFTER", timedelta(0))
    job_id = add_job(sessions)
    queue = queue_of(stack)
    assert queue.send(job_id)
    with sessions() as session, session.begin():
        JobStore(session).mark_notified([job_id])
    purge(stack)
    worker = start_worker("--no-asking", *(["--no-resend"] if resend == "not sent again" else []))
    if resend == "not sent again":
        wait_for_sweeps(sessions, 10)
        assert status(sessions, job_id) is JobStatus.QUEUED
        assert queue.send(job_id)
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert bool(worker.events("hints_sent")) == (resend == "sent again")
    queue.close()


def purge(stack: Stack) -> None:
    """Empty the stack's queue, which holds one message."""
    with Connection(stack.broker_url) as connection:
        assert connection.default_channel.queue_purge(stack.queue) == 1


def wait_for_sweeps(sessions: Sessions, num: int) -> None:
    """Until the one worker has swept as often: each time it says anew when it is expected again."""
    seen: set[object] = set()

    def swept() -> bool:
        with sessions() as session, session.begin():
            seen.update(session.scalars(select(Worker.expected_until)))
        return len(seen) > num

    wait_for(swept, what=f"{num} sweeps")


class Payload:
    """Pickled, it makes a folder where it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def forge(stack: Stack, job_id: str, folder: Path) -> int:
    """Send what no API sends. Returns how many of these are forged by the looks of them."""
    forger = Celery(broker=stack.broker_url, set_as_current=False)
    forged: list[tuple[str, list[object], dict[str, Any]]] = [
        (TASK_NAME, arguments, {}) for arguments in (["../../etc"], [7], [], [job_id, "more"], [{"a": 1}])
    ]
    forged += [
        ("os.system", ["true"], {}),
        (TASK_NAME, [job_id], {"countdown": 10_000, "kwargs": {"more": 1}}),
        (TASK_NAME, [job_id], {"link": forger.signature("os.system", ["true"])}),
        (TASK_NAME, [Payload(folder)], {"serializer": "pickle"}),
    ]
    for name, arguments, options in forged:
        forger.send_task(name, args=arguments, queue=stack.queue, **options)
    with forger.connection_for_write() as connection:
        producer = connection.Producer()
        bodies: list[tuple[object, dict[str, object]]] = [
            ("no JSON {", {}),
            ("7", {"task": TASK_NAME, "id": "1"}),
            ("[" * 100_000, {"task": TASK_NAME, "id": "1"}),
            (f'[["{job_id}"], {{}}, {{}}]', {"task": {"a": 1}, "id": "1"}),  # what ends Celery
            ("[{}, [], 7]", {"task": TASK_NAME, "id": "1"}),
        ]
        for body, headers in bodies:
            producer.publish(
                body,
                exchange="",
                routing_key=stack.queue,
                headers=headers,
                content_type="application/json",
                content_encoding="utf-8",
            )
    forger.send_task(TASK_NAME, args=[new_id("job")], queue=stack.queue)  # a hint by its looks; there is no such job
    forger.close()
    return len(forged) + len(bodies)


@only(REDIS, RABBITMQ)
def test_forged_messages_are_dropped_and_later_hints_are_heard(
    start_worker: StartWorker, sessions: Sessions, stack: Stack, tmp_path: Path
) -> None:
    queue = queue_of(stack)
    num_forged = forge(stack, new_id("job"), tmp_path / "made")
    worker = start_worker("--no-asking", "--no-resend", "--listen-once")
    wait_for(lambda: worker.events("hint_dropped"), what="the hint of an unknown job to be heard")
    assert len(worker.events("hint_forged")) == num_forged
    job_id = add_job(sessions)
    assert queue.send(job_id)
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert not (tmp_path / "made").exists()
    queue.close()


@only(REDIS)
@pytest.mark.parametrize("protection", ["--any-message", "--pickle"])
def test_without_protection_forged_messages_end_the_worker_or_run(
    start_worker: StartWorker,
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protection: str,
) -> None:
    """The control."""
    monkeypatch.setenv("C_FORCE_ROOT", "1")  # Celery takes no pickles as root unless told so
    forge(stack, new_id("job"), tmp_path / "made")
    worker = start_worker("--no-asking", "--no-resend", "--listen-once", protection)
    if protection == "--pickle":
        wait_for((tmp_path / "made").exists, what="the payload to run")
    else:
        assert worker.wait() != 0


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


@only(EMBEDDED, REDIS)
def test_a_worker_whose_terminal_is_closed_stops_gracefully_too(start_worker: StartWorker, sessions: Sessions) -> None:
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 1000, "step_ms": 30})
    worker = start_worker(lease="PT600S")
    wait_until_training(sessions, job_id)
    worker.send(signal.SIGHUP)
    assert worker.wait() == 0
    assert status(sessions, job_id) is JobStatus.QUEUED
    assert len(worker.events("worker_started")) == 1


@only(REDIS)
def test_a_job_whose_worker_is_killed_instead_waits_for_its_lease(
    start_worker: StartWorker, sessions: Sessions, stack: Stack
) -> None:
    """The control: no word, no handing over."""
    job_id = add_job(sessions, hyperparameters={"steps": 1000, "step_ms": 30})
    first = start_worker(lease="PT600S")
    wait_until_training(sessions, job_id)
    first.send(signal.SIGKILL)
    first.wait()
    start_worker(lease="PT600S")
    wait_for_sweeps(sessions, 10)
    assert status(sessions, job_id) is JobStatus.RUNNING
    assert starts(sessions, job_id) == 1


@only(EMBEDDED, REDIS)
def test_a_second_signal_ends_a_worker_at_once(start_worker: StartWorker, sessions: Sessions) -> None:
    """Its trainer does not obey, and it would wait for that as long as the test may take."""
    job_id = add_job(sessions, hyperparameters={"steps": 100_000, "step_ms": 20, "deaf": True})
    worker = start_worker(lease="PT600S", stop_grace="PT600S")
    wait_until_training(sessions, job_id)
    worker.send(signal.SIGTERM)
    wait_for(lambda: worker.events("trainer_stopping"), what="the worker to heed the first")
    worker.send(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM
    wait_for(lambda: not is_running(worker.trainer_pid()), what="the trainer's end")
