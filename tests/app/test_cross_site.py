"""Whose pages may have a browser change something."""

import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app.cross_site import CrossSiteMiddleware


def changed(request: object) -> PlainTextResponse:
    return PlainTextResponse("changed")


ROUTES = [Route("/", changed, methods=["GET", "POST", "DELETE"])]


@pytest.fixture(params=["guarded", "unguarded"])
def client(request: pytest.FixtureRequest) -> TestClient:
    """Unguarded is the control: there, everything passes."""
    app = Starlette(routes=ROUTES)
    if request.param == "guarded":
        app.add_middleware(CrossSiteMiddleware)
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "anything"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:8000.elsewhere.example"},
    ],
)
def test_other_sites_pages_change_nothing(
    client: TestClient, request: pytest.FixtureRequest, headers: dict[str, str]
) -> None:
    guarded = request.node.callspec.params["client"] == "guarded"
    for method in ("POST", "DELETE"):
        reply = client.request(method, "/", headers=headers)
        assert reply.status_code == (403 if guarded else 200)
        assert not guarded or reply.json()["code"] == "cross_site_request"
    assert client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8000"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_own_pages_people_and_programs_do(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/", headers=headers).status_code == 200


def test_the_service_is_guarded() -> None:
    from app.config import Settings  # noqa: PLC0415 - loads torch
    from app.main import create_app  # noqa: PLC0415

    client = TestClient(create_app(Settings()), base_url="http://127.0.0.1:8000")  # not started: nothing is reached
    refused = client.post("/jobs", headers={"Sec-Fetch-Site": "cross-site"})
    assert (refused.status_code, refused.json()["code"]) == (403, "cross_site_request")
    assert refused.headers["X-Request-Id"] == refused.json()["request_id"]
