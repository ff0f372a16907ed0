"""One form for every error, with the right status and nothing that was not meant to be said."""

from typing import Annotated

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import Field
from structlog.contextvars import get_contextvars

from app import errors, exceptions
from app.middleware import RequestIdMiddleware
from app.schemas.common import WireModel
from app.storage import BlobCorrupt, BlobMissing


class Body(WireModel):
    epochs: Annotated[int, Field(ge=1, le=100, strict=True)]
    lr: float = 0.1
    name: Annotated[str, Field(max_length=5)] = "x"


RAISED: dict[str, tuple[Exception, int, str]] = {
    "malformed": (exceptions.MalformedRequest("malformed_json", "x"), 400, "malformed_json"),
    "missing": (exceptions.NotFound(), 404, "not_found"),
    "conflict": (exceptions.Conflict("resource_in_use", "x"), 409, "resource_in_use"),
    "large": (exceptions.PayloadTooLarge("payload_too_large", "x"), 413, "payload_too_large"),
    "media": (exceptions.UnsupportedMedia("unsupported_media_type", "x"), 415, "unsupported_media_type"),
    "invalid": (exceptions.InvalidInput("too_few_classes", "x", param="classes"), 422, "too_few_classes"),
    "unavailable": (exceptions.Unavailable("overloaded", "x", retry_after_s=7), 503, "overloaded"),
    "blob": (BlobCorrupt(), 503, "artifact_corrupt"),
    "no blob": (BlobMissing(), 503, "artifact_missing"),
    "http": (HTTPException(429), 429, "too_many_requests"),
    "bug": (RuntimeError("secret /srv/path"), 500, "internal_error"),
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    errors.install(app)
    app.add_middleware(RequestIdMiddleware)

    @app.get("/raise/{name}")
    def fail(name: str) -> None:
        raise RAISED[name][0]

    @app.post("/body")
    def take(body: Body) -> dict[str, str]:
        return {"request_id": get_contextvars()["request_id"]}

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("name", RAISED)
def test_status_and_code(client: TestClient, name: str) -> None:
    error, status, code = RAISED[name]
    answer = client.get(f"/raise/{name}")
    body = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == body["request_id"]
    assert answer.headers.get("retry-after") == ("7" if name == "unavailable" else None)
    assert body["param"] == getattr(error, "param", None)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ('{"epochs": 0}', 422, "out_of_range", "epochs"),
        ('{"epochs": 101}', 422, "out_of_range", "epochs"),
        ('{"epochs": "3"}', 422, "invalid_type", "epochs"),
        ('{"epochs": true}', 422, "invalid_type", "epochs"),
        ('{"epochs": 3.0}', 422, "invalid_type", "epochs"),
        ('{"epochs": null}', 422, "invalid_type", "epochs"),
        ('{"epochs": 3, "lr": NaN}', 422, "invalid_number", "lr"),
        ('{"epochs": 3, "lr": 1e999}', 422, "invalid_number", "lr"),
        ('{"epochs": 3, "name": "123456"}', 422, "out_of_range", "name"),
        ('{"epochs": 3, "epoch": 3}', 422, "unknown_field", "epoch"),
        ('{"epochs": 3, "<script>": 3}', 422, "unknown_field", None),
        ("{}", 422, "missing_field", "epochs"),
        ("[]", 422, "invalid_type", None),
        ("{", 400, "malformed_json", None),
    ],
)
def test_validation(client: TestClient, body: str, status: int, code: str, param: str | None) -> None:
    answer = client.post("/body", content=body, headers={"content-type": "application/json"})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    if param is not None or code == "unknown_field":
        assert problem["param"] == param
    assert "script" not in answer.text


def test_request_id_reaches_the_logs(client: TestClient) -> None:
    answer = client.post("/body", json={"epochs": 3}, headers={"x-request-id": "abc"})
    assert answer.json() == {"request_id": "abc"}
    assert get_contextvars() == {}
