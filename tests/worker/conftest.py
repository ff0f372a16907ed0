"""The supervisor knows no database, and the ledger is tested on both: here SQLite stands for either."""

import shutil
from pathlib import Path

import pytest

from tests.support.databases import engine, sessions, sqlite_template

__all__ = ["engine", "sessions", "sqlite_template"]


@pytest.fixture
def database_url(sqlite_template: Path, tmp_path: Path) -> str:
    """URL of a migrated SQLite database without rows."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'must.db')}"
