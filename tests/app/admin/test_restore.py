"""A backup put back is the service that was: on the same database or the other one, and nobody of old may write."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, inspect, select
from sqlalchemy.orm import Session, sessionmaker

from app.admin import restore as restore_module
from app.admin.backup import Backup
from app.admin.backup_folder import BackupFolder, _digest
from app.admin.problems import AdminError, Problem
from app.admin.restore import ID_JUMP, MOMENTARY, Restore, Restored
from app.admin.verify import Verifier
from app.database import make_engine, make_sessionmaker, migrate
from app.jobs.claims import FENCE_JUMP
from app.jobs.errors import LeaseLost
from app.jobs.fleet import Presence
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, JobError, Report
from app.jobs.status import JobStatus
from app.jobs.store import JobStore
from app.storage import LocalBlobStore
from app.tables import IdempotencyKey, Job, JobEvent
from tests.app.test_database import downgrade
from tests.support.databases import BOTH
from tests.support.jobs import add_dataset, read_job
from tests.support.populated import LEASE, Populated, add_images, claim, rows_of, submit
from tests.support.services import postgres_database

Sessions = sessionmaker[Session]
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
only_to_sqlite = pytest.mark.parametrize("target", ["sqlite"], indirect=True)


def ignore(problem: Problem) -> None:
    pass


@pytest.fixture(params=BOTH)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without any tables."""
    if request.param == "sqlite":
        engine = make_engine(f"sqlite:///{tmp_path / 'target' / 'must.db'}")
        yield engine
        engine.dispose()
        return
    with postgres_database() as url:
        engine = make_engine(url)
        yield engine
        engine.dispose()


@pytest.fixture
def target_storage(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "target" / "blobs")


@pytest.fixture
def back_up(engine: Engine, storage: LocalBlobStore, tmp_path: Path) -> Callable[[], BackupFolder]:
    def run() -> BackupFolder:
        Backup(engine=engine, storage=storage).write(tmp_path / "backup", ignore)
        return BackupFolder(tmp_path / "backup")

    return run


@pytest.fixture
def restore(target: Engine, target_storage: LocalBlobStore, tmp_path: Path) -> Callable[[], Restored]:
    return lambda: Restore(engine=target, storage=target_storage).run(tmp_path / "backup", ignore)


def problems_of(engine: Engine, storage: LocalBlobStore) -> list[Problem]:
    found: list[Problem] = []
    Verifier(engine=engine, storage=storage, blob_grace=timedelta(hours=24)).verify(found.append)
    return found


def with_the_jump(row: tuple[object, ...]) -> tuple[object, ...]:
    names = [column.name for column in Job.__table__.columns]
    values = dict(zip(names, row, strict=True))
    for name in ("attempt", "attempts_forgiven"):
        values[name] = values[name] + FENCE_JUMP  # type: ignore[operator]
    return tuple(values.values())


def test_it_is_the_service_that_was(
    *,
    engine: Engine,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    storage: LocalBlobStore,
    target_storage: LocalBlobStore,
) -> None:
    back_up()
    done = restore()
    before, after = rows_of(engine), rows_of(target)
    before["jobs"] = [with_the_jump(row) for row in before["jobs"]]
    before["idempotency_keys"] = [row for row in before["idempotency_keys"] if "answered" in row]
    before |= {name: [] for name in MOMENTARY}
    assert after == before
    assert (done.num_blobs, done.lost) == (11, ())
    assert {name for name, _ in target_storage.stored()} == {name for name, _ in storage.stored()}
    assert problems_of(target, target_storage) == []
    # It works: what is new comes after what was.
    sessions = make_sessionmaker(target)
    dataset_id, _ = add_images(sessions, target_storage, [b"1", b"2"])
    job_id = submit(sessions, dataset_id)
    with sessions.begin() as session:
        newest = session.scalar(select(func.max(JobEvent.id)).where(JobEvent.job_id != job_id)) or 0
        assert JobStore(session).last_event_id(job_id) > newest + ID_JUMP // 2
    assert read_job(sessions, populated.promoted).transitions[-1].status is JobStatus.SUCCEEDED


