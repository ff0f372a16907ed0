"""Disks that are full or read-only: told as such, nothing half-done, and reading goes on."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.main import create_app
from tests.support.disks import SmallDisk, small_disk
from tests.support.images import sound

NUM_POSTS = 300


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        yield disk


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """An API with other settings than the usual."""
    with ExitStack() as opened:

        def make(**settings: str) -> TestClient:
            app = create_app(Settings(data_dir=tmp_path / "data", decode_processes=1, **settings))  # type: ignore[arg-type]
            return opened.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


def upload(client: TestClient, *contents: bytes) -> httpx.Response:
    return client.post("/datasets", files=[("images", (f"{n}.png", c)) for n, c in enumerate(contents)])


def is_refused(answer: httpx.Response, code: str) -> bool:
    """Whether it says that there is no storage, in the form that was promised."""
    if answer.status_code == httpx.codes.CREATED:
        return False
    assert (answer.status_code, answer.json()["code"]) == (httpx.codes.SERVICE_UNAVAILABLE, code), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    return True


def files_in(folder: Path) -> set[Path]:
    """Blobs and what is staged, but for what fills the disk."""
    return {path for path in folder.rglob("*") if path.is_file() and path.name != "filler"}


def test_sqlite_on_a_full_disk_refuses_writes_and_reads_on(start: Callable[..., TestClient], disk: SmallDisk) -> None:
    path = disk.path / "must.db"
    client = start(database_url=f"sqlite:///{path}")
    images = [sound(n) for n in range(3)]
    first = upload(client, *images).json()["id"]
    disk.fill()
    # What the log of writes holds already is written again first.
    answers = [upload(client, *images)]
    while not is_refused(answers[-1], "storage_full"):
        answers.append(upload(client, *images))
        assert len(answers) < NUM_POSTS
    assert is_refused(upload(client, *images), "storage_full"), "again"
    listed = client.get("/datasets", params={"limit": 100})
    assert listed.status_code == httpx.codes.OK
    assert len(listed.json()["data"]) == min(100, len(answers)), "what was refused left nothing"
    assert client.get(f"/datasets/{first}").json()["num_images"] == 3
    disk.free()
    assert not is_refused(upload(client, *images), "storage_full")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_of_blobs_without_room_keeps_nothing_of_an_upload(
    start: Callable[..., TestClient], disk: SmallDisk, trouble: str
) -> None:
    """Before and after, the same upload is accepted: nothing but the disk refuses it."""
    client = start(storage_url=str(disk.path / "blobs"))
    kept = upload(client, *(sound(n) for n in range(3))).json()["id"]
    before = files_in(disk.path)
    images = [sound(n, size=(200, 200)) for n in range(10, 16)]
    if trouble == "full":
        disk.fill()
    else:
        disk.set_writable(writable=False)
    for _ in range(2):
        assert is_refused(upload(client, *images), "storage_full" if trouble == "full" else "storage_unavailable")
    assert files_in(disk.path) == before, "whole or absent, and nothing staged"
    assert [d["id"] for d in client.get("/datasets").json()["data"]] == [kept]
    found = client.get(f"/datasets/{kept}/images").json()["data"]
    assert len(found) == 3
    assert client.get(f"/datasets/{kept}/images/{found[0]['id']}/thumbnail").status_code == httpx.codes.OK
    if trouble == "full":
        disk.free()
    else:
        disk.set_writable(writable=True)
    again = upload(client, *images)
    assert again.json()["num_images"] == len(images)
    assert files_in(disk.path) > before
