"""Jobs, classifiers and /classify on the assembled application: what each wrong request is told."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from app.database import make_engine, make_sessionmaker
from tests.support.jobs import add_dataset
from tests.support.tiny import CLASSES, make_images

MISSING_JOB = "job_01k0c9v2ytq4v3m5p6r7s8t9wa"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module")
def models(base: str) -> dict[str, str]:
    return {"tiny": base, "absent": "ViT-B-16/openai"}


def told(response: Any) -> tuple[int, str, str | None]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert body["request_id"] == response.headers["x-request-id"]
    return response.status_code, body["code"], body["param"]


def _job(rest: str) -> str:
    return f'{{"dataset_id": "DS", "classes": ["a", "b"], {rest}}}'


JOB_BODIES: list[tuple[str, int, str, str | None]] = [
    ("{", 400, "malformed_json", None),
    ("[" * 100_000, 400, "malformed_json", None),
    ('{"seed": 1' + "0" * 5000 + "}", 400, "malformed_json", None),
    ('{"seed": 1, "seed": 2}', 400, "duplicate_key", None),
    ('{"seed": NaN}', 422, "invalid_number", None),
    ('{"seed": 1e999}', 422, "invalid_number", None),
    ("[]", 422, "invalid_type", None),
    ('{"classes": ["a", "b"]}', 422, "missing_field", "dataset_id"),
    ('{"dataset_id": "DS"}', 422, "missing_field", "classes"),
    (_job('"nonsense": 1'), 422, "unknown_field", "nonsense"),
    ('{"dataset_id": "DS", "classes": ["a"]}', 422, "too_few_classes", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "A "]}', 422, "duplicate_class", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\u0000"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\ud800"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\u001b"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", 1]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": ["a", null]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": ["a", ["b"]]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": "ab"}', 422, "invalid_type", "classes"),
    ('{"dataset_id": "DS", "classes": {"a": "b"}}', 422, "invalid_type", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", {"name": 1}]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": ["a", {"name": "b", "prompts": "c"}]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": ["a", {"name": "b", "prompts": ["c", 1]}]}', 422, "invalid_type", None),
    ('{"dataset_id": "DS", "classes": ["a", {"name": "b", "prompts": ["\\u0000"]}]}', 422, "invalid_class_name", None),
    ('{"dataset_id": "DS", "classes": ["a", ""]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\u200b"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\ufe0f"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "\\u3164"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "b\\nc"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "b\\u202ec"]}', 422, "invalid_class_name", "classes"),
    ('{"dataset_id": "DS", "classes": ["a", "' + "word " * 100 + '"]}', 422, "class_name_too_long", "classes"),
    ('{"dataset_id": "DS", "classes": [' + '"a", ' * 10_000 + '"a"]}', 422, "too_many_classes", "classes"),
    (_job('"seed": "3"'), 422, "invalid_type", "seed"),
    (_job('"seed": 3.0'), 422, "invalid_type", "seed"),
    (_job('"seed": true'), 422, "invalid_type", "seed"),
    (_job('"seed": 9223372036854775808'), 422, "out_of_range", "seed"),
    (_job('"templates": ["x"]'), 422, "template_missing_placeholder", "templates"),
    (_job('"templates": ["{0}"]'), 422, "template_invalid_placeholder", "templates"),
    (_job('"templates": ["{} {}"]'), 422, "template_invalid_placeholder", "templates"),
    (_job('"templates": []'), 422, "template_missing_placeholder", "templates"),
    (_job('"templates": ["\\u0007{}"]'), 422, "invalid_template", "templates"),
    (_job('"templates": ["\\ud800{}"]'), 422, "invalid_template", "templates"),
    (_job('"templates": ["{}", 1]'), 422, "invalid_type", None),
    (_job('"templates": "a {}"'), 422, "invalid_type", "templates"),
    (_job('"templates": [' + '"{}", ' * 200 + '"{}"]'), 422, "too_many_prompts", "templates"),
    (_job('"templates": ["' + "word " * 100 + '{}"]'), 422, "prompt_too_long", "templates"),
    (_job('"base_model": "../x"'), 422, "unknown_model", "base_model"),
    (_job('"promotion": "always"'), 422, "invalid_value", "promotion"),
    (_job('"promotion": true'), 422, "invalid_value", "promotion"),
    (_job('"promotion": null'), 422, "invalid_value", "promotion"),
    (_job('"base_model": "absent"'), 503, "weights_unavailable", None),
    ('{"dataset_id": "ds_nonsense", "classes": ["a", "b"]}', 404, "not_found", None),
    ('{"dataset_id": "ds_01k0c9v2ytq4v3m5p6r7s8t9wa", "classes": ["a", "b"]}', 404, "not_found", None),
    (_job('"hyperparameters": {"epochs": 0}'), 422, "out_of_range", "epochs"),
    (_job('"hyperparameters": {"epochs": 1000000000}'), 422, "out_of_range", "epochs"),
    (_job('"hyperparameters": {"epochs": 2.5}'), 422, "invalid_type", "epochs"),
    (_job('"hyperparameters": {"epochs": true}'), 422, "invalid_type", "epochs"),
    (_job('"hyperparameters": {"epochs": "3"}'), 422, "invalid_type", "epochs"),
    (_job('"hyperparameters": {"masking": 1}'), 422, "invalid_type", "masking"),
    (_job('"hyperparameters": {"rand_augment": "nonsense"}'), 422, "invalid_value", "rand_augment"),
    (_job('"hyperparameters": {"nonsense": 1}'), 422, "unknown_field", None),
    (_job('"hyperparameters": {"learning_rate_per_256": 0}'), 422, "out_of_range", "learning_rate_per_256"),
    (_job('"metadata": {"k": 1}'), 422, "invalid_type", "metadata.k"),
    (_job('"metadata": {"k": "\\ud800"}'), 422, "invalid_text", None),
    (_job('"metadata": {"\\ud800": "v"}'), 422, "invalid_text", None),
    (_job('"name": "a\\u0000b"'), 422, "invalid_text", None),
    (_job('"hyperparameters": {"epochs": 1' + "0" * 380 + "}"), 422, "out_of_range", "epochs"),
    (_job('"hyperparameters": {"learning_rate_per_256": -1' + "0" * 380 + "}"), 422, "out_of_range", None),
    (_job('"hyperparameters": {"rand_augment": "rand-n9-m99-mstd999"}'), 422, "invalid_value", "rand_augment"),
    (_job('"hyperparameters": {"ema_decay_init": 0.9, "ema_decay": 0.5}'), 422, "invalid_combination", None),
    (_job('"hyperparameters": {"mask_patch_size": 5}'), 422, "invalid_combination", "mask_patch_size"),
    (_job('"hyperparameters": {"batch_size": 500}'), 422, "invalid_combination", "batch_size"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "param"), JOB_BODIES)
def test_wrong_jobs_are_told_by_code(
    client: TestClient, dataset_id: str, *, body: str, status: int, code: str, param: str | None
) -> None:
    answer = client.post("/jobs", content=body.replace("DS", dataset_id), headers={"Content-Type": "application/json"})
    found = told(answer)
    assert found[:2] == (status, code), answer.text
    if param is not None:
        assert found[2] == param


@pytest.mark.parametrize(("batch_size", "status"), [(240, 202), (241, 422)])
def test_a_batch_must_fit_what_is_not_held_out(client: TestClient, batch_size: int, status: int) -> None:
    engine = make_engine(client.app.state.services.settings.resolved_database_url)  # type: ignore[attr-defined]
    dataset_id = add_dataset(make_sessionmaker(engine), tuple(f"{i:064}" for i in range(300)))
    engine.dispose()
    body = {"dataset_id": dataset_id, "classes": CLASSES, "hyperparameters": {"batch_size": batch_size}}
    answer = client.post("/jobs", json=body)
    assert answer.status_code == status, answer.text
    if status == 422:
        assert told(answer) == (422, "invalid_combination", "batch_size")
    else:
        client.post(f"/jobs/{answer.json()['id']}/cancel")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data"}, 400, "malformed_multipart"),
    ],
)
@pytest.mark.parametrize("path", ["/jobs", "/classify", "/classifiers"])
def test_bodies_of_other_kinds_are_refused(
    client: TestClient, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    if path == "/classifiers" and "multipart" in headers.get("Content-Type", ""):
        status, code = 415, "unsupported_media_type"
    assert told(client.post(path, content=b"a=b", headers=headers))[:2] == (status, code)


def test_what_was_refused_leaves_nothing_behind(client: TestClient, images: list[Path]) -> None:
    before = client.get("/datasets?limit=100").json()["data"]
    refused = client.post(
        "/jobs",
        data={"classes": "a\nb", "hyperparameters": '{"batch_size": 500}'},
        files=[("images", (p.name, p.read_bytes())) for p in images],
    )
    assert told(refused) == (422, "invalid_combination", "batch_size")
    assert client.get("/datasets?limit=100").json()["data"] == before
    assert client.get("/jobs?limit=100").status_code == 200


ODD_NAMES = ["{0.__class__}", "%s", "<script>alert(1)</script>", "=HYPERLINK(1)", "naïve", "猫"]


def test_odd_class_names_come_back_as_they_were_sent(client: TestClient, dataset_id: str) -> None:
    job = client.post("/jobs", json={"dataset_id": dataset_id, "classes": ODD_NAMES})
    assert job.status_code == 202, job.text
    assert [c["name"] for c in job.json()["classes"]] == ODD_NAMES
    assert job.json()["warnings"] == []
    client.post(f"/jobs/{job.json()['id']}/cancel")
    assert job.headers["content-type"] == "application/json"


def test_look_alike_class_names_are_accepted_with_a_warning(client: TestClient, dataset_id: str) -> None:
    classes = ["cop", "dog", "\u0441\u043e\u0440", {"name": "c\u043ew", "prompts": ["a cow"]}]
    expected = [
        {
            "code": "confusable_class_names",
            "message": "Classes 1 and 3 look the same and are written differently.",
            "param": "classes",
        },
        {
            "code": "mixed_script_class_names",
            "message": "Class 4 mixes Latin, Greek or Cyrillic letters within a word.",
            "param": "classes",
        },
    ]
    job = client.post("/jobs", json={"dataset_id": dataset_id, "classes": classes})
    classifier = client.post("/classifiers", json={"classes": classes})
    assert (job.status_code, classifier.status_code) == (202, 201)
    assert job.json()["warnings"] == classifier.json()["warnings"] == expected
    client.post(f"/jobs/{job.json()['id']}/cancel")
    assert client.get(f"/jobs/{job.json()['id']}").json()["warnings"] == expected
    assert client.get(f"/classifiers/{classifier.json()['id']}").json()["warnings"] == expected
    assert client.post("/classifiers", json={"classes": CLASSES}).json()["warnings"] == []


@pytest.mark.parametrize("separator", ["\x0b", "\x1c", "\x85", "\u2028"])
def test_a_class_list_of_lines_ends_lines_at_line_ends_alone(client: TestClient, separator: str) -> None:
    image = {"images": ("a.png", b"x")}
    refused = client.post("/classify", data={"classes": f"cat{separator}dog\nbird"}, files=image)
    assert told(refused) == (422, "invalid_class_name", "classes")
    accepted = client.post("/classify", data={"classes": "cat\r\n dog\t\r\n\r\nbird"}, files=image)
    assert accepted.status_code == 200, accepted.text


def test_a_class_list_that_is_not_utf8_is_refused(client: TestClient) -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="classes"\r\n\r\ncaf\xe9\ndog\r\n'
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nx\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert told(client.post("/classify", content=form, headers=headers))[:2] == (400, "invalid_encoding")


def test_a_class_list_of_more_than_a_megabyte_is_refused(client: TestClient, dataset_id: str) -> None:
    long = {"dataset_id": dataset_id, "classes": [f"{i:0200}" for i in range(6000)]}
    assert told(client.post("/jobs", json=long))[:2] == (413, "payload_too_large")
    form = {"classes": "\n".join(long["classes"])}
    assert told(client.post("/classify", data=form, files={"images": ("a.png", b"x")}))[0] == 413


def test_a_busy_database_is_said_to_be_so(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_args: object, **_options: object) -> None:
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    monkeypatch.setattr("app.classifiers.store.ClassifierStore.add_zero_shot", locked)
    answer = client.post("/classifiers", json={"classes": CLASSES})
    assert told(answer)[:2] == (503, "database_unavailable")
    assert answer.headers["Retry-After"] == "5"


def test_too_many_images_to_classify_are_refused(client: TestClient, images: list[Path]) -> None:
    files = [("images", (f"{i}.png", b"x")) for i in range(300)]
    assert told(client.post("/classify", data={"classes": "a\nb"}, files=files))[:2] == (413, "too_many_parts")
    many = [("images", (f"{i}.png", images[0].read_bytes())) for i in range(70)]
    results = client.post("/classify", data={"classes": "a\nb"}, files=many).json()["results"]
    assert [r["index"] for r in results] == list(range(70))
    assert {r["status"] for r in results} == {"ok"}


def test_json_must_be_utf8_and_not_endless(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    assert (
        told(client.post("/jobs", content='{"seed": 1}'.encode("utf-16"), headers=json_type))[1] == "invalid_encoding"
    )
    assert told(client.post("/jobs", content=b" " * 2_000_000, headers=json_type))[:2] == (413, "payload_too_large")


@pytest.mark.parametrize(
    "job_id", ["abc", "%00", "..%2f", "x" * 10_000, MISSING_JOB, "job_", "clf_01k0c9v2ytq4v3m5p6r7s8t9wa", "１"]
)
@pytest.mark.parametrize(
    ("verb", "path"), [("GET", ""), ("POST", "/cancel"), ("POST", "/resume"), ("POST", "/promote"), ("GET", "/events")]
)
def test_jobs_that_do_not_exist_look_alike(client: TestClient, job_id: str, verb: str, path: str) -> None:
    assert told(client.request(verb, f"/jobs/{job_id}{path}"))[:2] == (404, "not_found")


@pytest.mark.parametrize("cursor", ["abc", "ds_01k0c9v2ytq4v3m5p6r7s8t9wa", "%00", "１"])
@pytest.mark.parametrize("path", ["/jobs", "/classifiers"])
def test_forged_cursors_are_refused(client: TestClient, path: str, cursor: str) -> None:
    assert told(client.get(f"{path}?after={cursor}"))[:2] == (400, "invalid_cursor")


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=101", "limit=1e3", "limit=１０", "limit=5&limit=6"])
def test_limits_are_strict(client: TestClient, query: str) -> None:
    assert told(client.get(f"/jobs?{query}"))[0] == 422


def test_events_of_a_queued_job_and_cancelling_it(client: TestClient, dataset_id: str) -> None:
    job = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES, "seed": 1}).json()
    events = client.get(f"/jobs/{job['id']}/events").json()
    assert [e["type"] for e in events["data"]] == ["status"]
    assert client.get(f"/jobs/{job['id']}/events?after={events['last_id']}").json()["data"] == []
    bad = client.get(f"/jobs/{job['id']}/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "x"})
    assert told(bad)[1] == "invalid_cursor"
    assert client.post(f"/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert told(client.post(f"/jobs/{job['id']}/cancel"))[:2] == (409, "job_not_cancellable")
    assert client.post(f"/jobs/{job['id']}/resume").json()["status"] == "queued"
    assert told(client.delete(f"/datasets/{dataset_id}"))[:2] == (409, "resource_in_use")
    assert client.post(f"/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


def test_a_dataset_may_go_once_its_jobs_have_ended(client: TestClient, images: list[Path]) -> None:
    created = client.post("/datasets", files=[("images", (p.name, p.read_bytes())) for p in images[:3]]).json()
    job = client.post("/jobs", json={"dataset_id": created["id"], "classes": CLASSES}).json()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{created['id']}").status_code == 204
    assert client.get(f"/jobs/{job['id']}").json()["dataset_id"] is None
    assert told(client.post(f"/jobs/{job['id']}/resume"))[:2] == (409, "job_not_resumable")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({}, 422, "invalid_combination"),
        ({"classifier": "clf_x", "classes": '["a", "b"]'}, 422, "invalid_combination"),
        ({"classifier": "clf_x"}, 404, "not_found"),
        ({"classes": '["a"]'}, 422, "too_few_classes"),
        ({"classes": '["a", "b"]', "top_k": "0"}, 422, "out_of_range"),
        ({"classes": '["a", "b"]', "top_k": "x"}, 400, "malformed_json"),
        ({"classes": '["a", "b"]', "top_k": "2.0"}, 422, "invalid_type"),
        ({"classes": '["a", "b"]', "threshold": "NaN"}, 422, "invalid_number"),
        ({"classes": '["a", "b"]', "threshold": "2"}, 422, "out_of_range"),
        ({"classes": '["a", "b"]', "compare": "x"}, 422, "invalid_value"),
        ({"classes": '["a", "b"]', "nonsense": "1"}, 422, "unknown_field"),
    ],
)
def test_wrong_classifications_are_told_by_code(
    client: TestClient, images: list[Path], fields: dict[str, str], status: int, code: str
) -> None:
    answer = client.post("/classify", data=fields, files={"images": ("a.png", images[0].read_bytes())})
    assert told(answer)[:2] == (status, code), answer.text


def test_no_image_is_an_error(client: TestClient) -> None:
    body = {"classes": CLASSES, "images": []}
    assert told(client.post("/classify", json=body))[:2] == (422, "out_of_range")
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    form = b'--x\r\nContent-Disposition: form-data; name="classes"\r\n\r\n["a","b"]\r\n--x--\r\n'
    assert told(client.post("/classify", content=form, headers=boundary))[:2] == (422, "missing_file")


def test_json_and_form_answer_alike(client: TestClient, images: list[Path]) -> None:
    content = images[0].read_bytes()
    form = client.post("/classify", data={"classes": json.dumps(CLASSES)}, files={"images": ("a.png", content)}).json()
    body = {"classes": CLASSES, "images": [{"content": base64.b64encode(content).decode(), "filename": "a.png"}]}
    assert client.post("/classify", json=body).json()["results"] == form["results"]
    body["images"] = [{"content": "***"}]
    assert told(client.post("/classify", json=body))[:2] == (422, "invalid_encoding")


def test_a_bad_image_fails_alone(client: TestClient, images: list[Path]) -> None:
    alone = client.post(
        "/classify", data={"classes": json.dumps(CLASSES)}, files={"images": ("a.png", images[0].read_bytes())}
    ).json()["results"][0]
    files = [
        ("images", ("no.txt", b"hello")),
        ("images", ("a.png", images[0].read_bytes())),
        ("images", ("empty.png", b"")),
    ]
    results = client.post("/classify", data={"classes": json.dumps(CLASSES), "threshold": "1"}, files=files).json()[
        "results"
    ]
    assert [r["status"] for r in results] == ["error", "ok", "error"]
    assert results[0]["error"]["code"] == "unsupported_image_format"
    scores = {p["label"]: p["score"] for p in alone["predictions"]}
    assert {p["label"]: p["score"] for p in results[1]["predictions"]} == pytest.approx(scores)
    assert results[1]["unknown"] is True


def test_the_openapi_document_knows_every_body(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path in ("/jobs", "/classify", "/classifiers"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert schemas[name]["properties"]["classes"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
