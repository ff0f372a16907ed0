"""What the storm's audit must notice, and a storm over each database."""

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc
from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import Publication
from app.storage import BlobStore, LocalBlobStore
from app.tables import Classifier, Job, JobEvent
from bench.chaos.__main__ import RESULTS, read_results, run
from bench.chaos.audit import Audit, Recovery, audit, recoveries
from bench.chaos.report import tables
from bench.chaos.storm import Fault
from tests.support.jobs import add_job

LEASE = timedelta(seconds=60)
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@dataclass(frozen=True)
class World:
    """A service after a calm day: one job that was taken over once, and published."""

    sessions: sessionmaker[Session]
    storage: BlobStore
    accepted: dict[str, str]
    job_id: str
    sha256: str

    def audit(self) -> Audit:
        with self.sessions() as session:
            return audit(session, self.storage, self.accepted)

    def change(self, *statements: object) -> None:
        with self.sessions() as session, session.begin():
            for statement in statements:
                session.execute(statement)  # type: ignore[call-overload]

    def event(self, attempt: int, kind: str = "phase", **data: object) -> object:
        told = {"attempt": attempt, **data}
        return insert(JobEvent).values(job_id=self.job_id, at=now_utc(), type=kind, data=told)


@pytest.fixture
def world(sessions: sessionmaker[Session], tmp_path: Path) -> World:
    storage = LocalBlobStore(tmp_path / "blobs")
    sha256 = storage.put_stream(io.BytesIO(b"weights")).sha256
    ledger = Ledger(sessions)
    job_id = add_job(sessions, name="a")
    assert ledger.claim("dead", LEASE) is not None
    with sessions() as session, session.begin():
        session.execute(update(Job).values(lease_until=now_plus(-LEASE)))
    claim = ledger.claim("heir", LEASE)
    assert claim is not None
    files = {"bundle.json": sha256}
    ledger.publish(claim, Publication(classifier_id=new_id("clf"), files=files, version="1", metrics={}, verdict=None))
    return World(sessions, storage, {"a": job_id}, job_id, sha256)


def submit_again(world: World) -> None:
    add_job(world.sessions, name="a")


def lose(world: World) -> None:
    world.accepted["b"] = new_id("job")


def answer_for_another(world: World) -> None:
    world.accepted["b"] = world.job_id


def leave_queued(world: World) -> None:
    world.accepted["b"] = add_job(world.sessions, name="b")


def fail(world: World) -> None:
    job_id = add_job(world.sessions, name="b")
    world.change(update(Job).where(Job.id == job_id).values(status="failed"))


def unpublish(world: World) -> None:
    world.change(update(Job).values(classifier_id=None), delete(Classifier))


def succeed_again(world: World) -> None:
    world.change(world.event(2, "status", status="running"), world.event(2, "status", status="succeeded"))


def write_after_the_end(world: World) -> None:
    world.change(world.event(2))


def write_as_a_zombie(world: World) -> None:
    job_id = add_job(world.sessions, name="b")
    ledger = Ledger(world.sessions)
    for owner in ("dead", "heir"):
        assert ledger.claim(owner, LEASE) is not None
        world.change(update(Job).where(Job.id == job_id).values(lease_until=now_plus(-LEASE)))
    world.change(insert(JobEvent).values(job_id=job_id, at=now_utc(), type="phase", data={"attempt": 1}))


def damage(world: World) -> None:
    world.storage.local_path(world.sha256).write_bytes(b"weight5")


CLEAN = {"accepted", "succeeded", "attempts"}


@only_sqlite
def test_a_calm_day_leaves_nothing_to_notice(world: World) -> None:
    found = world.audit()
    assert found.defects == 0
    assert {name: getattr(found, name) for name in CLEAN} == {"accepted": 1, "succeeded": 1, "attempts": 2}


@only_sqlite
@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (submit_again, {"submitted_twice"}),
        (lose, {"lost"}),
        (answer_for_another, {"lost"}),
        (leave_queued, {"lost"}),
        (fail, {"not_succeeded"}),
        (unpublish, {"published_otherwise_than_once"}),
        (succeed_again, {"published_otherwise_than_once", "illegal_moves"}),
        (write_after_the_end, {"written_by_the_dead"}),
        (write_as_a_zombie, {"written_by_the_dead"}),
        (damage, {"damaged"}),
    ],
)
def test_what_must_not_be_is_noticed(world: World, spoil: Callable[[World], None], noticed: set[str]) -> None:
    spoil(world)
    found = world.audit()
    assert {f.name for f in fields(Audit) if f.name not in CLEAN and getattr(found, f.name)} == noticed
    assert found.defects >= 1


@only_sqlite
def test_a_fault_is_overcome_when_its_job_is_taken_up_again(world: World) -> None:
    with world.sessions() as session:
        before = session.query(JobEvent.at).filter(JobEvent.type == "status").order_by(JobEvent.id).all()
    hit, early, late = {world.job_id: 1}, before[0].at - timedelta(minutes=1), before[1].at
    harmless = Fault(kind="connections cut", at=early, jobs=hit)
    while_it_ran = Fault(kind="worker frozen", at=late, jobs=hit)
    beaten_when_down = Fault(kind="worker killed", at=late + timedelta(milliseconds=1), jobs=hit)
    at_its_end = Fault(kind="worker killed", at=before[-1].at, jobs={world.job_id: 2})
    of_the_api = Fault(kind="API killed", at=before[0].at, back_after_s=2.5)
    world.change(world.event(1), update(JobEvent).where(JobEvent.type == "phase").values(at=late))  # the freeze's echo
    with world.sessions() as session:
        found = recoveries(session, [at_its_end, beaten_when_down, while_it_ran, harmless, of_the_api])
    taken_up = (before[2].at - late).total_seconds()
    assert found == [
        Recovery(kind="API killed", seconds=2.5),
        Recovery(kind="connections cut", seconds=None),
        Recovery(kind="worker frozen", seconds=taken_up),
        Recovery(kind="worker killed", seconds=None),
        Recovery(kind="worker killed", seconds=None),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stack", ["embedded", pytest.param("redis", marks=pytest.mark.services)])
def test_a_storm_loses_nothing_and_doubles_nothing(stack: str) -> None:
    result = run(stack, seconds=60, num_workers=3, seed=0)
    assert result.is_clean, tables([result])
    assert result.audit.succeeded >= 3
    assert sum(result.faults.values()) >= 10
    assert [r for r in result.recoveries if r.seconds is not None], "it did hit jobs"


def test_the_page_shows_what_was_kept() -> None:
    assert tables(read_results(RESULTS)) in Path("docs/reliability.md").read_text(encoding="utf-8")
