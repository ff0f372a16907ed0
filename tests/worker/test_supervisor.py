"""One job from claim to its end, with a real child process and a real ledger."""

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.jobs.claims import ClaimStore
from app.jobs.errors import LedgerUnavailable
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, Scheduling
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.storage import BlobStore
from app.tables import Classifier, Job
from tests.support.jobs import add_job, read_job
from tests.support.supervision import running, training
from tests.support.workers import wait_for
from worker.supervisor import Supervisor


def test_a_job_is_adapted_and_published(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    storage: BlobStore,
    tmp_path: Path,
) -> None:
    source = tmp_path / "image"
    source.write_bytes(b"an image")
    digest = storage.put_file(source)
    job_id = add_job(sessions, digests=(digest,), hyperparameters={"steps": 3})
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.metrics, job.verdict) == ({"agreement": 0.5}, None)
    assert job.choices == {"steps": {"value": 3, "reason": "scripted"}}
    with sessions() as session, session.begin():
        classifier = session.scalars(select(Classifier)).one()
        kinds = [e.type for e in JobStore(session).events(job_id)]
    assert classifier.id == job.classifier_id == job.adapted_classifier_id
    assert set(classifier.files) == {"bundle.json", "weights/model.bin"}
    assert storage.read(classifier.files["weights/model.bin"]) == b"weights of " + job_id.encode()
    assert {EventType.CHOICES, EventType.PHASE, EventType.METRICS} <= set(kinds)
    assert kinds[-1] is EventType.STATUS, "everything was reported before the end"
    left = {p.relative_to(tmp_path / "runs" / job_id) for p in (tmp_path / "runs" / job_id).rglob("*")}
    assert left == {Path("attempt-1"), Path("attempt-1/trainer.log")} or left == {Path("attempt-1")}


def test_a_refused_bundle_is_kept_beside_zero_shot(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], storage: BlobStore
) -> None:
    job_id = add_job(sessions, hyperparameters={"verdict": "inconclusive", "roll_back": True})
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.verdict is not None
    assert (job.verdict["outcome"], job.verdict["reasons"]) == ("inconclusive", ["As told."])
    assert job.verdict["gain"]["num_held_out"] == 60
    with sessions() as session, session.begin():
        adapted = session.get_one(Classifier, job.adapted_classifier_id)
        zero_shot = session.get_one(Classifier, job.classifier_id)
        events = {e.type: e.data for e in JobStore(session).events(job_id)}
    assert (adapted.kind, zero_shot.kind, zero_shot.files) == ("adapted", "zero_shot", {})
    assert storage.read(adapted.files["weights/model.bin"]) == b"weights of " + job_id.encode()
    assert events[EventType.ROLLED_BACK] == {"reasons": ["As told."], "to_step": 1, "attempt": 1}
    assert events[EventType.VERDICT] == {"outcome": "inconclusive", "reasons": ["As told."], "attempt": 1}


@pytest.mark.parametrize("reports", [True, False])
def test_the_trainers_report_is_kept_with_the_job(
    sessions: sessionmaker[Session], supervise: Callable[..., Supervisor], *, reports: bool
) -> None:
    job_id = add_job(sessions, hyperparameters={"report": reports})
    assert supervise().run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    with sessions() as session:
        report = JobStore(session).report(job_id)
    if not reports:
        assert report is None
        return
    assert report is not None
    assert report["changed"][0]["adapted"] == {"index": 1, "score": 0.75}
    assert report["audit"]["images"] == [{"position": 0, "zero_shot": 0, "adapted": 1}]


def test_nothing_to_do(supervise: Callable[..., Supervisor]) -> None:
    assert not supervise().run_one()
    assert not supervise().run_one("job_unknown")


