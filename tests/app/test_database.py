"""The database's clock, transactions and migrations, alike on SQLite and PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg.errors import AdminShutdown, DiskFull
from sqlalchemy import Engine, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app import database
from app.database import (
    alembic_config,
    is_full,
    make_engine,
    make_sessionmaker,
    migrate,
    now_plus,
    now_utc,
    read_only,
    schema_change,
)
from app.exceptions import Conflict
from app.housekeeping.chores import ChoreList
from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.idempotency.store import IdempotencyStore
from app.jobs.fleet import Presence
from app.jobs.ledger import Ledger
from app.jobs.messages import Publication, Scheduling
from app.jobs.promotion import Promotion
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.tables import Base, Classifier, Dataset, DatasetImage, Job
from tests.support.databases import BOTH, database_url, engine, postgres_url, sessions, sqlite_template
from tests.support.jobs import add_dataset, add_job, read_job
from tests.support.services import postgres_database

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without any tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'deep' / 'must.db'}"
    else:
        with postgres_database() as url:
            yield url


def test_the_clock_is_utc_now(engine: Engine) -> None:
    with engine.begin() as connection:
        found = connection.scalar(select(now_utc()))
        later = connection.scalar(select(now_plus(timedelta(hours=25, milliseconds=250))))
        earlier = connection.scalar(select(now_plus(-timedelta(days=400))))
    assert found is not None
    assert later is not None
    assert earlier is not None
    assert abs(found - datetime.now(UTC)) < timedelta(seconds=30)
    assert timedelta(0) <= later - found - timedelta(hours=25, milliseconds=250) < timedelta(seconds=5)
    assert timedelta(0) <= earlier - found + timedelta(days=400) < timedelta(seconds=5)


@pytest.mark.parametrize("microsecond", [0, 1, 999_000, 999_999])
def test_stored_instants_compare_with_the_clock(sessions: sessionmaker[Session], microsecond: int) -> None:
    add_job(sessions)
    now = datetime.now(UTC).replace(microsecond=microsecond)
    for offset in (-2, 2):
        with sessions() as session, session.begin():
            session.execute(update(Job).values(lease_until=now + timedelta(seconds=offset * 60)))
            expired = session.scalar(select(Job.lease_until < now_utc()))
            soon = session.scalar(select(Job.lease_until < now_plus(timedelta(minutes=10))))
            stored = session.scalar(select(Job.lease_until))
        assert bool(expired) is (offset < 0)
        assert bool(soon) is True
        assert stored == now + timedelta(seconds=offset * 60)


def test_the_clock_writes_what_the_column_type_writes(sessions: sessionmaker[Session]) -> None:
    """On SQLite instants are text: one digit too few would break their order within a second."""
    add_job(sessions)
    with sessions() as session, session.begin():
        session.execute(update(Job).values(lease_until=now_utc(), started_at=datetime.now(UTC)))
        if session.get_bind().dialect.name == "sqlite":
            row = session.execute(text("select lease_until, started_at from jobs")).one()
            assert len(row[0]) == len(row[1]) == len("2026-01-01 00:00:00.000000")


def test_reading_does_not_wait_for_a_writer(engine: Engine, sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    with engine.begin() as writer:
        writer.execute(update(Dataset).values(name="written"))
        with ThreadPoolExecutor(1) as pool:

            def read() -> str | None:
                with read_only(sessions) as session:
                    return session.scalar(select(Dataset.name))

            assert pool.submit(read).result(timeout=60) == "test"


def test_a_reading_session_cannot_write_and_the_connection_recovers(sessions: sessionmaker[Session]) -> None:
    add_job(sessions)
    with pytest.raises(DBAPIError), read_only(sessions) as session:
        session.execute(update(Dataset).values(name="written"))
    with sessions() as session, session.begin():
        session.execute(update(Dataset).values(name="written"))
        assert session.scalar(select(Dataset.name)) == "written"


@pytest.mark.parametrize("reading", [True, False])
def test_a_reading_session_sees_one_state(sessions: sessionmaker[Session], *, reading: bool) -> None:
    """A writing one on PostgreSQL sees what others commit meanwhile: the control, and what a claim counts on."""
    add_job(sessions)
    with sessions() as session:
        if session.get_bind().dialect.name == "sqlite" and not reading:
            pytest.skip("one writer at a time")
    with read_only(sessions) if reading else sessions() as session:
        before = session.scalar(select(Dataset.name))
        with sessions() as writer, writer.begin():
            writer.execute(update(Dataset).values(name="written"))
        assert (session.scalar(select(Dataset.name)) == before) == reading


@pytest.mark.parametrize("begin", ["immediate", "deferred"])
def test_read_then_write_never_fails_for_a_lock(database_url: str, monkeypatch: pytest.MonkeyPatch, begin: str) -> None:
    """Without BEGIN IMMEDIATE, the control, two of these upgrade their locks at once, and SQLite fails one on the
    spot."""
    if begin == "deferred":
        if not database_url.startswith("sqlite"):
            pytest.skip("PostgreSQL locks rows")
        monkeypatch.setattr(database, "_begin_sqlite", lambda connection: connection.exec_driver_sql("BEGIN"))
    engine = make_engine(database_url)
    sessions = make_sessionmaker(engine)
    add_job(sessions)
    barrier = threading.Barrier(6)

    def bump(_: int) -> None:
        barrier.wait(timeout=10)
        for _ in range(5):
            with sessions() as session, session.begin():
                seed = session.scalar(select(Job.seed).with_for_update())
                assert seed is not None
                session.execute(update(Job).values(seed=seed + 1))

    with ThreadPoolExecutor(6) as pool:
        failed = [done for done in [pool.submit(bump, n) for n in range(6)] if done.exception()]
    with sessions() as session, session.begin():
        total = session.scalar(select(Job.seed))
    engine.dispose()
    assert (failed == [], total == 30) == (begin == "immediate",) * 2, (failed, total)


def test_a_full_disk_is_told_from_other_errors() -> None:
    """SQLite's own, on a disk that is full, is in tests/chaos/test_disks.py."""
    assert is_full(OperationalError("INSERT", {}, DiskFull("could not extend file")))
    assert not is_full(OperationalError("INSERT", {}, AdminShutdown("terminating connection")))
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    assert not is_full(OperationalError("INSERT", {}, busy))
    assert not is_full(OSError())


