"""Datasets over HTTP: the whole way, and every refusal of transport and upload."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker
from starlette.types import Message

from app import errors
from app.config import Settings
from app.database import now_utc
from app.ids import new_id
from app.ingest.decoding import DecoderPool
from app.ingest.ingest import IngestLimits, Ingestor
from app.middleware import RequestIdMiddleware
from app.routes import datasets
from app.services.datasets import DatasetService
from app.services.idempotency import IdempotencyService
from app.storage import LocalBlobStore
from app.tables import Job
from tests.support import archives as make
from tests.support.images import sound

A, B, C = (sound(n) for n in range(3))
FORM = "multipart/form-data; boundary=B"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", max_upload_bytes=500_000, max_images=20)


@pytest.fixture
def client(settings: Settings, sessions: sessionmaker[Session], decoder: DecoderPool) -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(datasets.router)
    app.add_middleware(RequestIdMiddleware)
    errors.install(app)
    storage = LocalBlobStore(Path(settings.resolved_storage_url))
    ingestor = Ingestor(storage=storage, decoder=decoder, limits=IngestLimits.from_settings(settings))
    service = DatasetService(sessions=sessions, ingestor=ingestor)
    app.state.services = SimpleNamespace(
        settings=settings, datasets=service, idempotency=IdempotencyService(sessions=sessions)
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def files(*contents: bytes, field: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{n}.png", content)) for n, content in enumerate(contents)]


def post(client: TestClient, *contents: bytes, **data: Any) -> dict[str, Any]:
    answer = client.post("/datasets", files=files(*contents), data=data)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stored(settings: Settings) -> list[Path]:
    """Every file but the database's."""
    return [p for p in settings.data_dir.rglob("*") if p.is_file() and not p.name.startswith("must.db")]


def test_archive_in_report_out(client: TestClient, settings: Settings) -> None:
    archive = make.zipped({"x/a.png": A, "b.png": B, "again.png": A, "README.txt": b"hi", "Thumbs.db": b""})
    answer = client.post("/datasets", files={"archive": ("pictures.zip", archive)}, data={"name": "Shelf"})
    assert answer.status_code == 201
    made = answer.json()
    expected = {
        "object": "dataset",
        "name": "Shelf",
        "num_images": 2,
        "num_added": 2,
        "num_duplicates": 1,
        "num_ignored": 1,
    }
    assert expected.items() <= made.items()
    assert [file["code"] for file in made["rejected"]] == ["unsupported_image_format"]
    assert made["created_at"].endswith("Z")
    read = client.get(f"/datasets/{made['id']}").json()
    assert read == {key: value for key, value in made.items() if key not in ("rejected", "num_added")} | {
        "num_rejected": 1
    }
    images = client.get(f"/datasets/{made['id']}/images").json()
    assert [image["filename"] for image in images["data"]] == ["x/a.png", "b.png"]
    assert client.get(f"/datasets/{made['id']}/rejected").json()["data"][0]["filename"] == "README.txt"
    assert len(stored(settings)) == 2


def test_append_stores_once(client: TestClient, settings: Settings) -> None:
    made = post(client, A, B)
    assert made["name"] == "0.png"
    answer = client.post(f"/datasets/{made['id']}/images", files=files(B, C, b"text"))
    assert answer.status_code == 200
    assert (answer.json()["num_added"], answer.json()["num_images"], answer.json()["num_duplicates"]) == (1, 3, 1)
    again = client.post(f"/datasets/{made['id']}/images", files=files(A, A)).json()
    assert (again["num_added"], again["num_images"], again["num_duplicates"], again["num_rejected"]) == (0, 3, 3, 1)
    assert again["total_bytes"] == len(A) + len(B) + len(C)
    assert len(stored(settings)) == 3
    assert client.post(f"/datasets/{new_id('ds')}/images", files=files(A)).status_code == 404