@pytest.mark.parametrize(
    ("crash", "status", "code"),
    [
        ("usage", JobStatus.FAILED, "scripted_usage"),
        ("fatal", JobStatus.FAILED, "scripted_fatal"),
        ("transient", JobStatus.QUEUED, None),
        ("exit 64", JobStatus.FAILED, "internal_error"),
        ("exit 70", JobStatus.FAILED, "internal_error"),
        ("exit 0", JobStatus.FAILED, "internal_error"),
        ("exit 75", JobStatus.QUEUED, None),
        ("exit 3", JobStatus.QUEUED, None),
        ("exit 1", JobStatus.QUEUED, None),
        (f"signal {signal.SIGSEGV.value}", JobStatus.QUEUED, None),
    ],
)
def test_each_kind_of_end_has_its_story(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    crash: str,
    status: JobStatus,
    code: str | None,
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 3, "crash_at": {"2": crash}})
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.status is status
    assert (job.error.code if job.error else None) == code
    assert job.attempt == 1
    if code and code.startswith("scripted"):
        assert job.error is not None
        assert (job.error.message, job.error.param) == ("As told.", "crash_at")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_loop_stops_after_max_attempts_and_resumes_in_between(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    monkeypatch.setattr("worker.process.kernel_kills", lambda: 0)  # other tests bring such kills about
    script = {"steps": 3, "crash_at": {"3": f"signal {number.value}"}}
    job_id = add_job(sessions, max_attempts=3, hyperparameters=script)
    supervisor = supervise()
    for _ in range(3):
        assert supervisor.run_one()
    assert not supervisor.run_one()
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 3)
    assert job.error is not None
    assert (job.error.code, number.name in job.error.message) == ("worker_lost", True)
    runs = tmp_path / "runs" / job_id
    assert (runs / "attempt-1" / "steps.txt").read_text().split() == ["1", "2"]
    assert not (runs / "attempt-3" / "steps.txt").exists(), "later attempts redo nothing"
    assert (runs / "attempt-1" / "checkpoints").is_dir(), "kept for a resume"
    assert "about to die" in (runs / "attempt-1" / "trainer.log").read_text()


@pytest.mark.parametrize("noise", ["flood", "garbage"])
def test_noise_on_the_report_line_does_no_harm(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], noise: str
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 2, "crash_at": {"1": noise}})
    assert supervise().run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    with sessions() as session, session.begin():
        assert len(JobStore(session).events(job_id)) < 35


@pytest.mark.parametrize("bundle", ["none", "outside", "symlink", "empty"])
def test_a_bad_bundle_is_not_published(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], bundle: str
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 1, "bundle": bundle})
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert (job.status, job.classifier_id) == (JobStatus.FAILED, None)
    assert job.error is not None
    assert job.error.code == "internal_error"


def test_a_missing_image_is_tried_again_then_told(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, digests=("0" * 64,), max_attempts=2)
    supervisor = supervise()
    assert supervisor.run_one()
    assert read_job(sessions, job_id).status is JobStatus.QUEUED
    assert supervisor.run_one()
    job = read_job(sessions, job_id)
    assert job.error is not None
    assert job.error.code == "artifact_missing"


def test_an_unknown_model_fails_at_once(supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]) -> None:
    job_id = add_job(sessions, base_model="another")
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.error is not None
    assert (job.error.code, job.error.param, job.attempt) == ("unknown_model", "base_model", 1)


@pytest.mark.parametrize("manner", ["obedient", "deaf"])
def test_a_running_job_is_cancelled(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], manner: str
) -> None:
    deaf = manner == "deaf"
    job_id = add_job(sessions, hyperparameters={"steps": 1000, "step_ms": 20, "deaf": deaf})
    supervisor = supervise(stop_grace=timedelta(seconds=0.5 if deaf else 10))
    with running(supervisor):
        wait_for(training(sessions, job_id))
        with sessions() as session, session.begin():
            JobStore(session).request_cancel(job_id)
        asked = time.monotonic()
    assert time.monotonic() - asked < 8
    assert read_job(sessions, job_id).status is JobStatus.CANCELLED


@pytest.mark.parametrize("manner", ["obedient", "deaf"])
def test_a_graceful_stop_gives_the_job_back_and_another_goes_on(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    tmp_path: Path,
    manner: str,
) -> None:
    deaf = manner == "deaf"
    script = {"steps": 120, "step_ms": 20, "deaf": deaf}
    job_id = add_job(sessions, max_attempts=1, hyperparameters=script)
    supervisor = supervise(stop_grace=timedelta(seconds=0.3 if deaf else 10))
    with running(supervisor):
        wait_for(training(sessions, job_id))
        supervisor.stop()
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)
    assert not supervisor.run_one(), "a stopped worker takes nothing"
    assert supervise().run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    folders = sorted((tmp_path / "runs" / job_id).glob("attempt-*"))
    assert [f.name for f in folders] == ["attempt-1", "attempt-2"]
    assert read_job(sessions, job_id).attempt == 1


