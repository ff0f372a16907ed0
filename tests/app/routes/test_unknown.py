"""``unknown`` in the answers of ``/classify``, from a trainer's result on; training itself is left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.database import make_engine, make_sessionmaker
from app.jobs.ledger import Ledger
from app.storage import make_storage
from tests.support.bundles import hand_in
from tests.support.tiny import CLASSES, make_images
from worker.protocol import UnknownBelow

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), NUM_IMAGES)


class Service:
    """The service with its worker's part played."""

    def __init__(self, client: TestClient, settings: Settings, base: str, images: list[Path]) -> None:
        self.client = client
        self.images = images
        self._settings = settings
        self._base = base
        engine = make_engine(settings.resolved_database_url)
        self._ledger = Ledger(make_sessionmaker(engine))
        self.close = engine.dispose
        created = client.post("/datasets", files=[("images", (p.name, p.read_bytes())) for p in images])
        self._dataset_id = created.json()["id"]

    def publish(self, folder: Path, outcome: str, limits: UnknownBelow) -> dict[str, Any]:
        """A job that ended with this verdict, and whose classifiers have these limits; returns what it answers with."""
        submitted = self.client.post("/jobs", json={"dataset_id": self._dataset_id, "classes": CLASSES})
        job_id = submitted.json()["id"]
        storage = make_storage(self._settings.resolved_storage_url, folder / "cache")
        published = hand_in(
            self._ledger, storage, job_id, folder, base_model=self._base, outcome=outcome, limits=limits
        )
        found: dict[str, Any] = self.client.get(f"/classifiers/{published}").json()
        return found

    def classify(self, images: list[Path], **fields: str) -> list[dict[str, Any]]:
        files = [("images", (p.name, p.read_bytes())) for p in images]
        answer = self.client.post("/classify", data=fields, files=files)
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = answer.json()["results"]
        return results


@pytest.fixture(scope="module")
def service(client: TestClient, settings: Settings, base: str, images: list[Path]) -> Iterator[Service]:
    service = Service(client, settings, base, images)
    yield service
    service.close()


def flags(results: list[dict[str, Any]]) -> list[bool | None]:
    return [result["unknown"] for result in results]


@pytest.mark.parametrize(("outcome", "kind"), [("adapted", "adapted"), ("inconclusive", "zero_shot")])
def test_what_a_job_answers_with_knows_what_it_does_not_know(
    service: Service, images: list[Path], tmp_path: Path, outcome: str, kind: str
) -> None:
    unlimited = service.publish(tmp_path / "unlimited", outcome, UnknownBelow())
    assert (unlimited["kind"], unlimited["unknown_below"]) == (kind, None)
    asked = service.classify(images, classifier=unlimited["id"])
    assert flags(asked) == [None] * NUM_IMAGES

    raw_scores = sorted(result["raw_score"] for result in asked)
    limit = (raw_scores[1] + raw_scores[2]) / 2
    other = -1.0 if kind == "zero_shot" else 1.0  # nobody should go by it
    limits = UnknownBelow(**{"adapted": other, "zero_shot": other, kind: limit})
    classifier = service.publish(tmp_path / "limited", outcome, limits)
    assert classifier["unknown_below"] == limit
    assert classifier["version"] != unlimited["version"], "it answers differently"
    expected = [result["raw_score"] < limit for result in asked]
    assert sum(expected) == 2
    assert flags(service.classify(images, classifier=classifier["id"])) == expected
    alone = [service.classify([image], classifier=classifier["id"])[0]["unknown"] for image in images]
    assert alone == expected, "whatever came along"
    compared = service.classify(images, classifier=classifier["id"], compare="zero_shot")
    assert flags(compared) == expected
    assert all(result["zero_shot"] for result in compared)

    assert flags(service.classify(images, classifier=classifier["id"], threshold="1")) == [True] * NUM_IMAGES
    assert flags(service.classify(images, classifier=classifier["id"], threshold="0")) == [False] * NUM_IMAGES


@pytest.mark.parametrize(("limit", "unknown"), [(-1.01, False), (1.01, True)])
def test_negative_control_it_is_the_limit_that_flags(
    service: Service,
    images: list[Path],
    tmp_path: Path,
    limit: float,
    unknown: bool,  # noqa: FBT001
) -> None:
    classifier = service.publish(tmp_path, "adapted", UnknownBelow(adapted=limit))
    assert flags(service.classify(images, classifier=classifier["id"])) == [unknown] * NUM_IMAGES


def test_without_a_job_nobody_can_say(service: Service, images: list[Path]) -> None:
    assert flags(service.classify(images, classes=json.dumps(CLASSES))) == [None] * NUM_IMAGES
    made = service.client.post("/classifiers", json={"classes": CLASSES}).json()
    assert made["unknown_below"] is None
    assert flags(service.classify(images, classifier=made["id"])) == [None] * NUM_IMAGES


def test_a_damaged_image_is_neither(service: Service, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    classifier = service.publish(tmp_path, "adapted", UnknownBelow(adapted=1.01))
    results = service.classify([tmp_path / "broken.png", images[0]], classifier=classifier["id"])
    assert flags(results) == [None, True]


def test_the_document_says_what_true_means(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "95 %" in schemas["ResultOut"]["properties"]["unknown"]["description"]
    assert "description" in schemas["ClassifierOut"]["properties"]["unknown_below"]
