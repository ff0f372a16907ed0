"""Names that answer with a classifier, on the assembled application and both databases."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.config import Settings
from app.jobs.ledger import Ledger
from app.storage import make_storage
from tests.support.bundles import hand_in
from tests.support.databases import BOTH
from tests.support.services import postgres_database
from tests.support.tiny import CLASSES


@pytest.fixture(scope="module", params=BOTH)
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]
) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("app") / "data"
    plain = Settings(data_dir=folder, models=models, default_model="tiny")
    if request.param == "sqlite":
        yield plain
        return
    with postgres_database() as url:
        yield plain.model_copy(update={"database_url": SecretStr(url)})


def zero_shot(client: TestClient, *names: str) -> str:
    made = client.post("/classifiers", json={"classes": list(names)})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


@pytest.fixture(scope="module")
def first(client: TestClient) -> str:
    return zero_shot(client, "apple", "pear")


@pytest.fixture(scope="module")
def second(client: TestClient) -> str:
    return zero_shot(client, "north", "south")


def put(client: TestClient, name: str, classifier_id: str) -> dict[str, Any]:
    moved = client.put(f"/aliases/{name}", json={"classifier_id": classifier_id})
    assert moved.status_code == 200, moved.text
    body: dict[str, Any] = moved.json()
    return body


def test_a_name_answers_with_what_it_points_at(client: TestClient, images: list[Path], first: str, second: str) -> None:
    made = put(client, "fruit", first)
    assert (made["object"], made["name"], made["classifier_id"], made["num_moves"]) == ("alias", "fruit", first, 1)
    files = [("images", (p.name, p.read_bytes())) for p in images]
    for target, labels in ((first, {"apple", "pear"}), (second, {"north", "south"})):
        put(client, "fruit", target)
        answer = client.post("/classify", data={"classifier": "fruit"}, files=files).json()
        assert answer["classifier"] == target
        assert answer["classifier_version"] == client.get(f"/classifiers/{target}").json()["version"]
        assert {p["label"] for r in answer["results"] for p in r["predictions"]} == labels
    assert client.post("/classify", data={"classifier": "vegetable"}, files=files).status_code == 404


def test_history_is_kept_and_one_call_leads_back(client: TestClient, first: str, second: str) -> None:
    put(client, "compass", first)
    assert put(client, "compass", first)["num_moves"] == 1, "nothing moved"
    put(client, "compass", second)
    for expected in (first, second):  # twice leads back
        back = client.post("/aliases/compass/rollback")
        assert (back.status_code, back.json()["classifier_id"]) == (200, expected)
    key = {"Idempotency-Key": "back"}
    once, again = (client.post("/aliases/compass/rollback", headers=key) for _ in range(2))
    assert (once.json(), again.headers["Idempotency-Replayed"]) == (again.json(), "true")
    client.post("/aliases/compass/rollback")
    body = client.get("/aliases/compass").json()
    assert [move["classifier_id"] for move in body["history"]] == [second, first, second, first, second, first]
    assert (body["num_moves"], body["moved_at"]) == (6, body["history"][0]["moved_at"])


def test_there_may_be_nothing_to_go_back_to(client: TestClient, first: str) -> None:
    put(client, "young", first)
    refused = client.post("/aliases/young/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_roll_back")
    gone = zero_shot(client, "here", "there")
    put(client, "widow", gone)
    put(client, "widow", first)
    assert client.delete(f"/classifiers/{gone}").status_code == 204
    refused = client.post("/aliases/widow/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_roll_back")
    assert client.get("/aliases/widow").json()["classifier_id"] == first


@pytest.mark.parametrize(
    "name",
    ["Upper", "under_score", "-x", "x-", "a" * 64, "a b", "clf_01k0c9v2ytq4v3m5p6r7s8t9wa", "%00", "x%0a", "%ff"],
)
def test_names_that_could_be_something_else_are_refused(client: TestClient, first: str, name: str) -> None:
    refused = client.put(f"/aliases/{name}", json={"classifier_id": first})
    assert (refused.status_code, refused.json()["param"]) == (422, "name")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback")):
        assert client.request(method, f"/aliases/{name}{path}").status_code == 404
    listed = client.get(f"/aliases?after={name}")
    assert (listed.status_code, listed.json()["code"], listed.json()["param"]) == (400, "invalid_cursor", "after")


@pytest.mark.parametrize(
    ("reference", "code"),
    [("Upper", "not_found"), ("", "not_found"), ("x\0", "invalid_text"), ("\ud800", "invalid_text")],
)
def test_what_names_no_classifier_answers_nothing(client: TestClient, reference: str, code: str) -> None:
    body = json.dumps({"classifier": reference, "images": [{"content": "aGk="}]})
    answer = client.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["code"] == code


def test_a_name_needs_a_classifier(client: TestClient) -> None:
    for missing in ("clf_01k0c9v2ytq4v3m5p6r7s8t9wa", "fruit"):
        assert client.put("/aliases/lost", json={"classifier_id": missing}).status_code == 404
    assert client.get("/aliases/lost").status_code == 404


def test_names_are_listed_in_order_and_go(client: TestClient, first: str) -> None:
    for name in ("z.9", "z.1", "z.5"):
        put(client, name, first)
    page = client.get("/aliases?limit=2&after=z").json()
    assert ([a["name"] for a in page["data"]], page["has_more"]) == (["z.1", "z.5"], True)
    rest = client.get(f"/aliases?after={page['last_id']}").json()
    assert ([a["name"] for a in rest["data"]], rest["has_more"]) == (["z.9"], False)
    assert client.delete("/aliases/z.5").status_code == 204
    assert client.delete("/aliases/z.5").status_code == 404
    put(client, "z.5", first)
    assert client.get("/aliases/z.5").json()["num_moves"] == 1, "its history went with it"


@pytest.fixture
def refused(client: TestClient, ledger: Ledger, dataset_id: str, settings: Settings, tmp_path: Path) -> str:
    """A job that answers zero-shot and keeps an adapted classifier."""
    job = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES}).json()
    storage = make_storage(settings.resolved_storage_url, tmp_path / "cache")
    hand_in(ledger, storage, job["id"], tmp_path, base_model=settings.models["tiny"], outcome="inconclusive")
    return str(job["id"])


def test_what_answers_is_not_deleted(client: TestClient, refused: str) -> None:
    classifier_id = zero_shot(client, "left", "right")
    put(client, "hand", classifier_id)
    kept = client.delete(f"/classifiers/{classifier_id}")
    assert (kept.status_code, kept.json()["code"]) == (409, "resource_in_use")
    client.delete("/aliases/hand")
    assert client.delete(f"/classifiers/{classifier_id}").status_code == 204
    assert client.get(f"/classifiers/{classifier_id}").status_code == 404
    assert client.delete(f"/classifiers/{classifier_id}").status_code == 404

    before = client.get(f"/jobs/{refused}").json()
    assert client.delete(f"/classifiers/{before['classifier_id']}").status_code == 409
    assert client.delete(f"/classifiers/{before['adapted_classifier_id']}").status_code == 204
    after = client.get(f"/jobs/{refused}").json()
    assert (after["classifier_id"], after["adapted_classifier_id"]) == (before["classifier_id"], None)
    assert client.post(f"/jobs/{refused}/promote").json()["code"] == "not_promotable"


def test_a_new_name_may_be_given_by_many_at_once(client: TestClient, first: str, second: str) -> None:
    """Where two of them meet is placed exactly in tests/app/classifiers/test_aliases.py."""
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda n: put(client, "crowded", (first, second)[n % 2]), range(16)))
    body = client.get("/aliases/crowded").json()
    assert len(replies) == 16
    moves = [move["classifier_id"] for move in reversed(body["history"])]
    assert len(moves) == body["num_moves"]
    assert all(a != b for a, b in pairwise(moves)), "each move went somewhere else"
