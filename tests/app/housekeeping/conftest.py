"""Housekeeping is tested on both databases, with blobs in a folder."""

from pathlib import Path

import pytest

from app.storage import LocalBlobStore
from tests.support.databases import database_url, engine, postgres_url, sessions, sqlite_template

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]


@pytest.fixture
def storage(tmp_path: Path) -> LocalBlobStore:
    return LocalBlobStore(tmp_path / "blobs")