def test_nobody_of_old_may_write(
    *,
    engine: Engine,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    sessions: Sessions,
    target: Engine,
    target_storage: LocalBlobStore,
) -> None:
    """Workers that hold jobs live through the restore; one had gone on to a later attempt than the backup knows."""
    running, cancelling = (submit(sessions, populated.dataset_id) for _ in range(2))
    held, asked = claim(sessions, running, "w1"), claim(sessions, cancelling, "w2")
    with sessions.begin() as session:
        JobStore(session).request_cancel(cancelling)
    back_up()
    ledger = Ledger(sessions)
    ledger.release(held)
    later = ledger.claim("w3", LEASE, running)
    assert later is not None
    restore()
    restored = Ledger(make_sessionmaker(target))
    for zombie in (held, asked, later):
        for write in (
            lambda z=zombie: restored.beat(z, LEASE),  # type: ignore[misc]
            lambda z=zombie: restored.report(z, Report(events=((EventType.PHASE, {}),))),  # type: ignore[misc]
            lambda z=zombie: restored.fail(z, JobError(code="c", message="m")),  # type: ignore[misc]
        ):
            with pytest.raises(LeaseLost):
                write()
    view = read_job(make_sessionmaker(target), running)
    assert (view.status, view.attempt) == (JobStatus.QUEUED, 0), "the attempt is not counted"
    assert read_job(make_sessionmaker(target), cancelling).status is JobStatus.CANCELLED
    # The same worker takes it again, while its other thread still believes in its attempt of the time that is lost.
    again = restored.claim("w3", LEASE, running)
    assert again is not None
    assert again.attempt > later.attempt
    assert again.ordinal == 1
    with pytest.raises(LeaseLost):
        restored.beat(later, LEASE)
    restored.beat(again, LEASE)
    assert problems_of(target, target_storage) == []


