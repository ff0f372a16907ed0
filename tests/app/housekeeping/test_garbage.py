"""What nothing refers to goes; what somebody is about to refer to stays, whenever they come."""

import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import fsspec
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app import aside as aside_module
from app import storage as storage_module
from app.housekeeping import garbage as garbage_module
from app.housekeeping.garbage import Garbage, GarbageCollector
from app.housekeeping.holds import holding
from app.jobs.ledger import Ledger
from app.jobs.messages import Publication
from app.storage import BlobMissing, BlobStore, LocalBlobStore, make_storage
from tests.support.garbage import (
    GRACE,
    age,
    collect_again_and_again,
    forget_the_second_look,
    is_whole,
    once_within,
    remove_dataset,
    store_old,
    upload_again_and_again,
)
from tests.support.jobs import add_dataset, add_job

Sessions = sessionmaker[Session]
Collect = Callable[..., Garbage]

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Killed(BaseException):
    """Ends a collection where it stands, as SIGKILL would: nothing of ours catches it."""


@pytest.fixture
def collect(sessions: Sessions, storage: BlobStore) -> Collect:
    return GarbageCollector(sessions=sessions, storage=storage, grace=GRACE).collect


def publish(sessions: Sessions, files: dict[str, str]) -> None:
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    ledger.publish(
        claim, Publication(classifier_id=f"clf_{job_id}", files=files, version="0", metrics={}, verdict=None)
    )


def names(storage: BlobStore) -> set[str]:
    return {sha256 for sha256, _ in storage.stored()}


def test_orphans_go_and_nothing_else(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage_module, "_ASKED_AT_ONCE", 3)  # several batches
    monkeypatch.setattr(garbage_module, "_REMOVED_AT_ONCE", 2)
    image, twice, weights, orphan, other, late = (store_old(storage, b"%d" % n) for n in range(6))
    young = storage.put_stream(io.BytesIO(b"young")).sha256
    dataset_id = add_dataset(sessions, (image, twice))
    add_dataset(sessions, (twice,))
    publish(sessions, {"bundle.json": weights, "weights/model.bin": image})
    more = [store_old(storage, b"more %d" % n) for n in range(7)]

    looked = collect(dry_run=True)
    assert (looked.num_stored, looked.num_young, looked.num_orphans, looked.num_removed) == (14, 1, 10, 0)
    assert len(names(storage)) == 14
    done = collect()
    assert (done.num_orphans, done.num_removed, done.held) == (10, 10, False)
    assert names(storage) == {image, twice, weights, young}
    assert not {orphan, other, late, *more} & names(storage)

    remove_dataset(sessions, dataset_id)
    assert collect().num_removed == 0, "the other dataset and the classifier still have them"
    assert names(storage) == {image, twice, weights, young}


def test_it_ends_early_when_asked(collect: Collect, storage: LocalBlobStore) -> None:
    orphans = [store_old(storage, b"%d" % n) for n in range(5)]
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 2

    assert collect(stop=stop).num_removed == 2
    assert len(names(storage)) == len(orphans) - 2


@pytest.mark.parametrize("moment", ["before_take", "after_take", "after_look"])
def test_an_upload_at_any_moment_of_a_removal_has_its_blob(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, moment: str
) -> None:
    sha256 = store_old(storage, b"wanted again")

    def upload() -> None:
        storage.put_stream(io.BytesIO(b"wanted again"))
        add_dataset(sessions, (sha256,))

    with once_within(moment, upload):
        collect()
    assert is_whole(storage, sha256)
    age(storage, sha256)
    collect()
    assert is_whole(storage, sha256)


