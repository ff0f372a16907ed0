"""Any sequence of calls, by holders, zombies, users and sweepers, makes only the diagram's moves."""

from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from _pytest.outcomes import Failed
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Float, case, literal, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, plus_seconds
from app.exceptions import Conflict
from app.ids import new_id
from app.jobs import claims, turns
from app.jobs.claims import ClaimStore
from app.jobs.errors import LeaseLost
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError, Publication, Report, Scheduling
from app.jobs.status import JobStatus, may_move
from app.jobs.store import JobStore
from app.tables import Job, UtcDateTime
from tests.support.jobs import add_job, read_job, verdict

LEASE = timedelta(seconds=600)
JUMP_S = 4000.0
LIMIT_S = 3600
NEAR_S = 120.0
"""Where a sum of durations is as near to the limit as this, the test's own time decides, and nothing is expected."""
OOPS = JobError(code="worker_lost", message="m")


HELD = precondition(lambda self: self.status.is_held)
QUEUED = precondition(lambda self: self.status is JobStatus.QUEUED)
ENDED = precondition(lambda self: self.status.is_terminal)
OPEN = precondition(lambda self: not self.status.is_terminal)
CALLABLE = precondition(lambda self: bool(self.living))
"""What could only be refused is left out of most steps: few steps must go far."""


@settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
class Moves(RuleBasedStateMachine):
    """One job, and a model of it: its status, who holds it, and how far away, in seconds, its instants are.

    Its tenant may have one running job at a time, and has others.
    """

    sessions: sessionmaker[Session]

    @initialize(
        max_attempts=st.sampled_from([2, 1, 3]), limits=st.booleans(), taken=st.sampled_from([True, True, False])
    )
    def submit(self, max_attempts: int, *, limits: bool, taken: bool) -> None:
        self.ledger = Ledger(self.sessions, max_running_jobs_per_tenant=1)
        wishes = Scheduling(max_pending_s=LIMIT_S, max_runtime_s=LIMIT_S) if limits else Scheduling()
        self.job_id = add_job(self.sessions, max_attempts=max_attempts, scheduling=wishes, tenant=new_id("ds"))
        self.limits = limits
        self.due_in_s, self.ran_s = 0.0, 0.0
        self.pending_s = float(LIMIT_S) if limits else None
        self.held_s, self.lease_s = 0.0, 0.0
        self.other: Claim | None = None
        self.status = JobStatus.QUEUED
        self.claims: list[Claim] = []
        self.dead: list[Claim] = []
        self.resumed = False
        self.holder: Claim | None = None
        self.progress: dict[str, Any] | None = None
        self.counted, self.max_attempts = 0, max_attempts
        if taken:
            self.claim()

    @property
    def expired(self) -> bool:
        """The holder's lease has run out."""
        return self.status.is_held and self.lease_s < 0

    @property
    def waited(self) -> bool:
        """Nobody took it in the time it was to wait."""
        return self.pending_s is not None and self.pending_s < 0

    def ran(self, told: bool) -> bool:  # noqa: FBT001 - compared with what was told
        """Whether its attempts took all the time they may; what the ledger says where nobody can know."""
        taken = self.ran_s + (self.held_s if self.status.is_held else 0)
        return told if abs(taken - LIMIT_S) < NEAR_S else self.limits and taken > LIMIT_S

    @property
    def living(self) -> list[Claim]:
        """Those who may still call."""
        return [claim for claim in self.claims if claim not in self.dead]

    @OPEN
    @rule()
    def claim(self) -> None:
        takeover = self.status is JobStatus.RUNNING and self.expired and self.counted < self.max_attempts
        claim = self.ledger.claim(f"w{len(self.claims)}", LEASE, self.job_id)
        free = self.status is JobStatus.QUEUED and self.due_in_s <= 0 and self.other is None
        assert (claim is not None) == (free or takeover)
        if claim is not None:
            self.ran_s += self.held_s + self.lease_s if takeover else 0
            self.held_s, self.lease_s, self.pending_s = 0, LEASE.total_seconds(), None
            self.status = JobStatus.RUNNING
            assert claim.runtime_exceeded == self.ran(claim.runtime_exceeded)
            assert claim.attempt == len(self.claims) + 1
            self.counted += 1
            assert claim.ordinal == self.counted
            self.claims.append(claim)
            self.holder, self.progress = claim, {"phase": "preparing"}

    @HELD
    @rule()
    def let_the_lease_run_out(self) -> None:
        with self.sessions() as session, session.begin():
            held = (Job.id == self.job_id, Job.lease_until.is_not(None))
            session.execute(update(Job).where(*held).values(lease_until=now_plus(timedelta(seconds=-1))))
        self.lease_s = -1

    @HELD
    @rule()
    def another_takes_over(self) -> None:
        """Two steps that chance alone would not often bring together, and a zombie comes of them."""
        self.let_the_lease_run_out()
        self.claim()

    @rule(forth=st.booleans())
    def the_clock_jumps(self, *, forth: bool) -> None:
        """By more than an hour: what lay ahead lies behind, or the other way round."""
        ahead_s = -JUMP_S if forth else JUMP_S
        instants = [c for c in Job.__table__.columns if isinstance(c.type, UtcDateTime)]
        assert Job.__table__.c.lease_until in instants
        self._write(**{c.name: plus_seconds(c, literal(ahead_s, Float())) for c in instants})
        self.due_in_s += ahead_s
        self.lease_s += ahead_s
        self.held_s -= ahead_s
        if self.pending_s is not None:
            self.pending_s += ahead_s

    @HELD
    @rule()
    def kill(self) -> None:
        """The holder never comes back."""
        assert self.holder is not None
        self.dead.append(self.holder)

    @CALLABLE
    @rule()
    def beat(self) -> None:
        for claim in self.living:
            if claim is self.holder:
                beat = self.ledger.beat(claim, LEASE)
                assert beat.cancel_requested == (self.status is JobStatus.CANCELLING)
                assert beat.runtime_exceeded == self.ran(beat.runtime_exceeded)
                self.lease_s = LEASE.total_seconds()
            else:
                with pytest.raises(LeaseLost):
                    self.ledger.beat(claim, LEASE)

    @CALLABLE
    @rule(step=st.integers(0, 9))
    def report(self, step: int) -> None:
        """Only what the holder says is kept, and it buys no time."""
        for claim in self.living:
            news = Report(progress={"phase": "training", "step": step, "of": claim.attempt})
            if claim is self.holder:
                beat = self.ledger.report(claim, news)
                assert beat.cancel_requested == (self.status is JobStatus.CANCELLING)
                self.progress = dict(news.progress or {})
            else:
                with pytest.raises(LeaseLost):
                    self.ledger.report(claim, news)

    @precondition(lambda self: self.other is None)
    @rule()
    def another_job_of_the_tenant_starts(self) -> None:
        tenant = read_job(self.sessions, self.job_id).tenant
        job_id = add_job(self.sessions, tenant=tenant)
        self.other = self.ledger.claim("w", LEASE, job_id)
        assert (self.other is None) == self.status.is_held

    @precondition(lambda self: self.other is not None)
    @rule()
    def the_other_job_ends(self) -> None:
        assert self.other is not None
        self.ledger.fail(self.other, OOPS)
        self.other = None

    @QUEUED
    @rule()
    def have_it_wait(self) -> None:
        self._write(available_at=now_plus(LEASE))
        self.due_in_s = LEASE.total_seconds()

    @QUEUED
    @rule()
    def its_time_comes(self) -> None:
        self._write(available_at=now_plus(-LEASE))
        self.due_in_s = -LEASE.total_seconds()

    @OPEN
    @rule()
    def it_waits_for_too_long(self) -> None:
        """Until a worker takes it for the first time, it has a time to wait until."""
        self._write(pending_until=case((Job.pending_until.is_not(None), now_plus(-LEASE))))
        if self.pending_s is not None:
            self.pending_s = -LEASE.total_seconds()
        with self.sessions() as session:
            until = session.scalar(select(Job.pending_until).where(Job.id == self.job_id))
        assert (until is not None) == (self.pending_s is not None)
        if self.claims and self.status is JobStatus.QUEUED and self.waited:
            assert self.resumed

    @OPEN
    @rule()
    def it_runs_for_too_long(self) -> None:
        self._write(running_s=LIMIT_S + JUMP_S)
        self.ran_s = LIMIT_S + JUMP_S

    def _write(self, **values: Any) -> None:
        with self.sessions() as session, session.begin():
            session.execute(update(Job).where(Job.id == self.job_id).values(values))

    @CALLABLE
    @rule(data=st.data(), how=st.sampled_from(["release", "retry", "fail", "publish"]))
    def end(self, data: st.DataObject, how: str) -> None:
        claim = data.draw(st.sampled_from(self.living))
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
        self.holder = None
        self.ran_s += self.held_s
        if self.status is JobStatus.QUEUED:
            self.due_in_s = 0
        if self.status is JobStatus.SUCCEEDED:
            self.progress = {**(self.progress or {}), "phase": "done"}

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

    @ENDED
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
        self.due_in_s, self.ran_s, self.resumed = 0, 0, True
        self.pending_s = LIMIT_S if self.limits else None

    @ENDED
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
        found = self.ledger.sweep([self.job_id] if was_silent else []).silent
        silent = self.expired and self.status is JobStatus.RUNNING
        assert (self.job_id in found) == (silent and not was_silent)
        before = self.status
        if silent and was_silent and self.counted < self.max_attempts:
            self.status, self.due_in_s = JobStatus.QUEUED, 0
        elif silent and was_silent:
            self.status = JobStatus.FAILED
        elif self.expired and self.status is JobStatus.CANCELLING:
            self.status = JobStatus.CANCELLED
        elif self.status is JobStatus.QUEUED and self.waited:
            self.status = JobStatus.FAILED
        if before.is_held and not self.status.is_held:
            self.holder = None
            self.ran_s += self.held_s + self.lease_s

    @invariant()
    def the_row_is_the_model(self) -> None:
        if not hasattr(self, "job_id"):
            return
        job = read_job(self.sessions, self.job_id)
        assert (job.status, job.attempt) == (self.status, self.counted)
        assert job.progress == self.progress
        assert all(may_move(a.status, b.status) for a, b in pairwise(job.transitions))
        assert job.transitions[-1].status is job.status
        assert (job.classifier_id is not None) == (job.status is JobStatus.SUCCEEDED)
        assert (job.adapted_classifier_id is not None) == (job.status is JobStatus.SUCCEEDED)
        assert (job.finished_at is not None) == job.status.is_terminal
        assert (job.error is not None) == (job.status is JobStatus.FAILED)


def run(sessions: sessionmaker[Session], **more: Any) -> None:
    machine = type("BoundMoves", (Moves,), {"sessions": sessions})
    run_state_machine_as_test(machine, settings=settings(Moves.TestCase.settings, **more))


def test_only_legal_moves(sessions: sessionmaker[Session]) -> None:
    run(sessions)


@pytest.mark.parametrize("protection", ["fence", "lease", "patience"])
def test_what_the_protections_prevent_would_be_seen(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch, protection: str
) -> None:
    """Negative controls: zombies that write, living workers' jobs taken for dropped ones, no second sweep."""
    if protection == "fence":
        monkeypatch.setattr(ClaimStore, "_fence", lambda _, claim: (Job.id == claim.job_id,))
    elif protection == "lease":
        for module in (turns, claims):
            monkeypatch.setattr(module, "is_silent", lambda: Job.status == JobStatus.RUNNING.value)
    else:
        swept = Ledger.sweep
        monkeypatch.setattr(Ledger, "sweep", lambda ledger, _: swept(ledger, swept(ledger).silent))
    with pytest.raises((AssertionError, Failed)):
        run(sessions, phases=[Phase.generate])  # found is enough; it need not be made small
