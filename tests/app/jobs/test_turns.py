"""Whose turn it is: priority, fairness between tenants, limits, GPUs, times. And what asking costs."""

import json
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event
from typing import Any

import pytest
from sqlalchemy import Engine, Select, create_engine, insert, literal, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import make_engine, make_sessionmaker, migrate, now_plus, plus_seconds, seconds_between
from app.jobs import claims, turns
from app.jobs.errors import LeaseLost
from app.jobs.ledger import Ledger
from app.jobs.messages import Claim, JobError, Scheduling
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.jobs.turns import Terms
from app.tables import Job
from tests.support.jobs import add_job, read_job
from tests.support.services import postgres_database
from tests.support.workers import wait_for

LEASE = timedelta(seconds=60)
OOPS = JobError(code="worker_lost", message="The trainer died.")

Sessions = sessionmaker[Session]


@pytest.fixture
def ledger(sessions: Sessions) -> Ledger:
    return Ledger(sessions)


def take(ledger: Ledger, **terms: Any) -> Claim:
    claim = ledger.claim("w", LEASE, **terms)
    assert claim is not None
    return claim


def add(sessions: Sessions, tenant: str = "default", **wishes: Any) -> str:
    return add_job(sessions, tenant=tenant, scheduling=Scheduling(**wishes))


def write(sessions: Sessions, job_id: str, **values: Any) -> None:
    with sessions() as session, session.begin():
        session.execute(update(Job).where(Job.id == job_id).values(values))


def test_the_higher_priority_goes_first_and_the_older_of_two(ledger: Ledger, sessions: Sessions) -> None:
    usual, low, high, higher, also_high = (add(sessions, priority=p) for p in (0, -100, 5, 100, 5))
    assert [take(ledger).job_id for _ in range(5)] == [higher, high, also_high, usual, low]


def test_priority_goes_before_fairness(ledger: Ledger, sessions: Sessions) -> None:
    urgent = [add(sessions, "a", priority=1) for _ in range(2)]
    add(sessions, "b")
    assert [take(ledger).job_id for _ in range(2)] == urgent


def by_age_alone(_terms: Terms, *, but: Collection[str] = ()) -> Select[str]:
    return select(Job.id).where(turns.is_due(), Job.id.not_in(but)).order_by(Job.created_at, Job.id).limit(1)


@pytest.mark.parametrize("slots", ["two", "one"])
@pytest.mark.parametrize("fair", [True, False])
def test_a_tenant_with_many_jobs_does_not_starve_another(
    ledger: Ledger, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, slots: str, *, fair: bool
) -> None:
    """Unfair is the negative control: there the small tenant comes last."""
    if not fair:
        monkeypatch.setattr(turns, "next_queued", by_age_alone)
    for _ in range(30):
        add(sessions, "big")
    small = [add(sessions, "small") for _ in range(2)]
    order = []
    running = [take(ledger)] if slots == "two" else []
    while len(order) < 8:
        claim = take(ledger)
        order.append(claim.job_id)
        running.append(claim)
        ledger.fail(running.pop(0), OOPS)
    assert all(job_id in order[:4] for job_id in small) == fair


def test_tenants_take_turns_with_one_slot(ledger: Ledger, sessions: Sessions) -> None:
    """Nobody has a running job when the slot asks; what counts is whose last turn is longest ago."""
    tenants = {add(sessions, tenant): tenant for tenant in "aaabbbcc"}
    order = ""
    for _ in tenants:
        claim = take(ledger)
        order += tenants[claim.job_id]
        ledger.fail(claim, OOPS)
    assert order == "abcabcab"


def test_the_tenant_with_fewer_running_jobs_is_next(ledger: Ledger, sessions: Sessions) -> None:
    held = [take(ledger) for tenant in "ab" if add(sessions, tenant)]
    for tenant in "bba":
        add(sessions, tenant)
    ledger.fail(held[0], OOPS)
    assert [read_job(sessions, take(ledger).job_id).tenant for _ in range(3)] == ["a", "b", "b"]


def test_a_job_whose_worker_died_holds_its_place(ledger: Ledger, sessions: Sessions) -> None:
    limited = Ledger(sessions, max_running_jobs_per_tenant=1)
    dropped = take(limited).job_id if add(sessions, priority=-5) else ""
    write(sessions, dropped, lease_until=now_plus(-LEASE))
    add(sessions, priority=100)
    assert take(limited).job_id == dropped, "it is running, and counts as such"
    assert limited.claim("w", LEASE) is None