def test_without_the_second_look_it_is_lost(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above."""
    sha256 = store_old(storage, b"wanted again")
    forget_the_second_look(monkeypatch)

    def upload() -> None:
        storage.put_stream(io.BytesIO(b"wanted again"))
        add_dataset(sessions, (sha256,))

    with once_within("before_take", upload):
        collect()
    assert not is_whole(storage, sha256)


@pytest.mark.parametrize("grace", [GRACE, timedelta(0)], ids=["grace", "no_grace"])
@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_a_collection_between_blob_and_row(
    sessions: Sessions, storage: LocalBlobStore, grace: timedelta, *, known: bool
) -> None:
    """No grace is the negative control: there the blob must be lost."""
    if known:
        store_old(storage, b"just stored")
    sha256 = storage.put_stream(io.BytesIO(b"just stored")).sha256
    time.sleep(0.02)  # file times tick in some milliseconds
    GarbageCollector(sessions=sessions, storage=storage, grace=grace).collect()
    add_dataset(sessions, (sha256,))
    assert is_whole(storage, sha256) is (grace > timedelta(0))


def test_a_row_that_comes_after_the_rows_were_read(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored just within the grace period as the collection begins, and outside of it when it is removed."""
    sha256 = store_old(storage, b"late")
    discard = LocalBlobStore.discard

    def upload_then_discard(self: LocalBlobStore, name: str, **limit: object) -> bool:
        self.put_stream(io.BytesIO(b"late"))
        add_dataset(sessions, (sha256,))
        return discard(self, name, **limit)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalBlobStore, "discard", upload_then_discard)
    assert collect().num_removed == 0
    assert is_whole(storage, sha256)


