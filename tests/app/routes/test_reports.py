"""Reports, their pictures and audits on the assembled application; the worker's part is played by the test."""

import hashlib
import html
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.config import Settings
from app.jobs.ledger import Ledger
from app.jobs.messages import EventType, Report
from app.web.pages import CONTENT_SECURITY_POLICY
from must_core.report import make_report
from tests.support.images import sound
from tests.support.jobs import told_verdict
from tests.support.reports import publish
from tests.support.tiny import CLASSES
from worker.trainer import reported

NUM_IMAGES = 24
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ODD_FILE = "a\"><script>alert(1)</script>'.png"
ODD_CLASSES = ["<script>alert(2)</script>", '"><img src=x onerror=alert(3)>', "blue & {{ 7 * 7 }}"]


def contents(seed: int) -> list[bytes]:
    """JPEGs with a comment, larger than their thumbnails."""
    return [sound(seed + i, "JPEG", (200, 100), comment=b"taken at home") for i in range(NUM_IMAGES)]


def submit(client: TestClient, *, seed: int = 0, classes: list[str] = CLASSES, name: str = "shapes") -> dict[str, Any]:
    files = [("images", (f"{i}.jpg" if i else ODD_FILE, content)) for i, content in enumerate(contents(seed))]
    submitted = client.post("/jobs", data={"classes": json.dumps(classes), "name": name}, files=files)
    assert submitted.status_code == 202, submitted.text
    job: dict[str, Any] = submitted.json()
    return job


def body() -> Mapping[str, Any]:
    """What a trainer tells: half of the answers changed from the first class to the second, two scores apart."""
    before_NK = torch.tensor([[3.0, 1.0, 0.0]]).repeat(NUM_IMAGES, 1)
    after_NK = before_NK.clone()
    after_NK[::2] = torch.tensor([0.0, 2.0, 0.0])
    after_NK[1, 1] = 2.9
    held_out_N = torch.zeros(NUM_IMAGES, dtype=torch.bool)
    return asdict(reported(make_report(before_NK, after_NK, torch.arange(NUM_IMAGES), held_out_N, seed=0)))


@pytest.fixture(scope="module")
def job(client: TestClient, ledger: Ledger) -> dict[str, Any]:
    """One that has a report."""
    job = submit(client)
    publish(ledger, job["id"], body())
    return job