def test_sqlite_is_set_up_to_keep_what_it_was_given(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'must.db'}")
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}


def test_up_down_up(empty_url: str) -> None:
    engine = make_engine(empty_url)
    migrate(engine)
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    add_job(make_sessionmaker(engine))
    downgrade(engine, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    add_job(make_sessionmaker(engine))
    engine.dispose()


def downgrade(engine: Engine, revision: str) -> None:
    config = alembic_config()
    with schema_change(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def publish(sessions: sessionmaker[Session], classifier_id: str, **fields: Any) -> str:
    """A job that has published; returns its id."""
    job_id = add_job(sessions, **fields)
    ledger = Ledger(sessions)
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    ledger.publish(claim, Publication(classifier_id=classifier_id, files={}, version="0", metrics={}, verdict=None))
    return job_id


def test_jobs_from_before_promotions_answer_with_what_they_published(empty_url: str) -> None:
    """Down and up again with data: a promoted job, one that answers zero-shot, one that waits."""
    engine = make_engine(empty_url)
    migrate(engine)
    sessions = make_sessionmaker(engine)
    promoted, refused = publish(sessions, "clf_1"), publish(sessions, "clf_2", promotion=Promotion.MANUAL)
    waiting = add_job(sessions)
    with sessions() as session, session.begin():
        session.execute(update(Job).values(running_s=0.0))  # what revision 0005 brought is lost, too
    before = {job_id: read_job(sessions, job_id) for job_id in (promoted, refused, waiting)}

    downgrade(engine, "0001")
    with engine.begin() as connection:
        assert "promotion" not in {column["name"] for column in inspect(connection).get_columns("jobs")}
        found = connection.execute(text("select id, job_id from classifiers")).all()
        assert {tuple(row) for row in found} == {
            ("clf_1", promoted),
            ("clf_2", None),
            (before[refused].classifier_id, refused),
        }
        with pytest.raises(IntegrityError):  # one classifier a job, as it was
            connection.execute(text("update classifiers set job_id = :job where id = 'clf_2'"), {"job": promoted})

    migrate(engine)
    for job_id, view in before.items():
        again = read_job(sessions, job_id)
        assert again.classifier_id == view.classifier_id
        assert again.transitions == view.transitions, "what refers to the job is still there"
        assert again.promotion is Promotion.AUTO
    assert read_job(sessions, promoted).adapted_classifier_id == "clf_1"
    with pytest.raises(Conflict, match="not_promotable"), sessions() as session, session.begin():
        JobStore(session).request_promotion(refused)  # nothing says any more that clf_2 is its own
    assert read_job(sessions, refused) == replace(before[refused], adapted_classifier_id=None, promotion=Promotion.AUTO)
    engine.dispose()


def test_jobs_from_before_scheduling_are_the_default_tenants_and_unlimited(empty_url: str) -> None:
    """Down and up again with data: a job that waits for its time, one that runs."""
    engine = make_engine(empty_url)
    migrate(engine)
    sessions = make_sessionmaker(engine)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    wishes = Scheduling(priority=7, not_before=tomorrow, max_runtime_s=5, max_pending_s=5, num_gpus=2)
    waiting, running = add_job(sessions, tenant="a", scheduling=wishes), add_job(sessions)
    claim = Ledger(sessions).claim("w", timedelta(seconds=60))
    assert claim is not None
    assert claim.job_id == running
    Ledger(sessions).check_in(Presence(owner="w", num_slots=1, num_gpus=1), timedelta(seconds=60))

    downgrade(engine, "0004")
    with engine.connect() as connection:
        assert "workers" not in inspect(connection).get_table_names()
        assert not {"tenant", "priority", "running_s"} & {c["name"] for c in inspect(connection).get_columns("jobs")}

    migrate(engine)
    job = read_job(sessions, waiting)
    assert (job.tenant, job.scheduling) == ("default", Scheduling())
    assert Ledger(sessions).claim("w", timedelta(seconds=60)) is None, "it waits for its time still"
    assert not Ledger(sessions).beat(claim, timedelta(seconds=60)).runtime_exceeded
    assert Ledger(sessions).release(claim) is JobStatus.QUEUED
    assert read_job(sessions, running).runtime_s == 0, "nobody knows since when it ran"
    engine.dispose()


def test_idempotency_keys_go_with_a_downgrade_and_nothing_else_does(empty_url: str) -> None:
    """Down and up again with data: an answered key, one at work, a job."""
    engine = make_engine(empty_url)
    migrate(engine)
    sessions = make_sessionmaker(engine)
    job_id = add_job(sessions)
    requests = [KeyedRequest(tenant="t", key=key, digest="0") for key in "ab"]

    def claim() -> list[Hold | Answer]:
        with sessions.begin() as session:
            return [IdempotencyStore(session).claim(each, "token", timedelta(seconds=60)) for each in requests]

    answered, _ = claim()
    assert isinstance(answered, Hold)
    with sessions.begin() as session:
        IdempotencyStore(session).complete(answered, Answer(status_code=201, headers={}, body="{}"))

    downgrade(engine, "0006")
    with engine.connect() as connection:
        assert "idempotency_keys" not in inspect(connection).get_table_names()

    migrate(engine)
    assert all(isinstance(each, Hold) for each in claim()), "nobody used them"
    assert read_job(sessions, job_id).id == job_id
    engine.dispose()


def test_housekeeping_goes_with_a_downgrade_and_datasets_stay(empty_url: str) -> None:
    engine = make_engine(empty_url)
    migrate(engine)
    sessions = make_sessionmaker(engine)
    dataset_id = add_dataset(sessions, ("a" * 64, "b" * 64))
    assert ChoreList(sessions).take("a chore", every=timedelta(hours=1))

    downgrade(engine, "0007")
    with engine.connect() as connection:
        assert not {"chores", "blob_holds"} & set(inspect(connection).get_table_names())
        assert "ix_dataset_images_sha256" not in {i["name"] for i in inspect(connection).get_indexes("dataset_images")}

    migrate(engine)
    with sessions.begin() as session:
        images = session.scalars(select(DatasetImage.sha256).where(DatasetImage.dataset_id == dataset_id)).all()
    assert sorted(images) == ["a" * 64, "b" * 64]
    assert ChoreList(sessions).take("a chore", every=timedelta(hours=1)), "nobody knows any more when it was done"
    engine.dispose()


@pytest.mark.parametrize(
    "change",
    [
        "update jobs set status = 'x'",
        "update jobs set promotion = 'x'",
        "update jobs set promotion = null",
        "update jobs set classifier_id = 'clf_x'",
        "update jobs set dataset_id = 'ds_x'",
        "update classifiers set kind = 'adapted'",
        "update classifiers set job_id = 'job_x'",
        "delete from classifiers",
    ],
)
def test_the_database_holds_its_rules_after_all_migrations(
    engine: Engine, sessions: sessionmaker[Session], change: str
) -> None:
    """SQLite changes a table by making another one: no rule may be left behind."""
    job_id = publish(sessions, "clf_1", promotion=Promotion.MANUAL)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(change))
    with engine.begin() as connection:
        connection.execute(text("delete from datasets"))
    assert read_job(sessions, job_id).dataset_id is None
    with sessions() as session, session.begin():
        assert len(session.scalars(select(Classifier)).all()) == 2


def test_the_migrations_make_what_the_tables_say(empty_url: str) -> None:
    engine = make_engine(empty_url)
    migrate(engine)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)
        connection.execute(text("DROP INDEX ix_jobs_claim"))
        with pytest.raises(Exception, match="ix_jobs_claim"):  # the check does see differences
            command.check(config)
    engine.dispose()


def test_migrators_at_once(empty_url: str) -> None:
    engines = [make_engine(empty_url) for _ in range(4)]
    barrier = threading.Barrier(4)

    def run(engine: Engine) -> None:
        barrier.wait(timeout=10)
        migrate(engine)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, engines))
    with engines[0].connect() as connection:
        head = ScriptDirectory.from_config(alembic_config()).get_current_head()
        assert connection.scalars(text("select version_num from alembic_version")).all() == [head]
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    for each in engines:
        each.dispose()
