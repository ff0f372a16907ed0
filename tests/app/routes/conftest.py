"""What tests of the assembled application share: each file has one of its own, with a tiny base model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.jobs.ledger import Ledger
from app.main import create_app
from tests.support.tiny import make_base, make_images


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the base model."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def models(base: str) -> dict[str, str]:
    """Those that the application offers."""
    return {"tiny": base}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("app") / "data", models=models, default_model="tiny")


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def ledger(client: TestClient, settings: Settings) -> Iterator[Ledger]:
    """That of the file's client, for a test that plays the worker's part."""
    engine = make_engine(settings.resolved_database_url)
    yield Ledger(make_sessionmaker(engine))
    engine.dispose()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture(scope="module")
def dataset_id(client: TestClient, images: list[Path]) -> str:
    """A dataset of them."""
    created = client.post("/datasets", files=[("images", (p.name, p.read_bytes())) for p in images])
    assert created.status_code == 201, created.text
    return str(created.json()["id"])
