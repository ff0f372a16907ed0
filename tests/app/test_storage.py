"""Blobs are whole or absent, locally and behind fsspec."""

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from app import storage as storage_module
from app.exceptions import Unavailable
from app.storage import (
    BlobCorrupt,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    LocalBlobStore,
    RemoteBlobStore,
    StagedBlob,
    make_storage,
)

ABSENT = hashlib.sha256(b"never stored").hexdigest()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "local":
        yield make_storage(str(tmp_path / "blobs"), tmp_path / "cache")
        return
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield make_storage("memory://bucket/prefix", tmp_path / "cache")
    memory.store.clear()


def damage(store: BlobStore, sha256: str, content: bytes) -> None:
    if isinstance(store, LocalBlobStore):
        store.local_path(sha256).write_bytes(content)
    else:
        assert isinstance(store, RemoteBlobStore)
        store._fs.pipe(store._remote(sha256), content)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "staging" in path.parts]


def test_what_goes_in_comes_out(store: BlobStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    stored = store.put_stream(io.BytesIO(content))
    assert (stored.sha256, stored.num_bytes) == (digest(content), len(content))
    assert store.put_stream(io.BytesIO(content)) == stored  # again: one blob
    assert store.exists(stored.sha256)
    assert store.read(stored.sha256) == content
    assert store.local_path(stored.sha256).read_bytes() == content
    with store.open(stored.sha256) as file:
        file.seek(5)
        assert file.read(5) == content[5:10]
    store.verify(stored.sha256)
    store.link(stored.sha256, tmp_path / "mine.bin")
    assert [sha256 for sha256, _ in store.stored()] == [stored.sha256]
    store.delete(stored.sha256)
    store.delete(stored.sha256)
    assert not store.exists(stored.sha256)
    assert (tmp_path / "mine.bin").read_bytes() == content
    assert not leftovers(tmp_path)


def test_put_file(store: BlobStore, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    assert store.put_file(path) == digest(b"abc")
    assert path.exists()


def test_missing(store: BlobStore, tmp_path: Path) -> None:
    for read in (store.open, store.read, store.local_path, store.verify):
        with pytest.raises(BlobMissing):
            read(ABSENT)
    with pytest.raises(BlobMissing):
        store.link(ABSENT, tmp_path / "x")
    assert not store.exists(ABSENT)
    assert list(store.stored()) == []


def test_one_flipped_byte_is_never_served(store: BlobStore) -> None:
    sha256 = store.put_stream(io.BytesIO(b"truth")).sha256
    damage(store, sha256, b"troth")
    for read in (store.read, store.verify):
        with pytest.raises(BlobCorrupt) as caught:
            read(sha256)
        assert caught.value.code == "artifact_corrupt"
    if isinstance(store, RemoteBlobStore):
        with pytest.raises(BlobCorrupt):
            store.local_path(sha256)
    store.put_stream(io.BytesIO(b"truth"))  # storing it again heals it
    assert store.read(sha256) == b"truth"


def test_names_that_are_no_digest_are_bugs(store: BlobStore) -> None:
    for name in ("", "../../etc/passwd", "A" * 64, "a" * 63):
        with pytest.raises(ValueError, match="sha256"):
            store.exists(name)


def test_batch_is_all_or_nothing(store: BlobStore, tmp_path: Path) -> None:
    contents = [f"image {n}".encode() for n in range(40)]
    with pytest.raises(RuntimeError, match="on the way"), store.batch() as batch:  # noqa: PT012 - the block is the test
        for content in contents:
            batch.put_stream(io.BytesIO(content))
        raise RuntimeError("on the way")
    assert list(store.stored()) == []
    assert not leftovers(tmp_path)
    with store.batch() as batch:
        staged = [batch.stage(io.BytesIO(content)) for content in contents]
        assert all(each.path.read_bytes() == content for each, content in zip(staged, contents, strict=True))
        for each in staged[:30]:
            batch.keep(each)
        batch.keep(batch.stage(io.BytesIO(contents[0])))
        batch.drop(staged[30])
        assert not any(store.exists(each.sha256) for each in staged)
    assert {sha256 for sha256, _ in store.stored()} == {digest(content) for content in contents[:30]}
    assert not leftovers(tmp_path)


def test_too_large_a_stream_is_not_kept(store: BlobStore, tmp_path: Path) -> None:
    with store.batch() as batch:
        with pytest.raises(BlobTooLarge):
            batch.stage(io.BytesIO(b"12345"), max_bytes=4)
        assert not leftovers(tmp_path)
        batch.put_stream(io.BytesIO(b"1234"))
    assert len(list(store.stored())) == 1


def test_storing_again_makes_young(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    sha256 = store.put_stream(io.BytesIO(b"x")).sha256
    os.utime(store.local_path(sha256), (1, 1))
    store.put_stream(io.BytesIO(b"x"))
    ((_, at),) = store.stored()
    assert datetime.now(UTC) - at < timedelta(minutes=1)


def test_age_counts_from_when_a_blob_is_in_its_place(tmp_path: Path) -> None:
    """An upload may take hours from its first byte to its last."""
    store = LocalBlobStore(tmp_path)
    with store.batch() as batch:
        batch.put_stream(io.BytesIO(b"x"))
        os.utime(batch.kept[0].path, (1, 1))
    ((_, at),) = store.stored()
    assert datetime.now(UTC) - at < timedelta(minutes=1)


def test_the_clock_is_that_of_the_blobs(store: BlobStore) -> None:
    before = store.clock()
    store.put_stream(io.BytesIO(b"x"))
    ((_, at),) = store.stored()
    assert before <= at <= store.clock()


def test_blobs_are_discarded_by_age(store: BlobStore) -> None:
    sha256 = store.put_stream(io.BytesIO(b"x")).sha256
    ((_, at),) = store.stored()
    assert not store.discard(sha256, unless_stored_since=at)
    assert store.discard(sha256, unless_stored_since=at + timedelta(milliseconds=1))
    assert not store.discard(sha256, unless_stored_since=at + timedelta(hours=1)), "it is gone"
    assert not store.exists(sha256)
    store.recover()
    assert not store.exists(sha256)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "storage_full"), (errno.EDQUOT, "storage_full"), (errno.EROFS, "storage_unavailable")],
)
def test_failing_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str) -> None:
    store = LocalBlobStore(tmp_path)

    def fail(paths: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage_module, "sync", fail)
    with pytest.raises(Unavailable) as caught:
        store.put_stream(io.BytesIO(b"x"))
    assert caught.value.code == code
    assert list(store.stored()) == []
    assert not leftovers(tmp_path)


