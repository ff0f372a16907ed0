"""What a waiting job is told: its place, when it may start, why it waits."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.jobs.fleet import FleetStore, Presence
from app.jobs.ledger import Ledger
from app.jobs.messages import JobError, Outlook, Publication, Report, Scheduling
from app.jobs.outlook import Line, OutlookStore, estimated_start, position
from app.tables import Job, Worker
from tests.support.jobs import add_job

LEASE = timedelta(seconds=60)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OOPS = JobError(code="worker_lost", message="m")
Sessions = sessionmaker[Session]


def outlook(sessions: Sessions, job_id: str, limit: int | None = None) -> Outlook:
    with sessions() as session:
        return OutlookStore(session, max_running_per_tenant=limit).of(job_id)


def worker(sessions: Sessions, *, num_slots: int = 1, num_gpus: int = 1, owner: str = "w") -> None:
    Ledger(sessions).check_in(Presence(owner=owner, num_slots=num_slots, num_gpus=num_gpus), LEASE)


def add(sessions: Sessions, tenant: str = "default", **wishes: Any) -> str:
    return add_job(sessions, tenant=tenant, scheduling=Scheduling(**wishes))


@pytest.mark.parametrize("seed", range(4))
def test_the_position_is_the_number_of_claims_until_its_turn(sessions: Sessions, seed: int) -> None:
    """Tenants with different histories: some run jobs, some ran jobs, some are new. Then claims alone are made."""
    rng = random.Random(seed)
    limit = rng.choice([None, 4])
    ledger = Ledger(sessions, max_running_jobs_per_tenant=limit)
    for tenant in "abc":
        for _ in range(rng.randint(0, 3)):
            claim = ledger.claim("w", LEASE, add(sessions, tenant))
            assert claim is not None
            if rng.random() < 0.5:
                ledger.fail(claim, OOPS)
    tenants = rng.sample("aaaabbbbccccdddd", 10)
    queued = [add(sessions, tenant) for tenant in tenants]
    told = {job_id: outlook(sessions, job_id, limit).queue_position for job_id in queued}
    order = []
    while (claim := ledger.claim("w", LEASE)) is not None:
        order.append(claim.job_id)
    assert len(order) >= 5
    assert [told[job_id] for job_id in order] == list(range(1, len(order) + 1))


def test_higher_priorities_and_lower_ones(sessions: Sessions) -> None:
    usual, high, low = add(sessions), add(sessions, "b", priority=1), add(sessions, priority=-1)
    assert [outlook(sessions, job_id).queue_position for job_id in (high, usual, low)] == [1, 2, 3]
    Ledger(sessions).claim("w", LEASE)
    assert [outlook(sessions, job_id).queue_position for job_id in (high, usual, low)] == [None, 1, 2]


def test_no_more_of_a_tenant_go_before_than_may_run() -> None:
    mine, other = Line(num_running=0, last_turn=None, num_equal=3), Line(num_running=0, last_turn=None, num_equal=9)
    assert position(mine, []) == 4
    assert position(mine, [other]) in {7, 8}
    assert position(mine, [other], 1) == 5
    assert position(mine, [Line(num_running=2, last_turn=None, num_equal=9, num_higher=9)], 3) == 5


@pytest.mark.parametrize(
    ("place", "slots", "finishes", "typical", "minutes"),
    [
        (1, 1, [], None, 0),
        (2, 2, [], None, 0),
        (1, 1, [5], None, 5),
        (1, 2, [9, 5], None, 5),
        (2, 2, [9, 5], None, 9),
        (3, 2, [9, 5], None, None),  # nobody knows how long the first of them takes
        (2, 2, [9, 5], 3, 8),
        (3, 2, [9, 5], 3, 9),
        (4, 2, [9, 5], 3, 11),
        (1, 1, [-5], None, 0),  # later than it thought
        (1, 1, [None], None, None),
        (1, 2, [None, 5], None, 5),
        (2, 2, [None, 5], None, None),
        (2, 1, [], 3, 3),
        (3, 2, [], 3, 3),
        (3, 3, [5], 3, 3),
        (2, 1, [], None, None),
        (1, 0, [], 3, None),  # workers there are, but none that could
        (5000, 1, [5], 3, None),
    ],
)
def test_when_it_may_start(
    place: int, slots: int, finishes: list[int | None], typical: int | None, minutes: int | None
) -> None:
    ends = [None if end is None else NOW + end * MINUTE for end in finishes]
    found = estimated_start(place, NOW, slots, ends, None if typical is None else typical * MINUTE)
    assert found == (None if minutes is None else NOW + minutes * MINUTE)


def test_the_estimate_follows_the_running_job_and_the_jobs_before(sessions: Sessions) -> None:
    ledger = Ledger(sessions)
    done = ledger.claim("w", LEASE, add(sessions))
    assert done is not None
    ledger.publish(done, Publication(classifier_id="clf_1", files={}, version="0", metrics={}, verdict=None))
    with sessions() as session, session.begin():
        session.execute(update(Job).values(running_s=600.0))
    running = ledger.claim("w", LEASE, add(sessions))
    assert running is not None
    first, second = add(sessions), add(sessions)
    assert outlook(sessions, first).estimated_start_at is None, "no worker is known"
    worker(sessions)
    ledger.report(running, Report(remaining=timedelta(minutes=5)))
    now = datetime.now(UTC)
    for job_id, minutes in ((first, 5), (second, 15)):
        start = outlook(sessions, job_id).estimated_start_at
        assert start is not None
        assert abs(start - now - minutes * MINUTE) < timedelta(seconds=30)
    worker(sessions, owner="another")
    start = outlook(sessions, first).estimated_start_at
    assert start is not None
    assert abs(start - now) < timedelta(seconds=30), "a slot is free"
    with sessions() as session, session.begin():
        session.execute(update(Job).where(Job.id == running.job_id).values(num_gpus=2))
    found = outlook(sessions, first)
    assert (found.queue_position, found.estimated_start_at) == (1, None), "a slot of another kind will be free"


def code(sessions: Sessions, job_id: str, limit: int | None = None) -> str | None:
    found = outlook(sessions, job_id, limit)
    assert (found.queue_position is None) == (found.waiting is not None and found.waiting.code != "no_workers")
    return found.waiting.code if found.waiting else None


def test_why_it_waits(sessions: Sessions) -> None:
    usual, large = add(sessions), add(sessions, num_gpus=8)
    later = add(sessions, not_before=datetime.now(UTC) + MINUTE)
    assert code(sessions, usual) == "no_workers"
    worker(sessions, num_gpus=4)
    assert [code(sessions, job_id) for job_id in (usual, large, later)] == [None, "too_many_gpus", "scheduled"]
    worker(sessions, num_gpus=8, owner="larger")
    assert code(sessions, large) is None
    ledger = Ledger(sessions)
    ledger.check_out("larger")
    assert code(sessions, large) == "too_many_gpus"
    claim = ledger.claim("w", LEASE, usual)
    assert claim is not None
    ledger.retry_later(claim, OOPS, MINUTE)
    assert code(sessions, usual) == "retrying"
    with sessions() as session, session.begin():
        session.execute(update(Job).values(available_at=now_plus(-MINUTE)))
    assert ledger.claim("w", LEASE, usual) is not None
    another = add(sessions)
    assert code(sessions, another) is None
    assert code(sessions, another, 1) == "tenant_limit"
    assert code(sessions, another, 2) is None
    assert outlook(sessions, usual) == Outlook(), "it is running"
    assert outlook(sessions, "job_unknown") == Outlook()


def test_a_job_that_no_worker_can_run_is_before_nobody(sessions: Sessions) -> None:
    add(sessions, num_gpus=8, priority=9)
    usual = add(sessions)
    worker(sessions, num_gpus=4)
    assert outlook(sessions, usual).queue_position == 1


def test_workers_come_and_go(sessions: Sessions) -> None:
    worker(sessions, num_slots=1)
    worker(sessions, num_slots=3, num_gpus=2)
    worker(sessions, owner="gone")
    ledger = Ledger(sessions)
    ledger.check_in(Presence(owner="late", num_slots=1, num_gpus=1), timedelta(seconds=-1))
    ledger.check_in(Presence(owner="forgotten", num_slots=1, num_gpus=1), timedelta(hours=-2))
    ledger.check_out("gone")
    worker(sessions, num_slots=3, num_gpus=2)
    with sessions() as session:
        assert FleetStore(session).present() == [Presence(owner="w", num_slots=3, num_gpus=2)]
        assert set(session.scalars(select(Worker.owner))) == {"w", "late"}
