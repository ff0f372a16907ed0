"""Real processes, short leases, bounded waits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.databases import engine, postgres_url, sessions, sqlite_template
from tests.support.stacks import Stack, database_url, stack
from tests.support.workers import WorkerProcess

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template", "stack"]


@pytest.fixture
def start_worker(tmp_path: Path, stack: Stack) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers on the test's database, broker and folder; all are gone afterwards."""
    workers: list[WorkerProcess] = []

    def start(*arguments: str, ready: bool = True, **settings: str) -> WorkerProcess:
        worker = WorkerProcess(f"worker-{len(workers)}", tmp_path, stack.settings, *arguments, **settings)
        workers.append(worker)
        if ready:
            worker.wait_until_ready()
        return worker

    yield start
    for worker in workers:
        worker.end()
