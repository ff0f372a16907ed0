"""Damage is found, whatever is damaged; what is whole is found whole."""

import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from app.admin import contradictions
from app.admin.problems import Problem
from app.admin.verify import Verified, Verifier
from app.database import revisions
from app.storage import LocalBlobStore
from tests.support.garbage import age, remove_dataset, store_old
from tests.support.populated import Populated, claim, submit

Sessions = sessionmaker[Session]
Verify = Callable[[], tuple[list[Problem], Verified]]

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def verify(engine: Engine, storage: LocalBlobStore) -> Verify:
    def run() -> tuple[list[Problem], Verified]:
        problems: list[Problem] = []
        verified = Verifier(engine=engine, storage=storage, blob_grace=timedelta(hours=24)).verify(problems.append)
        assert verified.num_problems == len(problems)
        return problems, verified

    return run


@contextmanager
def without_rules(engine: Engine) -> Iterator[Callable[[str], object]]:
    """Executes statements that the database would refuse."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[attr-defined]
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL session_replication_role = replica"))
            yield lambda statement: connection.execute(text(statement))
        if engine.dialect.name == "sqlite":
            connection.connection.execute("PRAGMA foreign_keys=ON")  # type: ignore[attr-defined]


def test_what_is_whole(verify: Verify, populated: Populated, sessions: Sessions, storage: LocalBlobStore) -> None:
    """The control of all that follows. Jobs at work, uploads under way and garbage are no problems."""
    claim(sessions, submit(sessions, populated.dataset_id))
    storage.put_stream(io.BytesIO(b"under way"))
    store_old(storage, b"garbage")
    problems, verified = verify()
    assert problems == []
    assert verified.num_checked >= 6 + 5
    assert (verified.num_stored, verified.num_orphans) == (6 + 5 + 2, 1)


def test_damaged_and_missing_blobs(verify: Verify, populated: Populated, storage: LocalBlobStore) -> None:
    image, weights = populated.images[0], populated.files["weights/model.bin"]
    path = storage._path(image)
    content = bytearray(path.read_bytes())
    content[2] ^= 1
    path.write_bytes(content)
    storage._path(weights).unlink()
    problems, _ = verify()
    assert {(p.code, p.subject) for p in problems} == {("blob_damaged", image), ("blob_missing", weights)}
    (damaged,) = (p.detail for p in problems if p.code == "blob_damaged")
    assert populated.dataset_id in damaged
    assert populated.other_dataset_id in damaged
    storage.put_stream(io.BytesIO(b"image 0"))  # uploading heals
    assert {p.code for p in verify()[0]} == {"blob_missing"}


def test_a_blob_that_cannot_be_read(
    verify: Verify, populated: Populated, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = storage._path(populated.images[1])
    really_open = Path.open

    def fail(self: Path, *arguments: object) -> object:
        if self == broken:
            raise OSError(5, "Input/output error")
        return really_open(self, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", fail)
    problems, _ = verify()
    assert [(p.code, p.subject) for p in problems] == [("blob_unreadable", populated.images[1])]


def test_what_goes_meanwhile_is_missed_by_nobody(
    verify: Verify,
    populated: Populated,
    sessions: Sessions,
    storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really_verify = LocalBlobStore.verify

    def remove_then_verify(self: LocalBlobStore, sha256: str) -> None:
        remove_dataset(sessions, populated.other_dataset_id)
        self._path(another).unlink(missing_ok=True)
        really_verify(self, sha256)

    with sessions.begin() as session:
        query = text("select sha256 from dataset_images where dataset_id = :id and position = 1")
        another = session.execute(query, {"id": populated.other_dataset_id}).scalar_one()
    monkeypatch.setattr(LocalBlobStore, "verify", remove_then_verify)
    assert verify()[0] == []


BROKEN = {
    "job_without_classifier": "update jobs set classifier_id = null where id = '{promoted}'",
    "job_with_early_classifier": "update jobs set classifier_id = (select classifier_id from jobs where id ="
    " '{promoted}') where id = '{queued}'",
    "job_with_foreign_classifier": "update jobs set classifier_id = (select classifier_id from jobs where id ="
    " '{promoted}') where id = '{refused}'",
    "classifier_of_unfinished_job": "update classifiers set job_id = '{queued}' where job_id = '{refused}'",
    "report_of_unfinished_job": "update job_reports set job_id = '{queued}' where job_id = '{promoted}'",
    "job_without_dataset": "update jobs set dataset_id = null where id = '{queued}'",
    "job_without_lease": "update jobs set lease_until = null where id = '{running}'",
    "job_with_lease": "update jobs set lease_until = created_at where id = '{queued}'",
    "job_without_end": "update jobs set finished_at = null where id = '{promoted}'",
    "job_with_early_end": "update jobs set finished_at = created_at where id = '{queued}'",
    "job_without_error": "update jobs set error = null where id = '{failed}'",
    "job_with_wrong_attempts": "update jobs set attempts_forgiven = 7 where id = '{failed}'",
    "job_without_history": "delete from job_events where job_id = '{queued}'",
    "alias_without_its_move": "delete from alias_moves where number = 2",
    "dataset_with_wrong_count": "delete from dataset_images where dataset_id = '{dataset_id}' and position = 3",
    "dataset_with_wrong_bytes": "update dataset_images set num_bytes = 8 where dataset_id = '{dataset_id}' and"
    " position = 3",
    "dataset_with_wrong_rejected": "delete from rejected_files where dataset_id = '{dataset_id}'",
    "illegal_move": "delete from job_events where id = (select min(id) from job_events where job_id = '{promoted}')",
    "history_ends_elsewhere": "delete from job_events where id = (select max(id) from job_events where job_id ="
    " '{failed}')",
    "classifier_with_wrong_files": "update classifiers set files = '{{}}' where job_id = '{promoted}'",
    "classifier_with_wrong_version": "update classifiers set version = '0' where job_id = '{promoted}'",
    "reference_to_nothing": "delete from datasets where id = '{dataset_id}'",
    "blob_missing": "update dataset_images set sha256 = '" + "a" * 64 + "' where dataset_id = '{dataset_id}' and"
    " position = 3",
    "blob_without_name": "update dataset_images set sha256 = 'nonsense' where dataset_id = '{dataset_id}' and"
    " position = 3",
}


ON_POSTGRESQL = ("reference_to_nothing", "illegal_move", "dataset_with_wrong_bytes", "classifier_with_wrong_files")
"""Those whose question is asked in other words there, or answered in others. All are asked of what is whole."""


@pytest.mark.parametrize(
    ("database_url", "code"),
    [
        *(pytest.param("sqlite", code, id=f"sqlite-{code}") for code in BROKEN),
        *(
            pytest.param("postgresql", code, id=f"postgresql-{code}", marks=pytest.mark.services)
            for code in ON_POSTGRESQL
        ),
    ],
    indirect=["database_url"],
)
def test_rows_that_contradict_each_other(
    verify: Verify, populated: Populated, engine: Engine, sessions: Sessions, code: str
) -> None:
    running = submit(sessions, populated.dataset_id)
    claim(sessions, running)
    with without_rules(engine) as execute:
        execute(BROKEN[code].format(**vars(populated), running=running))
    problems, _ = verify()
    assert code in {problem.code for problem in problems}
    assert all(str(problem).startswith(f"{problem.code} {problem.subject}: ") for problem in problems)


def test_each_rule_has_been_seen_broken() -> None:
    assert {rule.code for rule in contradictions.RULES} <= set(BROKEN)


def test_another_revision(verify: Verify, engine: Engine) -> None:
    _, head = revisions(engine)
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '0001'"))
    try:
        assert [problem.code for problem in verify()[0]] == ["wrong_revision"]
    finally:
        with engine.begin() as connection:
            connection.execute(text("update alembic_version set version_num = :head"), {"head": head})


@only_sqlite
def test_a_damaged_database_file(verify: Verify, populated: Populated, engine: Engine, tmp_path: Path) -> None:
    engine.dispose()
    with closing(sqlite3.connect(tmp_path / "must.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        query = "select rootpage from sqlite_master where name = 'ix_dataset_images_sha256'"
        (page,), (size,) = connection.execute(query).fetchone(), connection.execute("PRAGMA page_size").fetchone()
    with (tmp_path / "must.db").open("r+b") as file:
        file.seek((page - 1) * size + size - 200)
        file.write(b"\xff" * 100)
    assert {problem.code for problem in verify()[0]} & {"database_damaged", "database_unreadable"}


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True)
def test_rules_that_postgresql_was_told_not_to_check(verify: Verify, populated: Populated, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("alter table jobs add constraint late check (seed >= 0) not valid"))
    try:
        assert [problem.code for problem in verify()[0]] == ["constraint_not_valid"]
    finally:
        with engine.begin() as connection:
            connection.execute(text("alter table jobs drop constraint late"))


def test_what_a_killed_collection_left_aside_is_no_problem(
    verify: Verify, populated: Populated, storage: LocalBlobStore
) -> None:
    age(storage, populated.images[0])
    assert storage._aside.take(storage._path(populated.images[0])) is not None
    assert verify()[0] == []


@only_sqlite
@pytest.mark.parametrize(
    ("table", "cell"),
    [
        ("job_events", "data = '{'"),
        ("classifiers", "files = '{'"),
        ("jobs", "metrics = '{'"),
        ("jobs", "created_at = 'x'"),
    ],
)
def test_a_cell_that_cannot_be_read(
    *, verify: Verify, populated: Populated, engine: Engine, storage: LocalBlobStore, table: str, cell: str
) -> None:
    """It is told, and so is what is wrong elsewhere."""
    storage.delete(populated.images[0])
    with without_rules(engine) as execute:
        execute(f"update {table} set {cell} where id = (select min(id) from {table})")  # noqa: S608
    problems, _ = verify()
    assert ("database_unreadable", table) in {(problem.code, problem.subject) for problem in problems}
    assert table == "classifiers" or "blob_missing" in {problem.code for problem in problems}
