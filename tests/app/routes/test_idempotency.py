"""``Idempotency-Key`` on each creating operation of the assembled application."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlalchemy.exc import OperationalError

from app.idempotency.messages import KeyedRequest
from app.idempotency.store import IdempotencyStore
from app.ids import new_id
from app.jobs.store import JobStore
from tests.support.tiny import CLASSES, make_images

Post = Callable[..., Response]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="module")
def target(client: TestClient, images: list[Path]) -> str:
    """A dataset to append to."""
    created = client.post("/datasets", files=files(images[:2]))
    return str(created.json()["id"])


def files(paths: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (p.name, p.read_bytes())) for p in paths]


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": new_id("key")}


OPERATIONS = ["dataset", "images", "job", "job_form", "classifier"]


@pytest.fixture
def post(client: TestClient, images: list[Path], dataset_id: str, target: str) -> Post:
    """Does one of the operations; ``other`` for one that differs a little."""

    def do(operation: str, headers: dict[str, str], *, other: bool = False) -> Response:
        some = images[:3] if other else images[1:4]
        classes = [*CLASSES, "other"] if other else CLASSES
        if operation == "dataset":
            return client.post("/datasets", data={"name": "a"}, files=files(some), headers=headers)
        if operation == "images":
            return client.post(f"/datasets/{target}/images", files=files(some), headers=headers)
        if operation == "job":
            return client.post("/jobs", json={"dataset_id": dataset_id, "classes": classes}, headers=headers)
        if operation == "job_form":
            return client.post("/jobs", data={"classes": json.dumps(classes)}, files=files(images), headers=headers)
        return client.post("/classifiers", json={"classes": classes}, headers=headers)

    return do


def everything(client: TestClient) -> list[list[str]]:
    """Ids of all that there is."""
    return [
        [each["id"] for each in client.get(path, params={"limit": 100}).json()["data"]]
        for path in ("/datasets", "/jobs", "/classifiers")
    ]


def code(answer: Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sent_again_it_is_answered_again_and_not_done_again(client: TestClient, post: Post, operation: str) -> None:
    key = new_key()
    first = post(operation, key)
    assert first.status_code in {200, 201, 202}, first.text
    assert "Idempotency-Replayed" not in first.headers
    before = everything(client)
    again = post(operation, key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    for name in ("Location", "Retry-After", "Content-Type"):
        assert again.headers.get(name) == first.headers.get(name)
    assert everything(client) == before
    assert code(post(operation, key, other=True)) == (422, "idempotency_key_reused")
    assert everything(client) == before


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each != "images"])
def test_without_a_key_each_request_is_one_of_its_own(client: TestClient, post: Post, operation: str) -> None:
    ids = [post(operation, {}).json()["id"] for _ in range(2)]
    assert ids[0] != ids[1]
    assert set(ids) <= {each for kind in everything(client) for each in kind}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_while_the_first_is_at_work_the_second_is_told_so(
    client: TestClient, post: Post, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    claim = IdempotencyStore.claim

    def claim_after_another(store: IdempotencyStore, request: KeyedRequest, token: str, lock: timedelta) -> Any:
        claim(store, request, "another's", lock)
        return claim(store, request, token, lock)

    monkeypatch.setattr(IdempotencyStore, "claim", claim_after_another)
    before = everything(client)
    answer = post(operation, new_key())
    assert code(answer) == (409, "idempotency_in_flight")
    assert int(answer.headers["Retry-After"]) > 0
    assert everything(client) == before


def test_a_request_that_was_refused_frees_its_key(client: TestClient, dataset_id: str) -> None:
    key = new_key()
    refused = [
        client.post("/jobs", json={"dataset_id": new_id("ds"), "classes": CLASSES}, headers=key),
        client.post("/jobs", json={"dataset_id": dataset_id, "classes": ["a", "a"]}, headers=key),
        client.post("/jobs", json={"dataset_id": dataset_id}, headers=key),
    ]
    assert [answer.status_code for answer in refused] == [404, 422, 422]
    accepted = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES}, headers=key)
    assert accepted.status_code == 202, accepted.text
    assert "Idempotency-Replayed" not in accepted.headers


def test_a_key_used_for_another_operation_or_object_is_refused(
    client: TestClient, post: Post, images: list[Path], dataset_id: str
) -> None:
    key = new_key()
    assert post("images", key).status_code == 200
    elsewhere = client.post(f"/datasets/{dataset_id}/images", files=files(images[1:4]), headers=key)
    assert code(elsewhere) == (422, "idempotency_key_reused")
    assert code(post("classifier", key)) == (422, "idempotency_key_reused")


def form(boundary: str, *parts: tuple[str, str | None, bytes]) -> dict[str, Any]:
    """A request with a form, written out."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return {
        "content": body + f"--{boundary}--\r\n".encode(),
        "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    }