def told(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["code"]


def test_a_report_names_classes_and_files(client: TestClient, job: dict[str, Any]) -> None:
    answer = client.get(f"/jobs/{job['id']}/report")
    assert answer.status_code == 200, answer.text
    assert answer.headers["vary"] == "Accept"
    report = answer.json()
    assert (report["object"], report["job_id"], report["name"]) == ("job_report", job["id"], "shapes")
    assert report["verdict"] == told_verdict("adapted")
    assert (report["num_images"], report["num_held_out"], report["num_changed"]) == (NUM_IMAGES, 0, 12)
    assert report["curves"] == [
        {"metric": "loss", "steps": [10, 20, 30], "values": [1 / 10, 1 / 20, 1 / 30]},
        {"metric": "fairness", "steps": [10, 20, 30], "values": [0.5, 0.5, 0.5]},
    ]
    assert [(c["label"], c["answers_zero_shot"], c["answers_adapted"]) for c in report["classes"]] == [
        ("red", 24, 12), ("green", 0, 12), ("blue", 0, 0),
    ]  # fmt: skip
    assert [image["position"] for image in report["changed"]] == list(range(0, 24, 2))
    assert report["uncertain"][0]["position"] == 1
    for image in report["changed"]:
        assert (image["zero_shot"]["label"], image["adapted"]["label"]) == ("red", "green")
        assert image["file"]["id"] == hashlib.sha256(contents(0)[image["position"]]).hexdigest()
    assert report["changed"][1]["file"]["filename"] == "2.jpg"
    assert (report["audit"]["num_disagreed"], report["audit"]["num_agreed"]) == (12, 12)
    assert {image["position"] for image in report["audit"]["images"]} == set(range(NUM_IMAGES))
    assert set(report["audit"]["images"][0]) == {"position", "file"}, "labels are not led by answers"


def test_a_thumbnail_is_small_and_has_nothing_of_the_file_but_its_pixels(
    client: TestClient, job: dict[str, Any]
) -> None:
    file = client.get(f"/jobs/{job['id']}/report").json()["changed"][0]["file"]
    answer = client.get(file["thumbnail"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (128, 64))
    assert b"taken at home" in contents(0)[0]
    assert b"taken at home" not in answer.content


@pytest.mark.parametrize(
    "path",
    [
        "/datasets/ds_01k0c9v2ytq4v3m5p6r7s8t9wa/images/{known}/thumbnail",
        "/datasets/{dataset}/images/" + "0" * 64 + "/thumbnail",
        "/datasets/{dataset}/images/%00/thumbnail",
        "/datasets/x/images/{known}/thumbnail",
    ],
)
def test_images_that_do_not_exist_look_alike(client: TestClient, job: dict[str, Any], path: str) -> None:
    known = hashlib.sha256(contents(0)[0]).hexdigest()
    assert told(client.get(path.format(dataset=job["dataset_id"], known=known))) == (404, "not_found")


@pytest.mark.parametrize("path", ["report", "audit"])
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_there_is_no_report_before_the_end(client: TestClient, ledger: Ledger, path: str, accept: str) -> None:
    def ask(job_id: str) -> tuple[int, str]:
        if path == "report":
            return told(client.get(f"/jobs/{job_id}/report", headers={"Accept": accept}))
        return told(client.post(f"/jobs/{job_id}/audit", json={"labels": []}))

    assert ask("job_01k0c9v2ytq4v3m5p6r7s8t9wa") == ask("nonsense") == (404, "not_found")
    job = submit(client, seed=100)
    assert ask(job["id"]) == (409, "report_not_ready")
    publish(ledger, job["id"], None)  # by a worker of before reports
    assert ask(job["id"]) == (409, "report_not_ready")


def audit(client: TestClient, job: dict[str, Any], labels: list[Any]) -> Any:
    return client.post(f"/jobs/{job['id']}/audit", json={"labels": labels})


def test_an_audit_answers_with_accuracies_and_their_difference(client: TestClient, job: dict[str, Any]) -> None:
    """Where they disagree (even positions) the adapted one is right; where they agree both are, but for one image."""
    labels: list[Any] = [{"position": i, "label": "red" if i % 2 else "green"} for i in range(NUM_IMAGES)]
    labels[1]["label"] = None
    answer = audit(client, job, labels)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["num_labels"] == NUM_IMAGES
    assert found["zero_shot"]["estimate"] == pytest.approx(11 / 24)
    assert found["adapted"]["estimate"] == pytest.approx(23 / 24)
    assert found["difference"]["estimate"] == pytest.approx(0.5)
    for name in ("zero_shot", "adapted", "difference"):
        assert found[name]["low"] < found[name]["estimate"] < found[name]["high"]
    assert found["sentence"].startswith("By 24 labels, zero-shot is right on 45.8% of the images and the adapted")
    assert audit(client, job, labels).json() == found, "nothing is kept, and nothing is drawn"


def sound_labels(number: int) -> list[Any]:
    return [{"position": i, "label": "red"} for i in range(number)]


@pytest.mark.parametrize(
    ("labels", "status", "code"),
    [
        ([], 422, "too_few_labels"),
        (sound_labels(9), 422, "too_few_labels"),
        ([{"position": i, "label": "red"} for i in range(0, 24, 2)], 422, "too_few_labels"),
        ([*sound_labels(12), {"position": 24, "label": "red"}], 422, "not_in_audit"),
        ([*sound_labels(12), {"position": 3, "label": "red"}], 422, "duplicate_label"),
        ([*sound_labels(12), {"position": 13, "label": "Red"}], 422, "unknown_class"),
        ([{"position": -1, "label": "red"}], 422, "out_of_range"),
        ([{"position": "1", "label": "red"}], 422, "invalid_type"),
        ([{"position": 1}], 422, "missing_field"),
        ([{"position": 1, "label": "red", "sure": True}], 422, "unknown_field"),
        (sound_labels(101), 422, "out_of_range"),
    ],
)
def test_wrong_labels_are_told_by_code(
    client: TestClient, job: dict[str, Any], labels: list[Any], status: int, code: str
) -> None:
    assert told(audit(client, job, labels)) == (status, code)


def test_a_browser_gets_a_page_on_which_no_name_is_markup(client: TestClient, ledger: Ledger) -> None:
    odd = submit(client, seed=200, classes=ODD_CLASSES, name="</title><script>alert(4)</script>")
    publish(ledger, odd["id"], body())
    answer = client.get(f"/jobs/{odd['id']}/report", headers=BROWSER)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; img-src 'self'; style-src 'sha256")
    page = answer.text
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page
    assert "blue &amp; {{ 7 * 7 }}" in page
    assert "alert(1)" in page
    assert f'<img src="/datasets/{odd["dataset_id"]}/images/' in page


def fill(client: TestClient, job: dict[str, Any], fields: Mapping[str, str]) -> Any:
    return client.post(f"/jobs/{job['id']}/audit", data=fields, headers=BROWSER)


def test_the_pages_form_is_answered_by_a_page(client: TestClient, job: dict[str, Any]) -> None:
    """In whatever case labels are typed, and with images that have none."""
    fields = {f"label.{i}": " Red " if i % 2 else "GREEN" for i in range(NUM_IMAGES)}
    fields |= {"label.1": "none of the classes", "label.2": "  "}
    labels = [{"position": i, "label": "red" if i % 2 else "green"} for i in range(NUM_IMAGES) if i != 2]
    labels[1]["label"] = None
    answer = fill(client, job, fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "<h1>By 23 labels, the adapted classifier is better</h1>" in answer.text
    assert audit(client, job, labels).json()["sentence"] in answer.text
    assert answer.text.count(">right<") + answer.text.count(">wrong<") == 2 * 23
    shown = html.unescape(answer.text.partition("<pre")[2].partition("</pre>")[0]).partition("audit\n")[2]
    assert {each["position"]: each["label"] for each in json.loads(shown)["labels"]} == {
        each["position"]: each["label"] for each in labels
    }


def test_labels_that_cannot_be_counted_come_back_as_they_were_written(client: TestClient, job: dict[str, Any]) -> None:
    few = fill(client, job, {"label.3": "red", "label.4": ""})
    assert few.status_code == 422
    assert "You have written 1 of 24." in few.text
    assert few.text.count(" selected") == 1
    wrong = fill(client, job, {"label.3": "gren", "label.5": "red"})
    assert wrong.status_code == 422
    assert "1 label is no class of the job; see image " in wrong.text
    assert "Perhaps “green”?" in wrong.text
    assert wrong.text.count('aria-invalid="true"') == 1
    assert "By 1 labels" not in wrong.text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"label.24=red", 422, "unknown_field"),
        (b"label.01=red", 422, "unknown_field"),
        (b"sure=1", 422, "unknown_field"),
        (b"label.1=red&label.1=green", 422, "repeated_parameter"),
        (b"label.1", 400, "malformed_form"),
        (b"label.1=%ff", 400, "malformed_form"),
        ("label.1=é".encode(), 400, "malformed_form"),
        (b"&".join(b"label.%d=" % i for i in range(101)), 400, "malformed_form"),
        (b"label.1=" + b"x" * 1024 * 1024, 413, "payload_too_large"),
    ],
)
def test_forms_that_no_page_sends_are_told_by_code(
    client: TestClient, job: dict[str, Any], body: bytes, status: int, code: str
) -> None:
    headers = {**BROWSER, "Content-Type": "application/x-www-form-urlencoded"}
    assert told(client.post(f"/jobs/{job['id']}/audit", content=body, headers=headers)) == (status, code)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json"])
