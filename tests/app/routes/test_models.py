"""GET /models: what each base model supports, whatever state the operator's entries are in."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.config import Settings
from app.inference import catalog
from app.main import create_app
from must_core.models import ModelSupport, support_of
from tests.support.tiny import CLASSES, make_base

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "base"


@pytest.fixture
def client(tmp_path: Path, folder: Path) -> Iterator[TestClient]:
    models = {
        "tiny": make_base(folder),
        "resnet": "RN50/openai",
        "SigLIP": "ViT-B-16-SigLIP/webli",
        "nowhere": f"local-dir:{tmp_path / 'secret-place'}",
        "nonsense": "No-Such-Architecture/openai",
    }
    with TestClient(create_app(Settings(data_dir=tmp_path / "data", models=models, default_model="tiny"))) as client:
        yield client


def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    answer = client.get("/models")
    assert answer.status_code == 200, answer.text
    return {model["id"]: model for model in answer.json()["data"]}


def test_each_model_and_what_it_supports(client: TestClient) -> None:
    body = client.get("/models").json()
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == ("tiny", "nonsense")
    tiny, resnet, siglip, nowhere, nonsense = body["data"]
    assert tiny == {
        "id": "tiny", "object": "model", "default": True, "masked_training": True,
        "reason": "Vision transformer with a class token.", "image_size": 16, "patch_size": 4,
        "weights_available": True,
    }  # fmt: skip
    assert resnet == {
        "id": "resnet", "object": "model", "default": False, "masked_training": False,
        "reason": "Not a vision transformer: self-training only.", "image_size": 224, "patch_size": None,
        "weights_available": False,
    }  # fmt: skip
    assert (siglip["masked_training"], siglip["image_size"], siglip["patch_size"]) == (True, 224, 16)
    for model in (nowhere, nonsense):
        assert (model["masked_training"], model["image_size"], model["patch_size"]) == (None, None, None)
        assert model["weights_available"] is False
        assert model["reason"]
        assert "secret-place" not in model["reason"]


def test_what_is_listed_can_be_named(client: TestClient) -> None:
    available = {name for name, model in listed(client).items() if model["weights_available"]}
    for name in listed(client):
        answer = client.post("/classifiers", json={"classes": CLASSES, "base_model": name})
        assert answer.status_code == (201 if name in available else 503), answer.text


def test_weights_that_go_and_a_folder_that_is_put_right_are_seen(
    client: TestClient, folder: Path, tmp_path: Path
) -> None:
    assert listed(client)["tiny"]["weights_available"]
    (folder / WEIGHTS).unlink()
    assert not listed(client)["tiny"]["weights_available"]
    make_base(tmp_path / "secret-place")
    assert listed(client)["nowhere"]["masked_training"] is True


def test_towers_are_built_once_however_many_ask(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counting(address: str) -> ModelSupport:
        asked.append(address)
        return support_of(address)

    monkeypatch.setattr(catalog, "support_of", counting)
    threads = [threading.Thread(target=listed, args=(client,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    valid = [address for address in asked if "secret-place" not in address and "No-Such" not in address]
    assert len(valid) == 3


def test_every_field_is_described(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    reference = document["paths"]["/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.rpartition("/")[2] == "Page_ModelOut_"
    for name, field in document["components"]["schemas"]["ModelOut"]["properties"].items():
        assert field["description"], name
        assert field["examples"], name