def test_of_a_form_its_parts_count_and_not_its_boundary(client: TestClient, images: list[Path]) -> None:
    one, two = (path.read_bytes() for path in images[:2])
    parts = [("name", None, b"a"), ("images", "1.png", one), ("images", "2.png", two)]
    key = new_key()

    def send(boundary: str, *parts: tuple[str, str | None, bytes]) -> Response:
        request = form(boundary, *parts)
        return client.post("/datasets", content=request["content"], headers=request["headers"] | key)

    first = send("A", *parts)
    assert first.status_code == 201, first.text
    assert send("another", *parts).content == first.content
    for other in (
        [("name", None, b"b"), *parts[1:]],
        [parts[0], ("images", "3.png", one), parts[2]],
        [parts[0], ("images[]", "1.png", one), parts[2]],
        [parts[0], parts[2], parts[1]],
        [parts[0], ("images", "1.png", one + b"\0"), parts[2]],
        parts[1:],
    ):
        assert code(send("A", *other)) == (422, "idempotency_key_reused")


def test_nothing_is_hashed_without_a_key(client: TestClient, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("app.routes.idempotency.RequestDigest", refuse)
    for operation in OPERATIONS:
        assert post(operation, {}).status_code < 300
        assert post(operation, new_key()).status_code == 500, "the patch is where it matters"


@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 256, "caf\xe9", "tab\t"])
@pytest.mark.parametrize("operation", ["dataset", "job", "classifier"])
def test_a_key_is_visible_ascii_and_short(client: TestClient, post: Post, key: str, operation: str) -> None:
    answer = post(operation, {"Idempotency-Key": key.encode("latin-1")})
    assert code(answer) == (400, "invalid_idempotency_key")
    assert answer.json()["param"] == "idempotency_key"


def test_two_keys_are_none(client: TestClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = client.post("/classifiers", json={"classes": CLASSES}, headers=headers)
    assert code(answer) == (400, "invalid_idempotency_key")


def test_the_longest_and_oddest_keys_are_taken(post: Post) -> None:
    for key in ("~" * 255, "".join(map(chr, range(0x21, 0x7F)))):
        assert post("classifier", {"Idempotency-Key": key}).status_code == 201
        assert post("classifier", {"Idempotency-Key": key}).headers["Idempotency-Replayed"] == "true"


def test_the_openapi_document_tells_of_the_header_where_something_is_made(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    found = {
        f"{verb.upper()} {path}"
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
        for parameter in operation.get("parameters", ())
        if (parameter["in"], parameter["name"]) == ("header", "Idempotency-Key")
    }
    made = {"POST /datasets", "POST /datasets/{dataset_id}/images", "POST /jobs", "POST /classifiers"}
    assert found == {*made, "POST /aliases/{name}/rollback"}, "what would be done twice"


def test_a_form_of_which_the_job_is_refused_leaves_no_dataset(client: TestClient, images: list[Path]) -> None:
    before = everything(client)
    fields = {"classes": json.dumps(CLASSES), "hyperparameters": '{"batch_size": 500}'}
    for headers in ({}, new_key()):
        answer = client.post("/jobs", data=fields, files=files(images), headers=headers)
        assert code(answer) == (422, "invalid_combination")
    assert everything(client) == before


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "noted"}], ids=["plain", "keyed"])
def test_a_committed_job_is_accepted_whatever_fails_afterwards(
    client: TestClient, dataset_id: str, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """An error would have its user send it again."""

    def gone(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the database is gone"))

    monkeypatch.setattr(JobStore, "mark_notified", gone)
    answer = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES}, headers=headers)
    assert answer.status_code == 202, answer.text
    assert client.get(answer.headers["Location"]).json()["status"] == "queued"