def test_a_collection_while_an_upload_looks_at_what_is_there(
    collect: Collect, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload has read the old file and is about to make it young when it goes, the first of several."""
    contents = [b"%d" % n for n in range(3)]
    names_ = [store_old(storage, content) for content in contents]
    touch = storage_module.touch
    removed = []

    def collect_then_touch(path: Path) -> bool:
        removed.append(collect().num_removed)
        return touch(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "touch", collect_then_touch)
        with storage.batch() as batch:
            for content in contents:
                batch.put_stream(io.BytesIO(content))
    assert removed[0] == 3
    assert all(is_whole(storage, name) for name in names_)


@pytest.mark.parametrize("aside", ["a name of one's own", "a common name"])
def test_two_collections_of_one_blob(
    collect: Collect, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch, aside: str
) -> None:
    """One has found it old and is about to remove it; it is uploaded anew; another, which had looked before, takes
    that. A common name for what is taken aside is the negative control: the first removes what the second has."""
    if aside == "a common name":
        monkeypatch.setattr(aside_module.secrets, "token_hex", lambda _: "common")
    sha256 = store_old(storage, b"x")
    place = storage._path(sha256)

    def others() -> None:
        storage.put_stream(io.BytesIO(b"x"))
        taken = storage._aside.take(place)  # its first look was before
        assert taken is not None
        taken_by_the_other.append(taken)

    taken_by_the_other: list[Path] = []
    with once_within("after_look", others):
        collect()
    aside_module.put_back(taken_by_the_other[0], place)  # young, as it finds
    assert is_whole(storage, sha256) is (aside != "a common name")


def test_what_a_killed_collection_took_aside_is_back_when_it_is_needed(
    collect: Collect, storage: LocalBlobStore, tmp_path: Path
) -> None:
    reads: list[Callable[[str], object]] = [
        storage.read,
        storage.verify,
        storage.local_path,
        storage.exists,
        lambda sha256: storage.link(sha256, tmp_path / "link"),
    ]
    for n, read in enumerate(reads):
        sha256 = store_old(storage, b"%d" % n)
        kill(collect)
        assert not storage._path(sha256).exists(), "it lies aside"
        assert read(sha256) is not False
        assert storage._path(sha256).exists()
        collect()
        assert names(storage) == set()


def test_what_a_killed_collection_took_aside_is_swept(collect: Collect, storage: LocalBlobStore) -> None:
    sha256 = store_old(storage, b"x")
    kill(collect)
    assert collect().num_removed == 1
    assert not is_whole(storage, sha256)
    assert list(storage._aside.files()) == []


def test_one_killed_before_it_put_back_what_it_found_young(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore
) -> None:
    sha256 = store_old(storage, b"x")

    def upload() -> None:
        storage.put_stream(io.BytesIO(b"x"))
        add_dataset(sessions, (sha256,))

    with pytest.raises(Killed), once_within("after_take", die), once_within("before_take", upload):
        collect()
    assert not storage._path(sha256).exists()
    collect()
    assert is_whole(storage, sha256)
    assert list(storage._aside.files()) == []


def die() -> None:
    raise Killed


def kill(collect: Collect) -> None:
    with pytest.raises(Killed), once_within("after_take", die):
        collect()


def test_where_there_are_no_hard_links(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    sha256 = store_old(storage, b"x")
    with once_within("before_take", lambda: storage.put_stream(io.BytesIO(b"x")) and None):
        collect()
    assert is_whole(storage, sha256)
    assert list(storage._aside.files()) == []


def test_a_run_folder_keeps_its_images(collect: Collect, storage: LocalBlobStore, tmp_path: Path) -> None:
    sha256 = store_old(storage, b"an image")
    storage.link(sha256, tmp_path / "image")
    collect()
    assert not storage.exists(sha256)
    assert (tmp_path / "image").read_bytes() == b"an image"


def test_while_blobs_are_held_none_goes(collect: Collect, sessions: Sessions, storage: LocalBlobStore) -> None:
    store_old(storage, b"x")
    with holding(sessions):
        assert (collect().held, len(names(storage))) == (True, 1)
    assert (collect().held, len(names(storage))) == (False, 0)


def test_a_hold_that_comes_after_the_rows_were_read(
    collect: Collect, sessions: Sessions, storage: LocalBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds reads rows after that; the row goes between that and a later look of the collection."""
    sha256 = store_old(storage, b"x")
    dataset_id = add_dataset(sessions, (sha256,))
    asked = garbage_module.is_held
    with holding(sessions):
        remove_dataset(sessions, dataset_id)
        collect()
        assert is_whole(storage, sha256)
        monkeypatch.setattr(garbage_module, "is_held", lambda _: False)  # negative control
        collect()
        assert not is_whole(storage, sha256)
    monkeypatch.setattr(garbage_module, "is_held", asked)


def test_objects_of_a_remote_store(sessions: Sessions, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    remote = make_storage("memory://bucket/prefix", tmp_path / "cache")
    orphan, wanted = (remote.put_stream(io.BytesIO(content)).sha256 for content in (b"orphan", b"wanted"))
    remote.local_path(orphan)
    add_dataset(sessions, (wanted,))
    collector = GarbageCollector(sessions=sessions, storage=remote, grace=GRACE)
    assert (collector.collect().num_removed, len(names(remote))) == (0, 2)
    for entry in memory.store.values():
        entry.modified -= 2 * GRACE
    before = remote.clock() - GRACE
    remote.put_stream(io.BytesIO(b"orphan"))
    assert not remote.discard(orphan, unless_stored_since=before), "it is young again"
    (entry,) = (entry for name, entry in memory.store.items() if name.endswith(orphan))
    entry.modified -= 2 * GRACE
    assert (collector.collect().num_removed, names(remote)) == (1, {wanted})
    with pytest.raises(BlobMissing):
        remote.local_path(orphan)
    memory.store.clear()


@only_sqlite
@pytest.mark.parametrize("second_look", [True, False], ids=["second_look", "no_second_look"])
def test_uploads_and_collections_side_by_side(database_url: str, storage: LocalBlobStore, *, second_look: bool) -> None:
    """Real processes. Without the second look is the negative control: there blobs must be lost."""
    root, stop = storage._root, storage._root.parent / "stop"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.garbage"])  # imported once, which is what takes long
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        look = partial(collect_again_and_again, database_url, root, stop, second_look=second_look)
        collections = [pool.submit(look) for _ in range(2)]
        uploads = [
            pool.submit(upload_again_and_again, database_url, root, f"u{n}", rounds=40 if second_look else 4000)
            for n in range(2)
        ]
        try:
            done = [upload.result(timeout=200) for upload in uploads]
        finally:
            stop.touch()
        num_removed = sum(collection.result(timeout=60) for collection in collections)
    num_rounds, num_lost = (sum(column) for column in zip(*done, strict=True))
    assert num_removed > 0
    assert (num_lost == 0) is second_look, f"{num_lost} lost in {num_rounds} rounds, {num_removed} removed"