def test_compressed_bodies_are_refused(client: TestClient, job: dict[str, Any], kind: str) -> None:
    headers = {**BROWSER, "Content-Type": kind, "Content-Encoding": "gzip"}
    answer = client.post(f"/jobs/{job['id']}/audit", content=b"label.1=red", headers=headers)
    assert told(answer) == (415, "unsupported_media_type")


def test_an_empty_form_lacks_labels_too(client: TestClient, job: dict[str, Any]) -> None:
    headers = {**BROWSER, "Content-Type": "application/x-www-form-urlencoded"}
    empty = client.post(f"/jobs/{job['id']}/audit", content=b"", headers=headers)
    assert empty.status_code == 422
    assert "You have written 0 of 24." in empty.text


def test_odd_names_are_no_markup_in_the_form_and_its_answer(client: TestClient, ledger: Ledger) -> None:
    odd = submit(client, seed=400, classes=ODD_CLASSES, name="</title><script>alert(4)</script>")
    publish(ledger, odd["id"], body())
    answer = fill(client, odd, {f"label.{i}": ODD_CLASSES[i % 3] for i in range(NUM_IMAGES)})
    assert answer.status_code == 200, answer.text
    broken = fill(client, odd, {"label.1": '"><script>alert(5)</script>'})
    assert broken.status_code == 422
    for page in (answer.text, broken.text):
        assert "<script" not in page
        assert "<img src=x" not in page


