"""Workers that die or freeze at the very moment of publication."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.jobs.status import JobStatus
from app.queue import CeleryTaskQueue
from app.tables import Classifier
from tests.chaos.test_workers import freeze, num_classifiers, status, wait_for_attempt, wait_until
from tests.support.jobs import add_job, read_job
from tests.support.stacks import EMBEDDED, RABBITMQ, REDIS, Stack, only
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]


def stored(folder: Path) -> set[str]:
    """Names of the blobs that are in their places."""
    return {path.name for path in (folder / "blobs").glob("??/??/*")}


def test_a_worker_killed_between_blobs_and_commit_is_rescued(
    start_worker: StartWorker, sessions: Sessions, tmp_path: Path
) -> None:
    job_id = add_job(sessions)
    first = start_worker("--die", "before-commit", lease="PT1.5S")
    assert first.wait() == -signal.SIGKILL
    assert len(stored(tmp_path)) == 2, "the blobs were there already"
    assert (status(sessions, job_id), num_classifiers(sessions)) == (JobStatus.RUNNING, 0)
    start_worker(lease="PT600S")  # a busy machine must not cost a start
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert (read_job(sessions, job_id).attempt, num_classifiers(sessions)) == (2, 1)
    with read_only(sessions) as session:
        files = session.scalars(select(Classifier.files)).one()
    assert set(files.values()) == stored(tmp_path), "equal bytes are stored once: nothing is left over"


@only(EMBEDDED)
def test_without_anybody_to_take_over_it_would_stay_where_it_was(start_worker: StartWorker, sessions: Sessions) -> None:
    """Control of the test above: the same death, and a lease that does not end."""
    job_id = add_job(sessions)
    assert start_worker("--die", "before-commit", lease="PT600S").wait() == -signal.SIGKILL
    start_worker()
    wait_until(sessions, add_job(sessions), JobStatus.SUCCEEDED)
    assert (status(sessions, job_id), num_classifiers(sessions)) == (JobStatus.RUNNING, 1)


@only(REDIS, RABBITMQ)
def test_a_worker_killed_after_the_commit_has_published_and_its_message_is_dropped(
    start_worker: StartWorker, sessions: Sessions, stack: Stack
) -> None:
    """The acknowledgement comes early; here the message comes once more, as if it had come late and the broker had
    delivered it again."""
    job_id = add_job(sessions)
    assert stack.broker_url is not None
    queue = CeleryTaskQueue(stack.broker_url)
    assert queue.send(job_id)
    assert start_worker("--die", "after-commit").wait() == -signal.SIGKILL
    before = read_job(sessions, job_id)
    assert before.status is JobStatus.SUCCEEDED
    second = start_worker()
    assert queue.send(job_id)
    queue.close()
    wait_for(lambda: second.events("hint_dropped"), what="the message to be heard")
    assert read_job(sessions, job_id) == before
    assert (num_classifiers(sessions), second.events("job_claimed")) == (1, [])


@pytest.mark.parametrize("fence", ["fenced", "unfenced"])
def test_a_zombie_frozen_before_its_commit_does_not_publish(
    start_worker: StartWorker, sessions: Sessions, tmp_path: Path, fence: str
) -> None:
    """Unfenced is the negative control: there it publishes what it has, under the nose of the one that holds the job,
    whose own publication then meets another's."""
    arguments = ["--no-fence"] if fence == "unfenced" else []
    job_id = add_job(sessions, hyperparameters={"steps": 1, "step_ms": 10})
    zombie = start_worker("--trainer", "quick", "--hold", "publishing", *arguments, lease="PT1.5S")
    wait_for(lambda: zombie.events("held"), what="the zombie to come to its publication")
    freeze(zombie, sessions)
    heir = start_worker("--trainer", "quick", "--hold", "publishing", *arguments, lease="PT600S")
    wait_for_attempt(sessions, job_id, 2)
    wait_for(lambda: heir.events("held"), what="the heir to come to its own")
    freeze(heir, sessions)
    (tmp_path / "go-on").touch()
    zombie.send(signal.SIGCONT)
    if fence == "unfenced":
        wait_until(sessions, job_id, JobStatus.SUCCEEDED)
        assert read_job(sessions, job_id).attempt == 2, "it was another's to publish"
        assert [e["attempt"] for e in zombie.events("classifier_published")] == [1]
        return
    wait_for(lambda: zombie.events("lease_lost"), what="the zombie to notice")
    assert (status(sessions, job_id), num_classifiers(sessions)) == (JobStatus.RUNNING, 0)
    heir.send(signal.SIGCONT)
    wait_until(sessions, job_id, JobStatus.SUCCEEDED)
    assert num_classifiers(sessions) == 1
