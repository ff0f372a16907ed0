"""What an operator does beside a service at work: backups that can be put back, and garbage that nobody misses."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from app.database import make_engine, make_sessionmaker
from app.housekeeping.garbage import GarbageCollector
from app.storage import LocalBlobStore
from app.tables import Job
from tests.support.garbage import GRACE, age, is_whole, taken_late
from tests.support.images import sound
from tests.support.service import Service, running_service
from tests.support.services import postgres_database
from tests.support.stacks import EMBEDDED, REDIS, Stack, only
from tests.support.tiny import make_base
from tests.support.workers import WorkerProcess, wait_for

NUM_CLIENTS = 2
MAX_JOBS = 3
"""Of a client at a time: more would only wait."""
ACTIVE = ("queued", "running", "cancelling")

pytestmark = only(EMBEDDED, REDIS)


@dataclass
class World:
    """A service at work, the clients that keep it busy, and what became of their requests."""

    service: Service
    settings: dict[str, str]
    folder: Path
    storage: LocalBlobStore
    sessions: sessionmaker[Session]
    num_datasets: int = 0
    num_deleted: int = 0
    num_removed: int = 0
    """Blobs that were collected."""
    num_lost: int = 0
    """Blobs that were not there although their data set was."""
    over: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)

    def admin(self, *arguments: object, data_dir: Path | None = None, **settings: str) -> tuple[int, str]:
        """``must admin`` as a process; its exit code and what it said."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MUST_")}
        environment |= {**self.settings, **({"MUST_DATA_DIR": str(data_dir)} if data_dir else {}), **settings}
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", "admin", *map(str, arguments)],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def load(self) -> Iterator[Callable[[], object]]:
        """Clients that upload, submit and delete without end, each images of its own.

        The block gets a function that raises what a client failed with.
        """
        with ThreadPoolExecutor(NUM_CLIENTS) as threads:
            clients: list[Future[None]] = [threads.submit(self._work, n) for n in range(NUM_CLIENTS)]
            try:
                yield lambda: [client.result() for client in clients if client.done()]
            finally:
                self.over.set()
                for client in clients:
                    client.result()

    @contextmanager
    def collections(self) -> Iterator[None]:
        """Two that collect garbage until the load is over."""

        def collect() -> None:
            collector = GarbageCollector(sessions=self.sessions, storage=self.storage, grace=GRACE)
            while not self.over.wait(0.02):
                num_removed = collector.collect().num_removed
                with self._lock:
                    self.num_removed += num_removed

        with ThreadPoolExecutor(2) as threads:
            collectors = [threads.submit(collect) for _ in range(2)]
            try:
                yield
            finally:
                self.over.set()
                for each in collectors:
                    each.result()

    def _work(self, client: int) -> None:
        kept: list[str] = []
        for round_ in range(100_000):
            if self.over.wait(0.02):
                return
            # Those of jobs stay. The others are the same each time, garbage in between.
            first = 10_000 * (client + 1) + (round_ if round_ % 4 == 0 else 1) * 3
            images = [sound(first + n) for n in range(3)]
            names = [hashlib.sha256(content).hexdigest() for content in images]
            files = [("images", (f"{n}.png", content)) for n, content in enumerate(images)]
            dataset = self._post("/datasets", files=files).json()
            lost = sum(not is_whole(self.storage, name) for name in names)
            with self._lock:
                self.num_datasets += 1
                self.num_lost += lost
            if kept and self.service.client.get(f"/jobs/{kept[0]}").json()["status"] not in ACTIVE:
                kept.pop(0)
            if round_ % 4 == 0 and len(kept) < MAX_JOBS:
                wish = {"dataset_id": dataset["id"], "classes": ["cat", "dog"]}
                kept.append(self._post("/jobs", json=wish).json()["id"])
                if round_ % 16 == 12:
                    self.service.client.post(f"/jobs/{kept.pop()}/cancel")  # it may have ended: then it is refused
                continue
            deleted = self.service.client.delete(f"/datasets/{dataset['id']}")
            assert deleted.status_code == 204, deleted.text
            with self._lock:
                self.num_deleted += 1
            for name in names:  # nobody else stores these: whoever does makes them young again
                if self.storage.exists(name):
                    age(self.storage, name)

    def _post(self, path: str, **content: object) -> httpx.Response:
        reply = self.service.client.post(path, **content)  # type: ignore[arg-type]
        assert reply.is_success, reply.text
        return reply