def test_how_training_ended_is_told(client: TestClient, ledger: Ledger) -> None:
    ends = {
        500: ((EventType.SETTLED, {"step": 30}), "Training ended at step 30, sooner than planned"),
        600: (
            (EventType.ROLLED_BACK, {"reasons": ["Classes were lost."], "to_step": 20}),
            "Training collapsed, was ended, and went back to step 20. Classes were lost.",
        ),
    }
    for seed, (event, sentence) in ends.items():
        job = submit(client, seed=seed)
        publish(ledger, job["id"], body(), events=(event,))
        assert client.get(f"/jobs/{job['id']}/report").json()["training_end"].startswith(sentence)
        assert sentence in client.get(f"/jobs/{job['id']}/report", headers=BROWSER).text


def test_how_an_earlier_attempt_ended_is_not_told(client: TestClient, ledger: Ledger) -> None:
    job = submit(client, seed=700)
    first = ledger.claim("w", timedelta(seconds=60), job["id"])
    assert first is not None
    ledger.report(first, Report(events=((EventType.SETTLED, {"step": 30}),)))
    ledger.release(first)
    publish(ledger, job["id"], body())
    kinds = [event["type"] for event in client.get(f"/jobs/{job['id']}/events").json()["data"]]
    assert "settled" in kinds, "there is one to be mistaken"
    assert client.get(f"/jobs/{job['id']}/report").json()["training_end"] is None


def test_there_is_an_icon(client: TestClient) -> None:
    answer = client.get("/icon.svg")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"


def test_a_report_outlives_its_dataset_without_the_pictures(client: TestClient, ledger: Ledger) -> None:
    job = submit(client, seed=300)
    publish(ledger, job["id"], body())
    before = client.get(f"/jobs/{job['id']}/report").json()
    assert client.delete(f"/datasets/{job['dataset_id']}").status_code == 204
    after = client.get(f"/jobs/{job['id']}/report").json()
    assert all(image["file"] is None for image in after["changed"] + after["audit"]["images"])
    assert [i["adapted"] for i in after["changed"]] == [i["adapted"] for i in before["changed"]]
    assert told(client.get(before["changed"][0]["file"]["thumbnail"])) == (404, "not_found")
    page = client.get(f"/jobs/{job['id']}/report", headers=BROWSER).text
    assert "<img" not in page
    assert "deleted" in page
    labels = [{"position": i, "label": "red"} for i in range(NUM_IMAGES)]
    assert audit(client, job, labels).status_code == 200, "who labelled in time may still ask"


def test_images_added_later_do_not_move_the_reports(client: TestClient, job: dict[str, Any]) -> None:
    before = client.get(f"/jobs/{job['id']}/report").json()
    added = client.post(f"/datasets/{job['dataset_id']}/images", files=[("images", ("z.png", sound(999)))])
    assert added.json()["num_added"] == 1
    assert client.get(f"/jobs/{job['id']}/report").json() == before


def test_lists_of_jobs_carry_no_reports(client: TestClient, job: dict[str, Any]) -> None:
    listed = client.get("/jobs").text
    assert "uncertain" not in listed


def test_the_document_describes_every_field(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    assert set(paths["/jobs/{job_id}/report"]["get"]["responses"]["200"]["content"]) == {
        "application/json", "text/html",
    }  # fmt: skip
    assert "/datasets/{dataset_id}/images/{image_id}/thumbnail" in paths
    body = paths["/jobs/{job_id}/audit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/AuditRequest"}
    names = {name for name in schemas if name.startswith(("Audit", "Report", "Curve", "ClassShare", "Estimate"))}
    assert {"AuditOut", "AuditRequest", "ReportOut", "ReportedImageOut", "ClassShareOut", "EstimateOut"} <= names
    for name in (*names, "LabelIn", "AnswerOut"):
        for field, schema in schemas[name]["properties"].items():
            assert "description" in schema, (name, field)
            plain = schema.get("type") in {"string", "integer", "number", "boolean"} and "const" not in schema
            assert not plain or schema.get("examples"), (name, field)


def test_the_trainers_folder_is_not_told(client: TestClient, job: dict[str, Any], settings: Settings) -> None:
    for accept in ("application/json", "text/html"):
        text = client.get(f"/jobs/{job['id']}/report", headers={"Accept": accept}).text
        assert str(Path(settings.data_dir)) not in text
