"""The supervisor knows no database, and the ledger is tested on both: here SQLite stands for either."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.ledger import Ledger
from app.storage import BlobStore, make_storage
from tests.support.clock import Clock
from tests.support.databases import engine, sessions, sqlite_template
from tests.support.supervision import make_supervisor
from worker.supervisor import Supervisor

__all__ = ["engine", "sessions", "sqlite_template"]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a migrated SQLite database without rows."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'must.db')}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(tmp_path: Path) -> BlobStore:
    return make_storage(str(tmp_path / "blobs"), tmp_path / "cache")


@pytest.fixture
def supervise(sessions: sessionmaker[Session], storage: BlobStore, tmp_path: Path) -> Callable[..., Supervisor]:
    """Makes supervisors with short times."""

    def make(ledger: Ledger | None = None, **options: Any) -> Supervisor:
        return make_supervisor(ledger or Ledger(sessions), storage, tmp_path / "runs", **options)

    return make
