"""An application of the rooms that a test needs, on SQLite and a folder of its own."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.ingest.decoding import DecoderPool
from app.tables import Base
from must_core.data.images import ImageLimits


@pytest.fixture(scope="session")
def decoder() -> Iterator[DecoderPool]:
    """One pool of decoding processes: starting one takes a while."""
    with DecoderPool(processes=2, limits=ImageLimits(max_pixels=1_000_000), timeout=timedelta(seconds=20)) as pool:
        yield pool


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", max_upload_bytes=500_000, max_images=20)


@pytest.fixture
def sessions(settings: Settings) -> Iterator[sessionmaker[Session]]:
    engine = make_engine(settings.resolved_database_url)
    Base.metadata.create_all(engine)
    yield make_sessionmaker(engine)
    engine.dispose()
