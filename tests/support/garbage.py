"""Steps of others, placed exactly within a collection; and many of them at once in processes of their own."""

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session, sessionmaker

from app import storage as storage_module
from app.aside import Aside
from app.database import make_engine, make_sessionmaker
from app.exceptions import Unavailable
from app.housekeeping.garbage import GarbageCollector
from app.storage import BlobStore, LocalBlobStore
from app.tables import Dataset
from tests.support.jobs import add_dataset

GRACE = timedelta(hours=1)


def store_old(storage: LocalBlobStore, content: bytes) -> str:
    """Store a blob and make it look as if that was long ago."""
    sha256 = storage.put_stream(io.BytesIO(content)).sha256
    age(storage, sha256)
    return sha256


def age(storage: LocalBlobStore, sha256: str) -> None:
    """Have a blob look as if it had been stored long ago."""
    os.utime(storage._path(sha256), (1, 1))


def remove_dataset(sessions: sessionmaker[Session], dataset_id: str) -> None:
    """As its owner would."""
    with sessions.begin() as session:
        session.execute(delete(Dataset).where(Dataset.id == dataset_id))


@contextmanager
def once_within(moment: str, step: Callable[[], None]) -> Iterator[None]:
    """Do a step at a moment of the next `LocalBlobStore.discard`: ``before_take``, ``after_take`` (and before it looks
    for the second time) or ``after_look``."""
    take, modified = Aside.take, storage_module.modified
    steps = [step]

    def do() -> None:
        if steps:
            steps.pop()()

    def stepped_take(self: Aside, place: Path) -> Path | None:
        if moment == "before_take":
            do()
        taken = take(self, place)
        if moment == "after_take":
            do()
        return taken

    def stepped_modified(path: Path) -> float:
        found = modified(path)
        if moment == "after_look" and path.parent.name == "aside":
            do()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Aside, "take", stepped_take)
        patch.setattr(storage_module, "modified", stepped_modified)
        yield
    assert not steps, "the moment came"


def forget_the_second_look(patch: pytest.MonkeyPatch) -> None:
    """For negative controls: what was taken aside is removed, however young it is."""
    modified = storage_module.modified
    patch.setattr(storage_module, "modified", lambda path: 0.0 if path.parent.name == "aside" else modified(path))


def taken_late() -> Callable[[Aside, Path], Path | None]:
    """`Aside.take` with some time between the first look at a blob and its being taken."""
    take = Aside.take

    def late(self: Aside, place: Path) -> Path | None:
        time.sleep(0.005)
        return take(self, place)

    return late


def is_whole(storage: BlobStore, sha256: str) -> bool:
    """Whether the blob can be read."""
    try:
        storage.verify(sha256)
    except Unavailable:
        return False
    return True


def upload_again_and_again(database_url: str, root: Path, name: str, *, rounds: int) -> tuple[int, int]:
    """For a process of its own: store a few blobs that are old garbage, over and over, each time with a row that is
    removed again; ends early when one is lost. Returns how often, and how many blobs were not there although their row
    was."""
    engine = make_engine(database_url)
    sessions, storage = make_sessionmaker(engine), LocalBlobStore(root)
    num_rounds = num_lost = 0
    while num_rounds < rounds and not num_lost:
        with storage.batch() as batch:
            names = [batch.put_stream(io.BytesIO(f"{name} {k}".encode())).sha256 for k in range(3)]
        dataset_id = add_dataset(sessions, tuple(names))
        num_lost += sum(not is_whole(storage, sha256) for sha256 in names)
        num_rounds += 1
        remove_dataset(sessions, dataset_id)
        for sha256 in names:
            if storage.exists(sha256):
                age(storage, sha256)
        time.sleep(random.uniform(0, 0.03))
    engine.dispose()
    return num_rounds, num_lost


def collect_again_and_again(database_url: str, root: Path, until_exists: Path, *, second_look: bool) -> int:
    """For a process of its own, with some time between the first look at a blob and its being taken. Returns how many
    blobs were removed."""
    engine = make_engine(database_url)
    collector = GarbageCollector(sessions=make_sessionmaker(engine), storage=LocalBlobStore(root), grace=GRACE)
    num_removed = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Aside, "take", taken_late())
        if not second_look:
            forget_the_second_look(patch)
        while not until_exists.exists():
            num_removed += collector.collect().num_removed
    engine.dispose()
    return num_removed