@pytest.mark.parametrize("swept", [True, False])
def test_a_dropped_job_that_fits_no_worker_blocks_nobody(
    ledger: Ledger, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, *, swept: bool
) -> None:
    """Not swept is the negative control: the job counts as running without end, and its tenant gets no other."""
    if not swept:
        monkeypatch.setattr(claims.ClaimStore, "requeue_dropped", lambda *_, **__: ())
    limited = Ledger(sessions, max_running_jobs_per_tenant=1)
    large = add(sessions, num_gpus=4, max_runtime_s=100)
    zombie = take(limited, num_gpus=4)
    write(sessions, large, claimed_at=now_plus(timedelta(seconds=-50)), lease_until=now_plus(timedelta(seconds=-10)))
    first = limited.sweep()
    assert (first.silent, first.requeued) == ((large,), ()), "its worker may be about to answer"
    assert limited.sweep(first.silent).requeued == ((large,) if swept else ())
    small = add(sessions)
    claim = limited.claim("w2", LEASE, num_gpus=1)
    assert (claim is not None) == swept
    if claim is None:
        assert read_job(sessions, large).status is JobStatus.RUNNING
        return
    assert claim.job_id == small
    job = read_job(sessions, large)
    assert (job.status, job.attempt) == (JobStatus.QUEUED, 1), "the attempt counts"
    assert 35 < job.runtime_s < 45, "up to the end of its lease"
    assert limited.unsent() == [large]
    for write_late in (lambda: ledger.beat(zombie, LEASE), lambda: ledger.fail(zombie, OOPS)):
        with pytest.raises(LeaseLost):
            write_late()
    ledger.fail(claim, OOPS)
    assert take(limited, num_gpus=4).attempt == 2


@pytest.mark.parametrize("named", [True, False])
def test_a_tenant_has_no_more_running_jobs_than_allowed(sessions: Sessions, *, named: bool) -> None:
    ledger = Ledger(sessions, max_running_jobs_per_tenant=2)
    ids = [add(sessions, "a") for _ in range(3)]

    def claim() -> Claim | None:
        queued = [i for i in ids if read_job(sessions, i).status is JobStatus.QUEUED]
        return ledger.claim("w", LEASE, (queued or ids)[0] if named else None)

    first, second = claim(), claim()
    assert first is not None
    assert second is not None
    assert claim() is None
    other = add(sessions, "b")
    assert ledger.claim("w", LEASE, other if named else None) is not None, "others are not held up"
    with sessions() as session, session.begin():
        JobStore(session).request_cancel(first.job_id)
    assert claim() is None, "a job that is being cancelled still occupies its worker"
    ledger.cancelled(first)
    assert claim() is not None
    assert claim() is None


@pytest.mark.parametrize("locked", [True, False])
def test_claims_at_once_do_not_exceed_the_limit(
    engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, *, locked: bool
) -> None:
    """Unlocked is the negative control: the second claim counts before the first has committed, and takes a job too."""
    if engine.dialect.name == "sqlite" and not locked:
        pytest.skip("BEGIN IMMEDIATE is the lock there")
    ledger = Ledger(sessions, max_running_jobs_per_tenant=1)
    ids = [add(sessions) for _ in range(4)]
    all_have_counted = Barrier(4 if not locked else 1)

    def slowly(session: Session, terms: Terms, **options: Any) -> str | None:
        """The barrier makes the race certain, and each claim picks another job, so that no row lock saves it."""
        found = turns.next_job(session, terms, **options)
        all_have_counted.wait(timeout=20)
        return None if found is None else ids.pop()

    monkeypatch.setattr(claims, "next_job", slowly)
    if not locked:
        monkeypatch.setattr(claims, "wait_for_turn", lambda *_: None)
    with ThreadPoolExecutor(4) as pool:
        taken = [c for c in pool.map(lambda n: ledger.claim(f"w{n}", LEASE), range(4)) if c is not None]
    assert len(taken) == (1 if locked else 4)


