"""The ledger: where workers take jobs, prove that they live, report, and hand in. Each method is one short transaction.

Times are the database's; no worker's clock matters. Each write carries the claim it is made under and raises
`LeaseLost` when the job is no longer that claim's. Any method raises `LedgerUnavailable` when the database does not
answer; the call may then have taken effect or not, and may be repeated: a second run of one that took effect returns
what the first would have.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc, read_only
from app.idempotency.store import IdempotencyStore
from app.jobs.claims import ClaimStore
from app.jobs.errors import LedgerUnavailable
from app.jobs.fleet import FleetStore, Presence
from app.jobs.messages import Beat, Claim, EventType, JobError, Publication, Report, Swept
from app.jobs.promotion import answers_adapted
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.jobs.turns import Terms
from app.tables import Job


class Ledger:
    """The worker's face of the jobs table. Safe to share between threads."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        max_running_jobs_per_tenant: int | None = None,
        max_log_bytes: int = 512 * 1024,
    ) -> None:
        """``max_running_jobs_per_tenant``: None for as many as there are slots; to be the same in all workers.
        ``max_log_bytes``: how much is kept of a job's log."""
        self._sessions = sessions
        self._max_running_per_tenant = max_running_jobs_per_tenant
        self._max_log_bytes = max_log_bytes

    def claim(
        self, owner: str, lease: timedelta, job_id: str | None = None, *, num_gpus: int | None = None
    ) -> Claim | None:
        """Take a job for ``lease``: the one whose turn it is, or ``job_id`` alone. None when there is none.

        Free is a queued job, and a running one whose lease ran out with attempts left. ``num_gpus`` are free in the
        worker; None: it takes any job.
        """
        terms = Terms(num_gpus=num_gpus, max_running_per_tenant=self._max_running_per_tenant)
        with self._write() as session:
            return ClaimStore(session).take(owner, lease, job_id, terms)

    def image_digests(self, dataset_id: str) -> Sequence[str]:
        """sha256 of the dataset's images, in order."""
        with self._read() as session:
            return ClaimStore(session).image_digests(dataset_id)

    def beat(self, claim: Claim, lease: timedelta) -> Beat:
        """Hold the job for ``lease`` from now."""
        with self._write() as session:
            return ClaimStore(session).extend(claim, lease)

    def report(self, claim: Claim, report: Report) -> Beat:
        """Store news of the attempt. Repeating it may repeat its events, and not its lines of the log."""
        with self._write() as session:
            return ClaimStore(session).record(claim, report, max_log_bytes=self._max_log_bytes)

    def release(self, claim: Claim) -> JobStatus:
        """Give the job back, unfinished through no fault of its own: queued again, and the attempt is not counted.

        The fence still grows with the next claim. Returns ``cancelled`` when a cancel came first.
        """
        values = {
            "owner": None,
            "attempts_forgiven": Job.attempts_forgiven + 1,
            "available_at": now_utc(),
            "notify_at": now_utc(),
            "num_notified": 0,
        }
        with self._write() as session:
            return ClaimStore(session).settle(claim, JobStatus.QUEUED, "Interrupted; to be continued.", values)

    def retry_later(self, claim: Claim, error: JobError, delay: timedelta) -> JobStatus:
        """The attempt failed for a reason that may pass: queued again after ``delay``, or failed with ``error`` when
        it was the last. Returns which, or ``cancelled`` when a cancel came first."""
        if claim.is_last:
            return self.fail(claim, error)
        values = {
            "owner": None,
            "available_at": now_plus(delay),
            "notify_at": now_plus(delay),
            "num_notified": 0,
        }
        message = f"{error.message} Trying again. ({error.code})"
        with self._write() as session:
            return ClaimStore(session).settle(claim, JobStatus.QUEUED, message, values)

    def fail(self, claim: Claim, error: JobError) -> JobStatus:
        """End the job as failed, or as ``cancelled`` when a cancel came first. Returns which."""
        with self._write() as session:
            return ClaimStore(session).settle(claim, JobStatus.FAILED, error.message, {"error": error.to_dict()})

    def cancelled(self, claim: Claim) -> JobStatus:
        """End a job that is cancelling: its trainer has stopped."""
        with self._write() as session:
            return ClaimStore(session).settle(claim, JobStatus.CANCELLED, "Cancelled.")

    def publish(self, claim: Claim, publication: Publication) -> str | None:
        """Make the classifier and its report exist and the job succeed, all or nothing, once.

        The job answers with it when its promotion and the verdict say so, else with a zero-shot classifier that is
        made beside it. Returns the id of what the job answers with; when the answer to an earlier call was lost in
        transit, that is what that call made. None when a cancel came first: the job is then cancelled.
        """
        verdict = publication.verdict
        adapted = answers_adapted(claim.promotion, verdict)
        message = (
            "The classifier is ready." if adapted else "The zero-shot classifier is ready; the adapted one is kept."
        )
        values = {
            "metrics": dict(publication.metrics),
            "verdict": None if verdict is None else dict(verdict),
        }
        events = []
        if verdict is not None:
            events = [(EventType.VERDICT, {"outcome": verdict["outcome"], "reasons": verdict["reasons"]})]
        with self._write() as session:
            store = ClaimStore(session)
            values["progress"] = {**store.progress_of(claim.job_id), "phase": "done"}
            existing = store.classifier_of(claim.job_id)
            status = store.settle(claim, JobStatus.SUCCEEDED, message, values, events=events)
            if status is not JobStatus.SUCCEEDED:
                return None
            if existing is not None:
                return existing
            store.insert_report(claim, publication)
            classifier_id = store.insert_adapted(claim, publication)
            if not adapted:
                classifier_id = store.insert_zero_shot(claim, publication)
            store.set_classifier(claim, classifier_id)
            return classifier_id

    def sweep(self, silent_before: Collection[str] = ()) -> Swept:
        """End the jobs whose workers died for good and those that waited too long.

        Any number of sweepers may run: each job is moved once.

        A running job whose lease has run out is told of as ``silent``; one with attempts left `claim` takes as it is.
        When it still is so at the next sweep, which is given it as ``silent_before``, it is queued, or failed when it
        has no attempts left. Not sooner, for after an outage of the database all leases have run out, and the workers'
        beats are on their way.
        """
        with self._write() as session:
            store = ClaimStore(session)
            return Swept(
                failed=tuple(store.fail_exhausted(silent_before)) if silent_before else (),
                cancelled=tuple(store.finish_cancelling()),
                expired=tuple(store.fail_expired()),
                requeued=tuple(store.requeue_dropped(silent_before)) if silent_before else (),
                silent=tuple(store.silent()),
            )

    def check_in(self, presence: Presence, again_within: timedelta) -> None:
        """Note that a worker is there. It says so again within that time, or is taken to be gone."""
        with self._write() as session:
            FleetStore(session).check_in(presence, again_within)

    def check_out(self, owner: str) -> None:
        """Note that a worker is leaving."""
        with self._write() as session:
            FleetStore(session).check_out(owner)

    def unsent(self, limit: int = 100) -> Sequence[str]:
        """Ids of jobs that wait for a worker and whose next broker message is due."""
        with self._read() as session:
            return JobStore(session).unsent(limit)

    def mark_notified(self, job_ids: Sequence[str]) -> None:
        """Note that a message about each job went out just now."""
        with self._write() as session:
            JobStore(session).mark_notified(job_ids)

    def statuses(self, job_ids: Sequence[str]) -> dict[str, tuple[JobStatus, timedelta]]:
        """Of those jobs that exist: the status, and how long ago the job finished (zero when it has not)."""
        with self._read() as session:
            return ClaimStore(session).statuses(job_ids)

    def forget_idempotency_keys(self) -> int:
        """Remove the Idempotency-Keys whose time is over; returns how many."""
        with self._write() as session:
            return IdempotencyStore(session).remove_expired()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with _translated(), self._sessions() as session, session.begin():
            yield session

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with _translated(), read_only(self._sessions) as session:
            yield session


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as e:
        raise LedgerUnavailable(str(e)) from e
    except DBAPIError as e:
        if e.connection_invalidated:
            raise LedgerUnavailable(str(e)) from e
        raise
