"""``must admin`` as an operator types it: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from app.cli.admin import app
from app.config import Settings
from app.database import make_engine, make_sessionmaker, migrate
from app.housekeeping.holds import holding
from app.storage import LocalBlobStore
from tests.support.garbage import store_old
from tests.support.populated import Populated, leave_no_worker, populate


class Place:
    """A service's data, and commands on it."""

    def __init__(self, data_dir: Path) -> None:
        self.environment = {"MUST_DATA_DIR": str(data_dir), "MUST_DATABASE_URL": None, "MUST_STORAGE_URL": None}
        settings = Settings(data_dir=data_dir)
        self.engine = make_engine(settings.resolved_database_url)
        self.sessions = make_sessionmaker(self.engine)
        self.storage = LocalBlobStore(Path(settings.resolved_storage_url))

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=self.environment)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "data")
    migrate(found.engine)
    return found


@pytest.fixture
def populated(place: Place) -> Populated:
    return populate(place.sessions, place.storage)


def test_verify(place: Place, populated: Populated) -> None:
    done = place.run("verify")
    assert (done.exit_code, done.stdout) == (0, "0 problems. checked 12, stored 11, orphans 0\n")
    place.storage.delete(populated.images[0])
    done = place.run("verify")
    assert done.exit_code == 1
    first, last = done.stdout.splitlines()
    assert first.startswith(f"blob_missing {populated.images[0]}: A stored file is missing. It is of ds_")
    assert last.startswith("1 problems.")
    done = place.run("verify", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["num_problems"], told["num_checked"]) == (1, 1, 12)
    assert told["problems"][0]["code"] == "blob_missing"


def test_gc(place: Place, populated: Populated) -> None:
    store_old(place.storage, b"garbage")
    with holding(place.sessions):
        done = place.run("gc")
        assert (done.exit_code, "a backup is being made" in done.stderr) == (2, True)
    assert place.run("gc", "--dry-run").stdout == "stored 12, young 11, orphans 1, removed 0\n"
    assert place.run("gc").stdout == "stored 12, young 11, orphans 1, removed 1\n"
    assert place.run("gc").stdout == "stored 11, young 11, orphans 0, removed 0\n"


def test_backup_and_restore(place: Place, populated: Populated, tmp_path: Path) -> None:
    done = place.run("backup", tmp_path / "backup")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Backed up to {tmp_path / 'backup'}. rows ")
    assert place.run("verify", "--backup", tmp_path / "backup").exit_code == 0

    done = place.run("restore", tmp_path / "backup")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Not done: a worker is at work on the database: stop all workers and the API.\n"
    leave_no_worker(place.sessions)
    assert "the database is not empty: there are rows in datasets" in place.run("restore", tmp_path / "backup").stderr

    fresh = Place(tmp_path / "fresh")
    done = fresh.run("restore", tmp_path / "backup")
    assert done.exit_code == 0, done.stderr
    assert "11 blobs" in done.stdout
    assert fresh.run("verify").exit_code == 0

    blob = next((tmp_path / "backup" / "blobs").glob("??/??/*"))
    blob.write_bytes(b"damaged")
    done = Place(tmp_path / "third").run("restore", tmp_path / "backup")
    assert done.exit_code == 2
    assert done.stdout.startswith(f"backup_damaged {blob.name}: ")
    assert not (tmp_path / "third" / "blobs").exists()
    assert place.run("verify", "--backup", tmp_path / "backup").exit_code == 1
    assert place.run("restore", tmp_path / "nothing").exit_code == 2
    assert not (tmp_path / "nothing").exists()


def test_a_backup_with_holes_says_so(place: Place, populated: Populated, tmp_path: Path) -> None:
    place.storage.delete(populated.images[0])
    done = place.run("backup", tmp_path / "backup")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"blob_not_in_backup {populated.images[0]}: A stored file is missing.")
    done = Place(tmp_path / "fresh").run("restore", tmp_path / "backup")
    assert (done.exit_code, f"blob_not_in_backup {populated.images[0]}" in done.stdout) == (0, True)


def test_what_cannot_be_reached_is_said_in_a_line(place: Place, tmp_path: Path) -> None:
    store_old(place.storage, b"garbage")
    place.environment["MUST_DATABASE_URL"] = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    for arguments in (("verify",), ("gc",), ("backup", tmp_path / "backup"), ("restore", tmp_path / "backup")):
        done = place.run(*arguments)
        assert (done.exit_code, done.stdout, done.stderr[:9]) == (2, "", "Not done:")


def test_a_database_that_was_never_migrated(tmp_path: Path) -> None:
    place = Place(tmp_path / "new")
    with place.engine.begin() as connection:
        connection.execute(text("select 1"))
    assert place.run("verify").exit_code == 1
    assert place.run("backup", tmp_path / "backup").exit_code == 2


def test_a_backup_into_the_service_itself(place: Place, populated: Populated, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "blobs").rglob("*")}
    place.environment["MUST_STORAGE_URL"] = f"file://{tmp_path / 'data' / 'blobs'}"
    for folder in ("data", "data/blobs", "data/new", "."):
        done = place.run("backup", tmp_path / folder)
        assert (done.exit_code, "is not apart from" in done.stderr) == (2, True)
    place.environment["MUST_DATA_DIR"] = str(tmp_path / "elsewhere")
    place.environment["MUST_DATABASE_URL"] = str(place.engine.url)
    done = place.run("backup", tmp_path / "data" / "blobs")
    assert (done.exit_code, "is not apart from" in done.stderr) == (2, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "blobs").rglob("*")} == before


def test_what_nobody_expected_is_not_taken_for_problems(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1 says that all was read and problems were found."""

    def fail(*_: object) -> None:
        raise RuntimeError("nobody expected it")

    monkeypatch.setattr("app.cli.admin.Verifier.verify", fail)
    done = place.run("verify")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("Not done: RuntimeError: nobody expected it\n")
    place.environment["MUST_BLOB_GRACE"] = "nonsense"
    for arguments in (("verify",), ("gc",), ("backup", "nowhere"), ("restore", "nowhere")):
        assert place.run(*arguments).exit_code == 2
