"""What tests of the assembled application share."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.jobs.ledger import Ledger


@pytest.fixture(scope="module")
def ledger(client: TestClient, settings: Settings) -> Iterator[Ledger]:
    """That of the file's client, for a test that plays the worker's part."""
    engine = make_engine(settings.resolved_database_url)
    yield Ledger(make_sessionmaker(engine))
    engine.dispose()
