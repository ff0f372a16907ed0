"""What is in a backup, and when a folder holds one."""

import io
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session, sessionmaker

from app.admin import backup as backup_module
from app.admin.backup import BackedUp, Backup
from app.admin.backup_folder import BackupFolder
from app.admin.problems import AdminError, Problem
from app.admin.restore import check_backup
from app.exceptions import Unavailable
from app.housekeeping.garbage import GarbageCollector
from app.storage import LocalBlobStore
from app.tables import Dataset
from tests.support.garbage import GRACE, age, is_whole, remove_dataset
from tests.support.populated import Populated, add_images

Sessions = sessionmaker[Session]
BackUp = Callable[[], BackedUp]

only_postgresql = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True
)
only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    return BackupFolder(tmp_path / "backup")


@pytest.fixture
def problems() -> list[Problem]:
    return []


@pytest.fixture
def back_up(engine: Engine, storage: LocalBlobStore, folder: BackupFolder, problems: list[Problem]) -> BackUp:
    return lambda: Backup(engine=engine, storage=storage).write(folder.root, problems.append)


def ignore(problem: Problem) -> None:
    pass


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damages(folder: BackupFolder) -> set[str]:
    found: list[Problem] = []
    check_backup(folder.root, found.append)
    return {problem.subject for problem in found}


def test_all_rows_and_the_blobs_they_refer_to(
    back_up: BackUp, folder: BackupFolder, populated: Populated, storage: LocalBlobStore
) -> None:
    orphan = storage.put_file(Path(__file__))
    done = back_up()
    assert (done.num_blobs, done.num_copied, done.num_lost) == (11, 11, 0)
    assert {name for name, _ in folder.blobs.stored()} == {name for name, _ in storage.stored()} - {orphan}
    assert done.num_rows > 20
    assert damages(folder) == set()
    assert folder.root.stat().st_mode & 0o077 == 0, "it holds what users sent"


def test_a_second_one_copies_what_is_new_and_drops_what_is_not_needed(
    back_up: BackUp, folder: BackupFolder, populated: Populated, sessions: Sessions, storage: LocalBlobStore
) -> None:
    back_up()
    first = folder.manifest()
    _, (image,) = add_images(sessions, storage, [b"new"])
    with sessions.begin() as session:
        session.execute(update(Dataset).values(name="renamed"))
    remove_dataset(sessions, populated.other_dataset_id)
    done = back_up()
    assert (done.num_blobs, done.num_copied) == (11, 1), "one came, one went"
    assert is_whole(folder.blobs, image)
    assert folder.manifest().rows != first.rows
    assert [path.name for path in folder.root.glob("rows-*")] == [folder.manifest().rows]
    assert damages(folder) == set()


@only_sqlite
@pytest.mark.parametrize("moment", ["_copy_blobs", "_write_rows"])
def test_one_that_is_interrupted_leaves_the_one_before(
    *,
    back_up: BackUp,
    folder: BackupFolder,
    populated: Populated,
    sessions: Sessions,
    storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Backup, moment, die)
        with pytest.raises(Killed):
            back_up()
        with pytest.raises(AdminError, match="no backup"):
            folder.manifest()
    back_up()
    before = folder.manifest()
    add_images(sessions, storage, [b"new"])
    with monkeypatch.context() as patch:
        patch.setattr(BackupFolder, "finish", die)
        with pytest.raises(Killed):
            back_up()
    assert folder.manifest() == before
    assert damages(folder) == set()
    assert back_up().num_blobs == 12
    assert len(list(folder.root.glob("rows-*"))) == 1