@only_sqlite
@only_to_sqlite
def test_without_the_jump_one_of_old_may_write(
    *,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    sessions: Sessions,
    target: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr("app.jobs.claims.FENCE_JUMP", 0)
    running = submit(sessions, populated.dataset_id)
    held = claim(sessions, running, "w1")
    back_up()
    ledger = Ledger(sessions)
    ledger.release(held)
    later = ledger.claim("w3", LEASE, running)
    assert later is not None
    restore()
    restored = Ledger(make_sessionmaker(target))
    assert restored.claim("w3", LEASE, running) is not None
    restored.beat(later, LEASE)


def test_a_request_under_way_of_old_commits_nothing(
    populated: Populated, back_up: Callable[[], BackupFolder], restore: Callable[[], Restored], target: Engine
) -> None:
    back_up()
    restore()
    with make_sessionmaker(target).begin() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["answered"]


@only_sqlite
@only_to_sqlite
@pytest.mark.parametrize("prepare", ["nothing", "migrated", "of the backup's time"])
def test_where_it_can_be_put(
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    prepare: str,
) -> None:
    """A service that was started once and used by nobody is empty too."""
    back_up()
    if prepare != "nothing":
        migrate(target)
    if prepare == "of the backup's time":
        downgrade(target, "0007")
    assert restore().num_blobs == 11


@only_sqlite
def test_where_it_cannot_be_put(
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
) -> None:
    back_up()
    stray = target_storage.put_stream(io.BytesIO(b"of another service")).sha256
    with pytest.raises(AdminError, match="not one of the backup's"):
        restore()
    target_storage.delete(stray)
    migrate(target)
    sessions = make_sessionmaker(target)
    Ledger(sessions).check_in(Presence(owner="w", num_slots=1, num_gpus=1), LEASE)
    with pytest.raises(AdminError, match="worker is at work"):
        restore()
    Ledger(sessions).check_out("w")
    add_dataset(sessions)
    with pytest.raises(AdminError, match="rows in datasets"):
        restore()
    assert list(target_storage.stored()) == []


@only_sqlite
def test_one_that_is_interrupted_leaves_an_empty_database_and_can_be_made_again(
    *,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    back_up()
    for moment in ("_copy_blobs", "complete_rows", "_forget_who_was_at_work"):
        with monkeypatch.context() as patch:
            patch.setattr(Restore if moment == "_copy_blobs" else restore_module, moment, die)
            with pytest.raises(Killed):
                restore()
    with target.connect() as connection:
        assert target.dialect.get_table_names(connection) == []
    some = [name for name, _ in target_storage.stored()][:4]
    for name in some:
        target_storage.delete(name)
    assert restore().num_blobs == 4
    assert problems_of(target, target_storage) == []


@only_sqlite
@only_to_sqlite
def test_a_damaged_one_is_not_put_back(
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target_storage: LocalBlobStore,
) -> None:
    folder = back_up()
    path = folder.blobs.local_path(populated.images[0])
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(AdminError, match="damaged in 1 places"):
        restore()
    assert list(target_storage.stored()) == []


@only_sqlite
@only_to_sqlite
def test_one_that_was_made_without_lost_blobs(
    *,
    populated: Populated,
    storage: LocalBlobStore,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
) -> None:
    storage._path(populated.images[0]).unlink()
    back_up()
    assert restore().lost == (populated.images[0],)
    problems = problems_of(target, target_storage)
    assert [(p.code, p.subject) for p in problems] == [("blob_missing", populated.images[0])]


def columns_of(revision: str, path: Path) -> dict[str, set[str]]:
    """The tables of a revision, with their columns."""
    engine = make_engine(f"sqlite:///{path}")
    migrate(engine)
    downgrade(engine, revision)
    with engine.connect() as connection:
        found = inspect(connection)
        tables = {name: {column["name"] for column in found.get_columns(name)} for name in found.get_table_names()}
    engine.dispose()
    return tables


@only_sqlite
def test_one_of_an_earlier_revision_is_brought_to_the_present(
    *,
    engine: Engine,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As code of revision 0006 would have made it: without the tables and columns that came later."""
    folder = back_up()
    manifest = json.loads(folder.manifest_path.read_text())
    del manifest["sha256"]
    manifest["revision"] = "0006"
    then = columns_of("0006", folder.root.parent / "then.db")
    manifest["tables"] = [pair for pair in manifest["tables"] if pair[0]["name"] in then]
    for shape, file in manifest["tables"]:
        kept = [n for n, name in enumerate(shape["columns"]) if name in then[shape["name"]]]
        shape["columns"] = {n: kind for n, kind in shape["columns"].items() if n in then[shape["name"]]}
        path = folder.root / manifest["rows"] / file["name"]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps([row[n] for n in kept]) + "\n" for row in rows))
        file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    folder.manifest_path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    restore()
    assert problems_of(target, target_storage) == []
    assert len(rows_of(target)["job_events"]) == len(rows_of(engine)["job_events"])

    manifest["revision"] = "9999"
    folder.manifest_path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(AdminError, match="newer"):
        restore()


@only_sqlite
@only_to_sqlite
def test_what_is_damaged_in_the_storage_is_healed(
    *,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
) -> None:
    """As a restore that the power cut ended may leave it, or a disk."""
    folder = back_up()
    for name in populated.images[:2]:
        with folder.blobs.open(name) as file:
            target_storage.put_stream(file)
    target_storage.local_path(populated.images[0]).write_bytes(b"rotten")
    assert restore().num_blobs == 10, "one is there and sound"
    assert problems_of(target, target_storage) == []


@only_sqlite
@only_to_sqlite
def test_a_blob_that_is_damaged_after_it_was_checked_ends_the_restore(
    *,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    target_storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = back_up()

    def damage(*_: object) -> None:
        folder.blobs.local_path(populated.images[0]).write_bytes(b"rotten")

    monkeypatch.setattr(Restore, "_require_no_others", damage)
    with pytest.raises(AdminError, match=f"blob {populated.images[0]} of the backup was damaged"):
        restore()
    assert list(target_storage.stored()) == []
    assert inspect(target).get_table_names() == []


def rewrite(folder: BackupFolder, path: tuple[str | int, ...], value: object) -> None:
    """Change one value of a manifest, whose digest is right then."""
    manifest = json.loads(folder.manifest_path.read_text())
    del manifest["sha256"]
    inner = manifest
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    folder.manifest_path.write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))


@only_sqlite
@only_to_sqlite
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows",), ".."),
        (("rows",), "/etc"),
        (("rows",), 7),
        (("blobs", "name"), "/etc/hostname"),
        (("blobs", "name"), "../../must.db"),
        (("tables", 0, 1, "name"), "../manifest.json"),
        (("tables", 0, 0, "name"), "alembic_version"),
        (("tables", 0, 0, "name"), "sqlite_master"),
        (("tables", 0, 0, "columns"), {"id": "text", "no_column": "text"}),
        (("tables", 0, 0, "columns"), {"id": "no_kind"}),
        (("tables", 0, 0, "columns"), ["id"]),
        (("tables", 0, 0, "key"), ["no_column"]),
        (("tables", 0, 0, "late"), ["no_column"]),
        (("revision",), "head"),
        (("lost",), 7),
    ],
    ids=str,
)
def test_a_manifest_that_somebody_made_up(
    *,
    populated: Populated,
    back_up: Callable[[], BackupFolder],
    restore: Callable[[], Restored],
    target: Engine,
    path: tuple[str | int, ...],
    value: object,
) -> None:
    """Its digest is no signature. What it names is a file of the backup or a column of its time, or nothing."""
    folder = back_up()
    rewrite(folder, path, value)
    if path[2:] == (0, "name"):  # a table whose file is named as it should be
        rows = folder.root / json.loads(folder.manifest_path.read_text())["rows"]
        first = next(iter(json.loads(folder.manifest_path.read_text())["tables"]))[1]["name"]
        (rows / first).rename(rows / f"{value}.jsonl")
        rewrite(folder, ("tables", 0, 1, "name"), f"{value}.jsonl")
    with pytest.raises(AdminError, match=r"manifest|revision"):
        restore()
    assert inspect(target).get_table_names() == []


@only_sqlite
@only_to_sqlite
def test_lines_that_are_no_rows(
    populated: Populated, back_up: Callable[[], BackupFolder], restore: Callable[[], Restored], target: Engine
) -> None:
    """Their digests are right: somebody wrote them so."""
    folder = back_up()
    manifest = json.loads(folder.manifest_path.read_text())
    path = folder.root / manifest["rows"] / "datasets.jsonl"
    at = [file["name"] for _, file in manifest["tables"]].index(path.name)
    for content in (b"[", b"{}\n", b"[1]\n", b"\xff\n"):
        path.write_bytes(content)
        rewrite(folder, ("tables", at, 1, "sha256"), hashlib.sha256(content).hexdigest())
        with pytest.raises(AdminError, match="no row of datasets"):
            restore()
    assert inspect(target).get_table_names() == []


@only_sqlite
@only_to_sqlite
def test_names_of_blobs_that_are_none(
    populated: Populated, back_up: Callable[[], BackupFolder], restore: Callable[[], Restored]
) -> None:
    folder = back_up()
    content = b"../../must.db\n\xff\n"
    (folder.root / folder.manifest().rows / "blobs.txt").write_bytes(content)
    rewrite(folder, ("blobs", "sha256"), hashlib.sha256(content).hexdigest())
    with pytest.raises(AdminError, match="damaged in 2 places"):
        restore()