@pytest.fixture
def world(stack: Stack, sessions: sessionmaker[Session], tmp_path: Path) -> Iterator[World]:
    base = make_base(tmp_path / "base")
    settings = {
        **stack.settings,
        "MUST_DATA_DIR": str(tmp_path),
        "MUST_MODELS": json.dumps({"tiny": base}),
        "MUST_DEFAULT_MODEL": "tiny",
    }
    with running_service(tmp_path / "service", settings) as service, ExitStack() as held:
        broker = {"broker_url": stack.broker_url} if stack.broker_url else {}
        worker = WorkerProcess("worker", tmp_path, stack.settings, models=settings["MUST_MODELS"], **broker)
        held.callback(worker.end)
        yield World(service, settings, tmp_path, LocalBlobStore(tmp_path / "blobs"), sessions)


def num_active(sessions: sessionmaker[Session]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.status.in_(ACTIVE))) or 0


def num_succeeded(sessions: sessionmaker[Session]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(Job).where(Job.status == "succeeded")) or 0


def test_a_backup_of_a_service_at_work_goes_on_elsewhere(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the other kind of database. Two collect garbage all the while, and nobody misses any of it.

    What is lost without the hold, the grace period and the second look is shown, with each step in its place, in
    tests/app/admin/test_backup.py and tests/app/housekeeping/test_garbage.py.
    """
    backup = world.folder.with_name(f"{world.folder.name}-backup")  # apart from what it is of
    monkeypatch.setattr("app.aside.Aside.take", taken_late())
    with world.collections(), world.load() as check:
        wait_for(
            lambda: check() or (num_succeeded(world.sessions) >= 2 and world.num_removed > 0),
            timeout_s=120,
            what="jobs",
        )
        before = world.num_datasets, world.num_deleted
        code, said = world.admin("backup", backup)
        assert code == 0, said
        assert (world.num_datasets, world.num_deleted) > before, "it was at work meanwhile"
        code, said = world.admin("verify")
        assert code == 0, f"of the service at work: {said}"
    assert world.num_lost == 0

    with ExitStack() as held:
        elsewhere = world.folder / "elsewhere"
        if world.settings["MUST_DATABASE_URL"].startswith("sqlite"):
            url = held.enter_context(postgres_database())
        else:
            url = f"sqlite:///{elsewhere / 'must.db'}"
        there = {"data_dir": elsewhere, "MUST_DATABASE_URL": url}
        code, said = world.admin("restore", backup, **there)  # type: ignore[arg-type]
        assert code == 0, said
        code, said = world.admin("verify", **there)  # type: ignore[arg-type]
        assert code == 0, said
        engine = make_engine(url)
        held.callback(engine.dispose)
        sessions = make_sessionmaker(engine)
        num_unfinished, num_done = num_active(sessions), num_succeeded(sessions)
        assert num_done >= 2
        assert num_unfinished > 0, "jobs were at work when the backup was made"
        worker = WorkerProcess(
            "there", elsewhere, {"MUST_DATABASE_URL": url}, models=world.settings["MUST_MODELS"], worker_concurrency="2"
        )
        held.callback(worker.end)
        wait_for(lambda: num_active(sessions) == 0, timeout_s=150, what="the unfinished jobs")
        assert num_succeeded(sessions) == num_done + num_unfinished
        worker.end()
        code, said = world.admin("verify", **there)  # type: ignore[arg-type]
        assert code == 0, said