def test_it_is_of_one_moment(
    *,
    back_up: BackUp,
    folder: BackupFolder,
    populated: Populated,
    sessions: Sessions,
    storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While its rows are read, a dataset comes and another goes, and garbage is collected."""
    write, collector = backup_module.write_rows, GarbageCollector(sessions=sessions, storage=storage, grace=GRACE)
    changed: list[bool] = []

    def change_then_write(session: Session, table: object) -> object:
        if not changed and getattr(table, "name", "") == "dataset_images":
            changed.append(True)
            assert next(write(session, Dataset.__table__))  # type: ignore[arg-type] # the moment has begun
            change = threading.Thread(target=change_it)
            change.start()
            change.join(timeout=60)
            assert not change.is_alive()
        return write(session, table)  # type: ignore[arg-type]

    def change_it() -> None:
        add_images(sessions, storage, [b"late"])
        remove_dataset(sessions, populated.other_dataset_id)
        for name, _ in storage.stored():
            age(storage, name)
        assert collector.collect().held

    monkeypatch.setattr(backup_module, "write_rows", change_then_write)
    assert back_up().num_blobs == 11
    manifest = folder.manifest()
    lines = {shape.name: list(folder.read_lines(manifest, file)) for shape, file in manifest.tables}
    assert len(lines["datasets"]) == 2
    assert len(lines["dataset_images"]) == 5 + 2
    assert damages(folder) == set()
    assert collector.collect().num_removed == 1, "when the backup is done, it goes"


@only_postgresql
def test_without_one_snapshot_it_is_of_several_moments(
    back_up: BackUp, folder: BackupFolder, populated: Populated, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above. SQLite has no such mode: there a plain session is the only writer."""
    write, changed = backup_module.write_rows, []

    def change_then_write(session: Session, table: object) -> object:
        if not changed and getattr(table, "name", "") == "dataset_images":
            changed.append(remove_dataset(sessions, populated.other_dataset_id))
        return write(session, table)  # type: ignore[arg-type]

    monkeypatch.setattr(backup_module, "write_rows", change_then_write)
    monkeypatch.setattr(backup_module, "read_only", lambda sessions: sessions.begin())
    back_up()
    manifest = folder.manifest()
    num_lines = {shape.name: file.num_lines for shape, file in manifest.tables}
    assert (num_lines["datasets"], num_lines["dataset_images"]) == (2, 5)


def test_without_the_hold_a_collection_takes_its_blobs(
    *,
    back_up: BackUp,
    populated: Populated,
    sessions: Sessions,
    storage: LocalBlobStore,
    monkeypatch: pytest.MonkeyPatch,
    problems: list[Problem],
) -> None:
    """Negative control of the test above."""
    copy = Backup._copy_blobs

    def collect_then_copy(self: Backup, *rest: object) -> list[str]:
        remove_dataset(sessions, populated.other_dataset_id)
        for name, _ in storage.stored():
            age(storage, name)
        with monkeypatch.context() as patch:
            patch.setattr("app.housekeeping.garbage.is_held", lambda _: False)
            GarbageCollector(sessions=sessions, storage=storage, grace=GRACE).collect()
        return copy(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Backup, "_copy_blobs", collect_then_copy)
    assert back_up().num_lost == 1
    assert [problem.code for problem in problems] == ["blob_not_in_backup"]


@only_sqlite
def test_what_is_not_whole_is_told_and_left_out(
    back_up: BackUp, folder: BackupFolder, populated: Populated, storage: LocalBlobStore, problems: list[Problem]
) -> None:
    missing, broken = populated.images[:2]
    storage._path(missing).unlink()
    damage(storage._path(broken))
    done = back_up()
    assert (done.num_blobs, done.num_lost) == (9, 2)
    assert {(problem.code, problem.subject) for problem in problems} == {
        ("blob_not_in_backup", missing),
        ("blob_not_in_backup", broken),
    }
    assert set(folder.manifest().lost) == {missing, broken}
    assert damages(folder) == set(), "it is what it says it is"


@only_sqlite
def test_a_full_disk_is_no_lost_blob(
    back_up: BackUp, folder: BackupFolder, populated: Populated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.storage.sync", fail)
    with pytest.raises(Unavailable, match="storage_full"):
        back_up()
    with pytest.raises(AdminError, match="no backup"):
        folder.manifest()


@only_sqlite
def test_damage_to_any_part_is_found(back_up: BackUp, folder: BackupFolder, populated: Populated) -> None:
    back_up()
    manifest = folder.manifest()
    rows = folder.root / manifest.rows
    files = [rows / "jobs.jsonl", rows / "blobs.txt", folder.blobs.local_path(populated.images[0])]
    for path in files:
        whole = path.read_bytes()
        damage(path)
        assert damages(folder) == {path.name}
        path.unlink()
        assert damages(folder) == {path.name}
        path.write_bytes(whole)
    assert damages(folder) == set()
    for position in range(0, folder.manifest_path.stat().st_size, 97):
        content = bytearray(manifest.to_bytes())
        content[position] ^= 1
        folder.manifest_path.write_bytes(content)
        with suppress(AdminError):
            assert folder.manifest() == manifest, "white space at most"


@only_sqlite
def test_one_at_a_time_in_a_folder(back_up: BackUp, folder: BackupFolder, populated: Populated) -> None:
    with folder.lock(), pytest.raises(AdminError, match="at work there"):
        back_up()


@only_sqlite
def test_a_database_of_another_revision_is_not_backed_up(back_up: BackUp, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '0001'")
    with pytest.raises(AdminError, match="must migrate"):
        back_up()


@only_sqlite
@pytest.mark.parametrize("place", ["blobs", "blobs/backup", ".", "empty"])
def test_it_is_never_made_where_the_service_keeps_its_data(
    engine: Engine, storage: LocalBlobStore, populated: Populated, tmp_path: Path, place: str
) -> None:
    """Even where nothing lies yet, or where an earlier backup says that the folder is its own."""
    (tmp_path / "must-backup").touch()
    (tmp_path / "blobs" / "must-backup").touch()
    under_way = storage.put_stream(io.BytesIO(b"its rows are not committed yet")).sha256
    before = {name for name, _ in storage.stored()}
    backup = Backup(engine=engine, storage=storage, service_folders=[tmp_path / "blobs", tmp_path / "empty"])
    with pytest.raises(AdminError, match="not apart"):
        backup.write(tmp_path / place, ignore)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "blobs")
    with pytest.raises(AdminError, match="not apart"):
        backup.write(tmp_path / "elsewhere", ignore)
    assert {name for name, _ in storage.stored()} == before >= {under_way}


@only_sqlite
def test_without_that_it_takes_what_is_being_uploaded(
    *,
    engine: Engine,
    storage: LocalBlobStore,
    populated: Populated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the test above and of the one below."""
    under_way = storage.put_stream(io.BytesIO(b"its rows are not committed yet")).sha256
    monkeypatch.setattr(BackupFolder, "_require_own", lambda _: None)
    monkeypatch.setattr(BackupFolder, "require_apart", lambda *_: None)
    Backup(engine=engine, storage=storage, service_folders=[tmp_path]).write(tmp_path, ignore)
    assert not storage.exists(under_way)


@only_sqlite
@pytest.mark.parametrize("name", ["rows-2025/precious.csv", "manifest.json", f"blobs/aa/aa/{'a' * 64}", ".profile"])
def test_a_folder_in_which_somebody_keeps_something_is_not_taken(
    back_up: BackUp, folder: BackupFolder, populated: Populated, name: str
) -> None:
    precious = folder.root / name
    precious.parent.mkdir(parents=True)
    precious.write_text("{}")
    with pytest.raises(AdminError, match="something else than a backup"):
        back_up()
    assert [path for path in folder.root.rglob("*") if path.is_file()] == [precious]
    assert precious.read_text() == "{}"


@only_sqlite
def test_in_a_folder_of_its_own_it_removes_what_is_its_own_alone(
    back_up: BackUp, folder: BackupFolder, populated: Populated
) -> None:
    folder.root.mkdir()
    back_up()
    (folder.root / "must-backup").unlink()  # as one of before there were markers
    note, unfinished = folder.root / "rows-2025" / "note", folder.root / f"rows-{'0' * 16}"
    for path in (note.parent, unfinished):
        path.mkdir()
    note.touch()
    back_up()
    assert note.exists()
    assert not unfinished.exists()
    assert damages(folder) == set()


@only_sqlite
@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(hours=1)], ids=["back", "forth"])
def test_the_clock_may_step_meanwhile(
    *,
    back_up: BackUp,
    folder: BackupFolder,
    populated: Populated,
    storage: LocalBlobStore,
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
    step: timedelta,
) -> None:
    """What may go is known by its name: files that look older than the backup stay, those that look newer go."""
    back_up()
    remove_dataset(sessions, populated.other_dataset_id)
    _, (image,) = add_images(sessions, storage, [b"new"])
    copy = Backup._copy_blobs

    def copy_then_step(self: Backup, *rest: object) -> list[str]:
        lost = copy(self, *rest)  # type: ignore[arg-type]
        for name, stored_at in folder.blobs.stored():
            os.utime(folder.blobs.local_path(name), times=((stored_at + step).timestamp(),) * 2)
        return lost

    monkeypatch.setattr(Backup, "_copy_blobs", copy_then_step)
    done = back_up()
    assert (done.num_blobs, done.num_copied) == (11, 1)
    assert is_whole(folder.blobs, image)
    assert len(list(folder.blobs.stored())) == 11
    assert damages(folder) == set()


@only_sqlite
def test_nobody_else_can_read_it(back_up: BackUp, folder: BackupFolder, populated: Populated) -> None:
    """Whatever the process's mask of modes is, also where the folder was there before."""
    folder.root.mkdir()
    folder.root.chmod(0o755)
    before = os.umask(0)
    try:
        back_up()
        assert os.umask(0) == 0, "it is as it was"
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in (folder.root, *folder.root.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


@only_sqlite
def test_a_cell_that_cannot_be_read(
    back_up: BackUp, folder: BackupFolder, populated: Populated, engine: Engine
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("update jobs set metrics = '{'")
    with pytest.raises(AdminError, match="a row of jobs cannot be read"):
        back_up()
    with pytest.raises(AdminError, match="no backup"):
        folder.manifest()
