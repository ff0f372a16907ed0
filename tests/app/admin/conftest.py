"""Each command is tested on both databases, with a service's data that has some of everything."""

from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.storage import LocalBlobStore
from tests.support.databases import database_url, engine, postgres_url, sessions, sqlite_template
from tests.support.populated import Populated, populate

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]


@pytest.fixture
def storage(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")


@pytest.fixture
def populated(sessions: sessionmaker[Session], storage: LocalBlobStore) -> Populated:
    return populate(sessions, storage)
