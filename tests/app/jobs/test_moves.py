"""Any sequence of calls, by holders, zombies, users and sweepers, makes only the diagram's moves."""

from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import case, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.exceptions import Conflict
from app.ids import new_id
from app.jobs.errors import LeaseLost
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError, Publication, Scheduling
from app.jobs.status import JobStatus, may_move
from app.jobs.store import JobStore
from app.tables import Job
from tests.support.jobs import add_job, read_job, verdict

LEASE = timedelta(seconds=600)
OOPS = JobError(code="worker_lost", message="m")


@settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
class Moves(RuleBasedStateMachine):
    """One job, and a model of it: who holds it, whether the lease has run out, what its status must be.

    Its tenant may have one running job at a time, and has others.
    """

    sessions: sessionmaker[Session]

    @initialize(max_attempts=st.integers(1, 3), limits=st.booleans())
    def submit(self, max_attempts: int, *, limits: bool) -> None:
        self.ledger = Ledger(self.sessions, max_running_jobs_per_tenant=1)
        wishes = Scheduling(max_pending_s=3600, max_runtime_s=3600) if limits else Scheduling()
        self.job_id = add_job(self.sessions, max_attempts=max_attempts, scheduling=wishes, tenant=new_id("ds"))
        self.limits, self.due, self.waited, self.ran = limits, True, False, False
        self.other: Claim | None = None
        self.status = JobStatus.QUEUED
        self.claims: list[Claim] = []
        self.resumed = False
        self.holder: Claim | None = None
        self.expired = False
        self.counted, self.max_attempts = 0, max_attempts

    @rule()
    def claim(self) -> None:
        takeover = self.status is JobStatus.RUNNING and self.expired and self.counted < self.max_attempts
        claim = self.ledger.claim(f"w{len(self.claims)}", LEASE, self.job_id)
        free = self.status is JobStatus.QUEUED and self.due and self.other is None
        assert (claim is not None) == (free or takeover)
        if claim is not None:
            assert claim.runtime_exceeded == self.ran
            self.waited = False
            assert claim.attempt == len(self.claims) + 1
            self.counted += 1
            assert claim.ordinal == self.counted
            self.claims.append(claim)
            self.holder, self.status, self.expired = claim, JobStatus.RUNNING, False

    @rule()
    def let_the_lease_run_out(self) -> None:
        with self.sessions() as session, session.begin():
            held = (Job.id == self.job_id, Job.lease_until.is_not(None))
            session.execute(update(Job).where(*held).values(lease_until=now_plus(timedelta(seconds=-1))))
        self.expired = self.status.is_held

    @rule()
    def beat(self) -> None:
        for claim in self.claims:
            if claim is self.holder:
                beat = self.ledger.beat(claim, LEASE)
                assert beat.cancel_requested == (self.status is JobStatus.CANCELLING)
                assert beat.runtime_exceeded == self.ran
                self.expired = False
            else:
                with pytest.raises(LeaseLost):
                    self.ledger.beat(claim, LEASE)

    @rule()
    def another_job_of_the_tenant_starts(self) -> None:
        if self.other is not None:
            return
        tenant = read_job(self.sessions, self.job_id).tenant
        job_id = add_job(self.sessions, tenant=tenant)
        self.other = self.ledger.claim("w", LEASE, job_id)
        assert (self.other is None) == self.status.is_held

    @rule()
    def the_other_job_ends(self) -> None:
        if self.other is not None:
            self.ledger.fail(self.other, OOPS)
            self.other = None

    @rule()
    def have_it_wait(self) -> None:
        self._write(available_at=now_plus(LEASE))
        self.due = False

    @rule()
    def its_time_comes(self) -> None:
        self._write(available_at=now_plus(-LEASE))
        self.due = True

    @rule()
    def it_waits_for_too_long(self) -> None:
        """Until a worker takes it for the first time, it has a time to wait until."""
        self._write(pending_until=case((Job.pending_until.is_not(None), now_plus(-LEASE))))
        with self.sessions() as session:
            self.waited = session.scalar(select(Job.pending_until).where(Job.id == self.job_id)) is not None
        if self.claims and self.status is JobStatus.QUEUED and self.waited:
            assert self.resumed

    @rule()
    def it_runs_for_too_long(self) -> None:
        self._write(running_s=3600.0)
        self.ran = self.limits

    def _write(self, **values: Any) -> None:
        with self.sessions() as session, session.begin():
            session.execute(update(Job).where(Job.id == self.job_id).values(values))

    @rule(data=st.data(), how=st.sampled_from(["release", "retry", "fail", "publish"]))
    def end(self, data: st.DataObject, how: str) -> None:
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        before = self.status
        if claim is not self.holder:
            # Repeating what this claim did itself is answered; nothing moves in any case.
            with suppress(LeaseLost):
                self._end(claim, how)
            assert read_job(self.sessions, self.job_id).status is before
            return
        self._end(claim, how)
        target = {
            "release": JobStatus.QUEUED,
            "retry": JobStatus.FAILED if self.counted >= self.max_attempts else JobStatus.QUEUED,
            "fail": JobStatus.FAILED,
            "publish": JobStatus.SUCCEEDED,
        }[how]
        self.status = JobStatus.CANCELLED if before is JobStatus.CANCELLING else target
        self.counted -= how == "release" and self.status is JobStatus.QUEUED
        self.holder, self.expired = None, False
        self.due = True

    def _end(self, claim: Claim, how: str) -> None:
        if how == "release":
            self.ledger.release(claim)
        elif how == "retry":
            self.ledger.retry_later(claim, OOPS, timedelta(0))
        elif how == "fail":
            self.ledger.fail(claim, OOPS)
        else:
            refused = verdict("zero_shot") if claim.attempt % 2 else None
            new = Publication(classifier_id=new_id("clf"), files={}, version="0", metrics={}, verdict=refused)
            self.ledger.publish(claim, new)

    @rule()
    def cancel(self) -> None:
        try:
            with self.sessions() as session, session.begin():
                JobStore(session).request_cancel(self.job_id)
        except Conflict:
            assert self.status.is_terminal
            return
        assert not self.status.is_terminal
        self.status = JobStatus.CANCELLED if self.status is JobStatus.QUEUED else JobStatus.CANCELLING

    @rule()
    def resume(self) -> None:
        try:
            with self.sessions() as session, session.begin():
                JobStore(session).request_resume(self.job_id)
        except Conflict:
            assert self.status not in {JobStatus.FAILED, JobStatus.CANCELLED}
            return
        assert self.status in {JobStatus.FAILED, JobStatus.CANCELLED}
        self.status, self.counted = JobStatus.QUEUED, 0
        self.due, self.waited, self.ran, self.resumed = True, False, False, True

    @rule()
    def promote(self) -> None:
        try:
            with self.sessions() as session, session.begin():
                JobStore(session).request_promotion(self.job_id)
        except Conflict:
            assert self.status is not JobStatus.SUCCEEDED
            return
        assert self.status is JobStatus.SUCCEEDED
        job = read_job(self.sessions, self.job_id)
        assert job.classifier_id == job.adapted_classifier_id

    @rule(was_silent=st.booleans())
    def sweep(self, *, was_silent: bool) -> None:
        silent = self.ledger.sweep([self.job_id] if was_silent else []).silent
        dropped = self.expired and self.status is JobStatus.RUNNING and self.counted < self.max_attempts
        assert (self.job_id in silent) == (dropped and not was_silent)
        if dropped and was_silent:
            self.status, self.due = JobStatus.QUEUED, True
        elif self.expired and self.status is JobStatus.CANCELLING:
            self.status = JobStatus.CANCELLED
        worker_lost = self.expired and self.status is JobStatus.RUNNING and self.counted >= self.max_attempts
        if worker_lost or (self.status is JobStatus.QUEUED and self.waited):
            self.status = JobStatus.FAILED
        if not self.status.is_held:
            self.holder, self.expired = None, False

    @invariant()
    def the_row_is_the_model(self) -> None:
        if not hasattr(self, "job_id"):
            return
        job = read_job(self.sessions, self.job_id)
        assert (job.status, job.attempt) == (self.status, self.counted)
        assert all(may_move(a.status, b.status) for a, b in pairwise(job.transitions))
        assert job.transitions[-1].status is job.status
        assert (job.classifier_id is not None) == (job.status is JobStatus.SUCCEEDED)
        assert (job.adapted_classifier_id is not None) == (job.status is JobStatus.SUCCEEDED)
        assert (job.finished_at is not None) == job.status.is_terminal
        assert (job.error is not None) == (job.status is JobStatus.FAILED)


def test_only_legal_moves(sessions: sessionmaker[Session]) -> None:
    machine = type("BoundMoves", (Moves,), {"sessions": sessions})
    run_state_machine_as_test(machine, settings=Moves.TestCase.settings)