@pytest.mark.parametrize("limited", [True, False])
def test_a_job_that_has_run_for_long_enough_stops_at_a_checkpoint_and_can_go_on(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path, *, limited: bool
) -> None:
    """Without a limit, the control, the same job runs to its end."""
    wishes = Scheduling(max_runtime_s=1 if limited else None)
    job_id = add_job(sessions, scheduling=wishes, hyperparameters={"steps": 150, "step_ms": 20})
    supervisor = supervise(lease=timedelta(seconds=2))
    assert supervisor.run_one()
    job = read_job(sessions, job_id)
    if not limited:
        assert job.status is JobStatus.SUCCEEDED
        return
    assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("max_runtime_exceeded", "max_runtime_s")
    assert job.runtime_s >= 1
    with sessions() as session, session.begin():
        JobStore(session).request_resume(job_id)
        session.execute(update(Job).values(max_runtime_s=None))
    assert supervisor.run_one()
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED
    attempts = [(tmp_path / "runs" / job_id / f"attempt-{n}" / "trainer.log") for n in (1, 2)]
    assert all(path.parent.is_dir() for path in attempts)


def test_a_job_whose_time_is_used_up_starts_no_trainer(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    job_id = add_job(sessions, scheduling=Scheduling(max_runtime_s=10))
    with sessions() as session, session.begin():
        session.execute(update(Job).values(running_s=10.0))
    assert supervise().run_one()
    job = read_job(sessions, job_id)
    assert job.error is not None
    assert job.error.code == "max_runtime_exceeded"
    assert not (tmp_path / "runs" / job_id / "attempt-1" / "trainer.log").exists()


def test_a_lost_lease_ends_the_trainer_and_writes_nothing(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 1000, "step_ms": 20, "grandchild": True})
    with running(supervise()):
        wait_for(training(sessions, job_id))
        with sessions() as session, session.begin():  # one transaction: no beat comes in between
            session.execute(update(Job).values(lease_until=now_plus(timedelta(seconds=-1))))
            assert ClaimStore(session).take("heir", timedelta(seconds=60), job_id) is not None
        stolen = read_job(sessions, job_id)
    after = read_job(sessions, job_id)
    assert after.progress == stolen.progress == {"phase": "preparing"}
    assert (after.status, after.attempt, after.transitions) == (JobStatus.RUNNING, 2, stolen.transitions)


class FlakyLedger(Ledger):
    """A ledger whose database can be pulled out."""

    down = False

    def _write(self) -> Any:
        if self.down:
            raise LedgerUnavailable("pulled out")
        return super()._write()


def test_an_outage_shorter_than_the_lease_goes_unnoticed(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, hyperparameters={"steps": 40, "step_ms": 20})
    ledger = FlakyLedger(sessions)
    with running(supervise(ledger, lease=timedelta(seconds=6))):
        wait_for(training(sessions, job_id))
        ledger.down = True
        time.sleep(2)  # training ends meanwhile
        assert read_job(sessions, job_id).status is JobStatus.RUNNING
        ledger.down = False
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)


def test_an_outage_longer_than_the_lease_stops_the_trainer_at_a_checkpoint(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session], tmp_path: Path
) -> None:
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 400, "step_ms": 20})
    ledger = FlakyLedger(sessions)
    supervisor = supervise(ledger, lease=timedelta(seconds=1.5))
    steps = tmp_path / "runs" / job_id / "attempt-1" / "steps.txt"
    with running(supervisor):
        wait_for(training(sessions, job_id))
        ledger.down = True
        time.sleep(3)
        before = steps.read_text()
        time.sleep(0.5)
        assert steps.read_text() == before, "it goes no further than the lease"
        assert len(before.split()) < 400
        ledger.down = False
    job = read_job(sessions, job_id)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 0), "the outage was not the job's fault"


def test_a_supervisor_holds_its_job_for_many_leases(
    supervise: Callable[..., Supervisor], sessions: sessionmaker[Session]
) -> None:
    job_id = add_job(sessions, max_attempts=1, hyperparameters={"steps": 40, "step_ms": 200})
    ledger = Ledger(sessions)
    with running(supervise(lease=timedelta(seconds=2.5))) as thread:
        wait_for(training(sessions, job_id))
        while thread.is_alive():
            assert ledger.claim("thief", timedelta(seconds=60)) is None
            assert ledger.sweep().failed == ()
            time.sleep(0.05)
    assert read_job(sessions, job_id).status is JobStatus.SUCCEEDED


def test_the_trainer_gets_no_secrets(
    supervise: Callable[..., Supervisor],
    sessions: sessionmaker[Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUST_DATABASE_URL", "postgresql://user:secret@host/db")
    job_id = add_job(sessions)
    dump = "import os,sys; print(sorted(os.environ), os.nice(0)); sys.exit(70)"
    assert supervise(trainer=(sys.executable, "-c", dump)).run_one()
    log = (tmp_path / "runs" / job_id / "attempt-1" / "trainer.log").read_text()
    assert "MUST_REPORT_FD" in log
    assert "MUST_DATABASE_URL" not in log
    assert int(log.rpartition(" ")[2]) >= min(19, os.nice(0) + 10)
