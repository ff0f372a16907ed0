"""A hint wakes a worker, and whose turn it is the ledger says."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs.messages import Scheduling
from app.jobs.status import JobStatus
from tests.support.jobs import add_job, read_job
from tests.support.supervision import training
from tests.support.workers import wait_for
from worker import tasks
from worker.supervisor import Supervisor


def bell(supervisor: Supervisor, passed_on: list[str]) -> Callable[[object], None]:
    """What Celery calls with a hint's argument."""
    rung: list[Callable[[object], None]] = []

    class Doorway:
        """A real Celery would share a task of this name between all tests."""

        def task(self, **_options: object) -> Callable[..., None]:
            return rung.append

    tasks.register(Doorway(), supervisor, lambda job_id: passed_on.append(job_id) is None)  # type: ignore[arg-type]
    return rung[0]


def test_a_hint_runs_every_job_there_is_the_most_urgent_first(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    named, urgent = add_job(sessions), add_job(sessions, scheduling=Scheduling(priority=1))
    bell(supervise(), [])(named)
    first, second = (read_job(sessions, job_id) for job_id in (urgent, named))
    assert first.status is second.status is JobStatus.SUCCEEDED
    assert first.finished_at is not None
    assert second.started_at is not None
    assert first.finished_at <= second.started_at


@pytest.mark.parametrize("forged", ["../../etc", 7, None, {"a": 1}])
def test_what_is_no_hint_wakes_nobody(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], forged: object
) -> None:
    job_id = add_job(sessions)
    bell(supervise(), [])(forged)
    assert read_job(sessions, job_id).status is JobStatus.QUEUED


def test_a_worker_that_stops_passes_a_hint_on(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "PASS_ON_AFTER_S", 0)
    supervisor, hint, passed_on = supervise(), new_id("job"), list[str]()
    bell(supervisor, passed_on)(hint)
    assert passed_on == []
    supervisor.stop()
    bell(supervisor, passed_on)(hint)
    assert passed_on == [hint]


@pytest.mark.parametrize("num_slots", [1, 2])
def test_hints_and_the_workers_own_asking_share_the_slots(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], num_slots: int
) -> None:
    """With another slot, the control, the second job runs beside the first."""
    supervisor = supervise(num_slots=num_slots)
    first = add_job(sessions, hyperparameters={"steps": 2000, "step_ms": 20})
    thread = threading.Thread(target=supervisor.run_one, daemon=True)
    thread.start()
    wait_for(training(sessions, first), timeout_s=60)
    second = add_job(sessions)
    assert supervisor.run_one() == (num_slots == 2)
    assert (read_job(sessions, second).status is JobStatus.SUCCEEDED) == (num_slots == 2)
    supervisor.stop()
    thread.join(timeout=60)
    assert not thread.is_alive()