@pytest.mark.services
@pytest.mark.parametrize("pinned", [True, False])
def test_claims_count_whatever_the_databases_default_isolation(
    monkeypatch: pytest.MonkeyPatch, *, pinned: bool
) -> None:
    """Not pinned is the negative control: the second claim took its snapshot before it waited, and counts no job."""
    with postgres_database() as url:
        plain = make_engine(url)
        migrate(plain)
        with plain.begin() as connection:
            name = connection.engine.url.database
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"))
        plain.dispose()
        engine = make_engine(url) if pinned else create_engine(url, json_serializer=json.dumps)
        sessions = make_sessionmaker(engine)
        ids = [add(sessions) for _ in range(2)]
        ledger = Ledger(sessions, max_running_jobs_per_tenant=1)
        waits = Event()
        wait_for_turn = claims.wait_for_turn

        def tell_and_wait(session: Session, lock: int) -> None:
            waits.set()
            wait_for_turn(session, lock)

        first = sessions()
        assert claims.ClaimStore(first).take("w1", LEASE, ids[0], Terms(max_running_per_tenant=1)) is not None
        monkeypatch.setattr(claims, "wait_for_turn", tell_and_wait)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(ledger.claim, "w2", LEASE, ids[1])
            assert waits.wait(timeout=20)
            with sessions() as looking:
                waiting = text(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
                    "(SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                wait_for(lambda: looking.scalar(waiting) == 1, what="the second claim")
            first.commit()
            first.close()
            assert (second.result(timeout=20) is None) == pinned
        engine.dispose()


def test_a_worker_frozen_within_a_claim_is_thrown_off(
    engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("a frozen writer of SQLite holds its file")
    monkeypatch.setattr("app.database.FROZEN_AFTER", timedelta(seconds=0.5))
    add(sessions)
    frozen = sessions()
    assert claims.ClaimStore(frozen).take("frozen", LEASE, None) is not None
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(Ledger(sessions).claim, "w", LEASE).result(timeout=20)
    assert claim is not None
    assert claim.attempt == 1
    with pytest.raises(Exception, match="idle"):
        frozen.commit()
    frozen.close()


def test_a_job_that_is_being_cancelled_is_passed_over(engine: Engine, ledger: Ledger, sessions: Sessions) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("one writer at a time")
    busy, free = add(sessions), add(sessions)
    with sessions() as session, session.begin():
        JobStore(session).request_cancel(busy)
        with ThreadPoolExecutor(1) as pool:
            claim = pool.submit(take, ledger).result(timeout=20)
    assert claim.job_id == free


def test_a_worker_asks_for_what_fits(ledger: Ledger, sessions: Sessions) -> None:
    large, small = add(sessions, num_gpus=4), add(sessions, num_gpus=1)
    assert ledger.claim("w", LEASE, large, num_gpus=3) is None
    claim = take(ledger, num_gpus=3)
    assert (claim.job_id, claim.num_gpus) == (small, 1)
    assert ledger.claim("w", LEASE, num_gpus=3) is None
    assert take(ledger, num_gpus=4).job_id == large
    write(sessions, large, lease_until=now_plus(-LEASE))
    assert ledger.claim("w", LEASE, num_gpus=3) is None, "nor when its worker died"


def test_a_job_waits_for_its_time(ledger: Ledger, sessions: Sessions) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    job_id = add(sessions, not_before=tomorrow, priority=100)
    past = add(sessions, not_before=tomorrow - timedelta(days=2))
    assert ledger.unsent() == [past], "no hint is due either"
    assert ledger.claim("w", LEASE, job_id) is None
    assert take(ledger).job_id == past
    assert ledger.claim("w", LEASE) is None
    assert read_job(sessions, job_id).scheduling.not_before == tomorrow
    write(sessions, job_id, available_at=now_plus(-LEASE), notify_at=now_plus(-LEASE))
    assert ledger.unsent() == [job_id]
    assert take(ledger).job_id == job_id


def pending_until(sessions: Sessions, job_id: str) -> datetime | None:
    with sessions() as session:
        return session.scalar(select(Job.pending_until).where(Job.id == job_id))


def test_a_job_that_nobody_takes_fails_and_can_be_resumed(ledger: Ledger, sessions: Sessions) -> None:
    late, patient, endless = add(sessions, max_pending_s=60), add(sessions, max_pending_s=7200), add(sessions)
    assert ledger.sweep().expired == ()
    write(sessions, late, pending_until=now_plus(-LEASE))
    assert ledger.sweep().expired == (late,)
    assert ledger.sweep().expired == ()
    job = read_job(sessions, late)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 0)
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("pending_too_long", "max_pending_s")
    assert {take(ledger).job_id for _ in range(2)} == {patient, endless}
    with sessions() as session, session.begin():
        JobStore(session).request_resume(late)
    until = pending_until(sessions, late)
    assert until is not None
    assert abs(until - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=30), "it may wait as long again"


def test_waiting_counts_from_the_time_it_may_start(sessions: Sessions) -> None:
    tomorrow = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    assert pending_until(sessions, add(sessions, not_before=tomorrow, max_pending_s=90)) == tomorrow + timedelta(
        seconds=90
    )


def test_a_job_that_has_run_may_wait(ledger: Ledger, sessions: Sessions) -> None:
    job_id = add(sessions, max_pending_s=60)
    ledger.retry_later(take(ledger), OOPS, timedelta(days=1))
    assert pending_until(sessions, job_id) is None
    assert ledger.sweep().expired == ()
    assert read_job(sessions, job_id).status is JobStatus.QUEUED


def test_attempts_add_up_to_the_runtime(ledger: Ledger, sessions: Sessions) -> None:
    job_id = add(sessions, max_runtime_s=100)
    minute = timedelta(seconds=40)
    claim = take(ledger)
    write(sessions, job_id, claimed_at=now_plus(-minute))
    assert not ledger.beat(claim, LEASE).runtime_exceeded
    ledger.retry_later(claim, OOPS, timedelta(0))  # 40
    assert 40 <= read_job(sessions, job_id).runtime_s < 60
    claim = take(ledger)
    assert not claim.runtime_exceeded
    write(sessions, job_id, claimed_at=now_plus(-minute * 5), lease_until=now_plus(-minute * 4))
    claim = take(ledger)  # the dead worker's counts up to the end of its lease: 80
    assert 80 <= read_job(sessions, job_id).runtime_s < 100
    assert not claim.runtime_exceeded
    write(sessions, job_id, claimed_at=now_plus(-minute))
    assert ledger.beat(claim, LEASE).runtime_exceeded
    ledger.release(claim)
    claim = take(ledger)
    assert claim.runtime_exceeded
    ledger.fail(claim, OOPS)
    with sessions() as session, session.begin():
        JobStore(session).request_resume(job_id)
    assert read_job(sessions, job_id).runtime_s == 0
    assert not take(ledger).runtime_exceeded


@pytest.mark.parametrize("how", ["settled", "taken over", "swept"])
def test_a_clock_that_is_set_back_gives_no_runtime(ledger: Ledger, sessions: Sessions, how: str) -> None:
    job_id = add(sessions, max_runtime_s=100)
    claim = take(ledger)
    write(sessions, job_id, claimed_at=now_plus(timedelta(hours=1)))
    if how == "settled":
        ledger.retry_later(claim, OOPS, timedelta(0))
    else:
        write(sessions, job_id, lease_until=now_plus(-timedelta(seconds=1)))
        if how == "taken over":
            take(ledger)
        else:
            ledger.sweep([job_id])
    assert read_job(sessions, job_id).runtime_s == 0


def test_time_is_reckoned_in_sql_as_in_python(engine: Engine) -> None:
    start = literal(datetime(2026, 2, 28, 23, 59, 59, 250_000, tzinfo=UTC), Job.created_at.type)
    with engine.connect() as connection:
        later = plus_seconds(start, literal(90061.5))
        assert connection.scalar(select(seconds_between(start, later))) == pytest.approx(90061.5, abs=1e-3)
        assert connection.scalar(select(seconds_between(later, start))) == pytest.approx(-90061.5, abs=1e-3)
        assert connection.scalar(select(later)) == datetime(2026, 3, 2, 1, 1, 0, 750_000, tzinfo=UTC)


def fill(sessions: Sessions, num_finished: int, num_queued: int) -> None:
    """Many jobs, a dozen tenants."""
    add_job(sessions)
    with sessions() as session, session.begin():
        row = dict(session.execute(select(Job.__table__)).mappings().one())
        rows = [
            {**row, "id": f"job_{n:026}", "tenant": f"t{n % 12:02}", "status": "queued" if n < num_queued else "failed",
             "priority": n % 3}
            for n in range(num_finished + num_queued)
        ]  # fmt: skip
        session.execute(insert(Job.__table__), rows)
    with sessions() as session:
        session.execute(text("ANALYZE"))
        session.commit()


def plan_of(session: Session, mark: str = "") -> str:
    """What the database does for a claim. ``mark`` makes it another statement: SQLite remembers the plans of those."""
    query = turns.next_queued(Terms(num_gpus=1, max_running_per_tenant=5))
    compiled = query.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
    sqlite = session.get_bind().dialect.name == "sqlite"
    rows = session.execute(text(("EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN (COSTS OFF) ") + str(compiled) + mark))
    return "\n".join(str(row[-1]) for row in rows)


_CHEAP = re.compile(
    r"INDEX (ix_jobs_claim|ix_jobs_held|sqlite_autoindex_jobs_1)|COVERING INDEX ix_jobs_tenant_claimed_at"
    r"|using (ix_jobs_claim|ix_jobs_held|pk_jobs)|Only Scan .*using ix_jobs_tenant_claimed_at"
)


def reads_others(plan: str) -> list[str]:
    """Steps of a plan that read the table other than by an index of queued or held jobs, or by a job's id."""
    steps = [line for line in plan.splitlines() if re.search(r"(SCAN|SEARCH|Scan) .*jobs", line)]
    assert len(steps) >= 6, plan
    return [line for line in steps if not _CHEAP.search(line)]


def test_a_claim_reads_no_finished_job(sessions: Sessions) -> None:
    fill(sessions, num_finished=6000, num_queued=1500)
    with sessions() as session:
        plan = plan_of(session)
        session.execute(text("DROP INDEX ix_jobs_claim"))
        without = plan_of(session, " -- ")
        session.rollback()
    assert reads_others(plan) == []
    assert reads_others(without) != []