def test_cache_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    store = RemoteBlobStore(memory, "/bounded", tmp_path, max_cache_bytes=2500)
    names = [store.put_stream(io.BytesIO(bytes([n]) * 1000)).sha256 for n in range(3)]
    first, second = (store.local_path(name) for name in names[:2])
    os.utime(second, (1, 1))
    third = store.local_path(names[2])
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    assert store.local_path(names[1]).read_bytes() == b"\x01" * 1000
    memory.store.clear()


def test_staging_of_killed_processes_is_removed(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    old, young = tmp_path / "staging" / "old", tmp_path / "staging" / "young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
    os.utime(old, (1, 1))
    assert store.remove_abandoned(timedelta(hours=1)) == 1
    assert (old.exists(), young.exists()) == (False, True)


WRITERS = """
import io, os, random, signal, sys, time
from pathlib import Path
from app.storage import LocalBlobStore
store = LocalBlobStore(Path(sys.argv[1]))

def write():
    while True:
        with store.batch() as batch:
            for _ in range(2):
                batch.put_stream(io.BytesIO(os.urandom(30_000)))
            batch.put_stream(io.BytesIO(bytes([random.randrange(5)]) * 70_000))  # there already, mostly

for _ in range(int(sys.argv[2])):
    writer = os.fork()
    if writer == 0:
        write()
    time.sleep(random.uniform(0, 0.03))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
"""


def num_broken(store: LocalBlobStore) -> int:
    """How many stored blobs are not whole."""
    broken = 0
    for sha256, _ in store.stored():
        try:
            store.verify(sha256)
        except BlobCorrupt:
            broken += 1
    return broken


def test_killed_writers_leave_whole_blobs(tmp_path: Path) -> None:
    """300 of them, at any moment."""
    store = LocalBlobStore(tmp_path)
    subprocess.run([sys.executable, "-c", WRITERS, str(tmp_path), "300"], check=True, timeout=200)
    assert num_broken(store) == 0
    assert len(list(store.stored())) > 5
    assert leftovers(tmp_path), "some were killed while they wrote"
    store.remove_abandoned(timedelta(0))
    assert not leftovers(tmp_path)


def test_verify_would_notice_writing_in_place(tmp_path: Path) -> None:
    """Negative control: a blob that is in place before it is whole is what the test above looks for."""
    store = LocalBlobStore(tmp_path)
    half = StagedBlob(digest(b"whole"), 5, tmp_path / "half")
    half.path.write_bytes(b"who")
    store._publish([half])
    assert num_broken(store) == 1


FILL = """
import hashlib, io, os, sys
from pathlib import Path
from app.exceptions import Unavailable
from app.storage import BlobCorrupt, LocalBlobStore
root, how = Path(sys.argv[1]), sys.argv[2]
store = LocalBlobStore(root)
contents = [bytes([n]) * 300_000 for n in range(12)]

def put(content):
    if how == "aside":
        return store.put_stream(io.BytesIO(content))
    path = store._path(hashlib.sha256(content).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

def failing(call, code):
    try:
        call()
    except Unavailable as e:
        assert e.code == code, e.code
    except OSError:
        assert how == "in_place"
    else:
        sys.exit("it fitted")

def put_all(some):
    with store.batch() as batch:
        for content in some:
            batch.put_stream(io.BytesIO(content))

def names():
    return {name for name, _ in store.stored()}

def num_broken():
    broken = 0
    for name in names():
        try:
            store.verify(name)
        except BlobCorrupt:
            broken += 1
    return broken

failing(lambda: [put(content) for content in contents], "storage_full")
print("broken", num_broken())
if how == "aside":
    before = names()
    assert 4 <= len(before) <= 6, before
    failing(lambda: put_all(contents[8:]), "storage_full")
    assert names() == before
    assert not [path for path in (root / "staging").iterdir()]
    store.delete(before.pop())
    put(contents[11])
    print("broken", num_broken())
"""


@pytest.mark.parametrize(("how", "broken"), [("aside", ["0", "0"]), ("in_place", ["1"])])
def test_a_disk_that_is_full(tmp_path: Path, how: str, broken: list[str]) -> None:
    """A file system of 2 MB. Writing in place is the negative control: there half a blob must be seen."""
    mount = f'mount -t tmpfs -o size=2m none {tmp_path} 2>/dev/null || exit 77; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, str(tmp_path), how],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1::2] == broken