def test_paging(client: TestClient) -> None:
    ids = [post(client, sound(2 * n), sound(2 * n + 1))["id"] for n in range(3)][::-1]
    first = client.get("/datasets", params={"limit": 2}).json()
    assert ([d["id"] for d in first["data"]], first["has_more"]) == (ids[:2], True)
    assert (first["first_id"], first["last_id"]) == (ids[0], ids[1])
    rest = client.get("/datasets", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([d["id"] for d in rest["data"]], rest["has_more"]) == (ids[2:], False)
    images = f"/datasets/{ids[0]}/images"
    one = client.get(images, params={"limit": 1}).json()
    two = client.get(images, params={"limit": 1, "after": one["last_id"]}).json()
    assert (one["has_more"], two["has_more"]) == (True, False)
    assert one["data"] != two["data"]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("limit=0", 422, "out_of_range"),
        ("limit=-1", 422, "out_of_range"),
        ("limit=101", 422, "out_of_range"),
        ("limit=1e3", 422, "invalid_type"),
        ("limit=5.0", 422, "invalid_type"),
        ("limit=%EF%BC%92%EF%BC%90", 422, "invalid_type"),
        ("limit=" + "9" * 5000, 422, "out_of_range"),
        ("limit=5&limit=6", 422, "repeated_parameter"),
        ("after=abc", 400, "invalid_cursor"),
        ("after=ds_" + "z" * 26, 400, "invalid_cursor"),
        ("after=" + "a" * 81, 422, "out_of_range"),
    ],
)
def test_list_parameters(client: TestClient, query: str, status: int, code: str) -> None:
    answer = client.get(f"/datasets?{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_cursors_of_another_list(client: TestClient) -> None:
    made = post(client, A, B)
    for path in ("images", "rejected"):
        answer = client.get(f"/datasets/{made['id']}/{path}", params={"after": "-1"})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("bad", ["abc", "%00", "..%2fx", "ds_" + "0" * 26, "job_" + "0" * 26, "x" * 10_000])
@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_unknown_ids_all_look_the_same(client: TestClient, verb: str, bad: str) -> None:
    answer = client.request(verb, f"/datasets/{bad}")
    expected = client.request(verb, f"/datasets/{new_id('ds')}").json()
    body = answer.json()
    assert answer.status_code == 404
    assert body | {"instance": 0, "request_id": 0} == expected | {"instance": 0, "request_id": 0}


def test_delete(client: TestClient, sessions: sessionmaker[Session]) -> None:
    made, other = post(client, A, B), post(client, A, C)
    assert client.delete(f"/datasets/{made['id']}").status_code == 204
    assert client.get(f"/datasets/{made['id']}").status_code == 404
    assert client.get(f"/datasets/{other['id']}/images").json()["data"]
    add_job(sessions, other["id"])
    answer = client.delete(f"/datasets/{other['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "resource_in_use")
    assert client.get(f"/datasets/{other['id']}").status_code == 200


def add_job(sessions: sessionmaker[Session], dataset_id: str) -> None:
    values: dict[str, Any] = {
        "id": new_id("job"), "status": "queued", "dataset_id": dataset_id, "base_model": "m", "seed": 1,
        "created_at": now_utc(),
        "user_metadata": {}, "classes": [], "templates": [], "hyperparameters": {}, "attempt": 0, "max_attempts": 3,
        "attempts_forgiven": 0, "available_at": now_utc(), "num_notified": 0,
    }  # fmt: skip
    with sessions.begin() as session:
        session.execute(insert(Job).values(**values))


def part(content: bytes, headers: Sequence[str] = ('form-data; name="images"; filename="a.png"',)) -> bytes:
    lines = "".join(f"Content-Disposition: {header}\r\n" for header in headers)
    return b"--B\r\n" + lines.encode() + b"\r\n" + content + b"\r\n"


END = b"--B--\r\n"
BODIES: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no boundary": (part(A) + END, {"content-type": "multipart/form-data"}, 400, "malformed_multipart"),
    "long boundary": (b"", {"content-type": "multipart/form-data; boundary=" + "b" * 400}, 400, "malformed_multipart"),
    "empty": (b"", {}, 400, "malformed_multipart"),
    "cut off": (part(A), {}, 400, "malformed_multipart"),
    "cut off in a part": (part(A)[:60], {}, 400, "malformed_multipart"),
    "other boundary": ((part(A) + END).replace(b"--B", b"--C"), {}, 400, "malformed_multipart"),
    "no name": (part(A, ["form-data"]) + END, {}, 400, "malformed_multipart"),
    "no disposition": (b"--B\r\n\r\nx\r\n" + END, {}, 400, "malformed_multipart"),
    "endless headers": (part(A, ["x"] * 50) + END, {}, 400, "malformed_multipart"),
    "endless header": (part(A, ["x" * 100_000]) + END, {}, 400, "malformed_multipart"),
    "base64 part": (
        part(A).replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1) + END,
        {}, 400, "malformed_multipart",
    ),
    "urlencoded": (b"name=x", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    "json": (b"{}", {"content-type": "application/json"}, 415, "unsupported_media_type"),
    "no content type": (b"{}", {"content-type": ""}, 415, "unsupported_media_type"),
    "gzipped": (make.gzipped(part(A) + END), {"content-encoding": "gzip"}, 415, "unsupported_content_encoding"),
    "no file": (END, {}, 422, "missing_file"),
    "file input left empty": (part(b"", ['form-data; name="images"; filename=""']) + END, {}, 422, "missing_file"),
    "a field for a file": (part(A, ['form-data; name="name"']) + END, {}, 400, "invalid_encoding"),
    "zero bytes": (part(b"") + END, {}, 422, "empty_file"),
    "unknown field": (part(A) + part(b"x", ['form-data; name="nmae"']) + END, {}, 422, "unknown_field"),
    "unknown file field": (part(A, ['form-data; name="x"; filename="a"']) + END, {}, 422, "unknown_field"),
    "repeated field": (part(b"x", ['form-data; name="name"']) * 2 + part(A) + END, {}, 422, "repeated_parameter"),
    "name too long": (part(b"x" * 201, ['form-data; name="name"']) + part(A) + END, {}, 422, "out_of_range"),
    "name of spaces": (part(b" ", ['form-data; name="name"']) + part(A) + END, {}, 422, "out_of_range"),
    "too many files": (part(A) * 21 + END, {}, 413, "too_many_parts"),
    "too many fields": (
        b"".join(part(b"", [f'form-data; name="{n}"']) for n in range(33)) + END, {}, 413, "too_many_parts",
    ),
    "too long": (part(b"x" * 500_000) + END, {}, 413, "payload_too_large"),
    "negative length": (b"x", {"content-length": "-1"}, 400, "malformed_request"),
    "endless length": (b"x", {"content-length": "9" * 5000}, 413, "payload_too_large"),
    "text": (part(b"hello") + END, {}, 422, "no_usable_images"),
    "rar": (part(b"Rar!\x1a\x07\x00") + END, {}, 415, "archive_unsupported_format"),
    "slip": (part(make.zipped({"../x.png": A})) + END, {}, 422, "archive_unsafe_path"),
    "bomb": (part(make.zipped({"x": b"\0" * 2_000_000})) + END, {}, 422, "archive_too_large_uncompressed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_refused_uploads(client: TestClient, settings: Settings, name: str) -> None:
    body, headers, status, code = BODIES[name]
    answer = client.post("/datasets", content=body, headers={"content-type": FORM, **headers})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert stored(settings) == []
    assert client.get("/datasets").json()["data"] == []


def test_streamed_body_over_the_limit(client: TestClient, settings: Settings) -> None:
    """No Content-Length: what counts is what arrives."""

    def chunks() -> Iterator[bytes]:
        yield part(b"")[:-2]
        for _ in range(10):
            yield b"x" * 100_000

    answer = client.post("/datasets", content=chunks(), headers={"content-type": FORM})
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert stored(settings) == []


def test_disconnect_half_way_leaves_nothing(client: TestClient, settings: Settings) -> None:
    messages = [{"type": "http.request", "body": part(A), "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/datasets", "query_string": b"", "http_version": "1.1",
        "headers": [(b"content-type", FORM.encode())],
    }  # fmt: skip
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    assert sent[0]["status"] == 400
    assert stored(settings) == []
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("a\x1b[2J.png", "a[2J.png"),
        ("\u202egnp.a", "gnp.a"),
        ("a" * 4096, "a" * 255),
    ],
)
def test_any_filename_is_accepted_and_cleaned(client: TestClient, filename: str, shown: str) -> None:
    body = part(A, [f'form-data; name="images"; filename="{filename}"']) + END
    made = client.post("/datasets", content=body, headers={"content-type": FORM})
    assert made.status_code == 201
    image = client.get(f"/datasets/{made.json()['id']}/images").json()["data"][0]
    assert image["filename"] == shown


@pytest.mark.parametrize("field", ["archive", "images", "images[]", "files", "file"])
def test_usual_field_names_are_taken(client: TestClient, field: str) -> None:
    assert client.post("/datasets", files=files(A, B, field=field)).status_code == 201


def test_errors_say_what_to_do_and_nothing_else(client: TestClient) -> None:
    answer = client.get("/datasets?limit=<script>", headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    body = answer.json()
    assert set(body) == {
        "type", "title", "status", "detail", "instance", "code", "param", "request_id", "errors",
    }  # fmt: skip
    assert (body["request_id"], body["param"], body["status"]) == ("mine-1", "limit", 422)
    assert "script" not in answer.text
    forged = client.get("/nowhere", headers={"X-Request-Id": "a\x1bb"})
    assert (forged.status_code, forged.json()["code"]) == (404, "not_found")
    assert forged.headers["x-request-id"] == forged.json()["request_id"] != "a\x1bb"
    wrong = client.put("/datasets")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"] or "POST" in wrong.headers["allow"]
