"""What a job's promotion means to its user, on the assembled application; the worker's part is played by the test."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import Publication
from tests.support.jobs import told_verdict, verdict
from tests.support.tiny import CLASSES


def submit(client: TestClient, dataset_id: str, **options: Any) -> dict[str, Any]:
    submitted = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES, **options})
    assert submitted.status_code == 202, submitted.text
    job: dict[str, Any] = submitted.json()
    assert job["classifier_id"] is job["adapted_classifier_id"] is job["verdict"] is None
    return job


def publish(ledger: Ledger, job_id: str, outcome: str | None) -> str:
    """Do what a worker does at the end; returns the adapted classifier's id."""
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    adapted = Publication(
        classifier_id=new_id("clf"),
        files={"bundle.json": "0" * 64},
        version="1" * 64,
        metrics={"changed_answers": 0.2},
        verdict=None if outcome is None else verdict(outcome),
    )
    ledger.publish(claim, adapted)
    return adapted.classifier_id


def test_a_refused_job_answers_zero_shot_and_says_why(
    client: TestClient, ledger: Ledger, dataset_id: str, images: list[Path]
) -> None:
    job = submit(client, dataset_id, name="shapes")
    assert job["promotion"] == "auto"
    adapted_id = publish(ledger, job["id"], "inconclusive")
    job = client.get(f"/jobs/{job['id']}").json()
    assert (job["status"], job["adapted_classifier_id"]) == ("succeeded", adapted_id)
    assert job["verdict"] == told_verdict("inconclusive")
    assert job["metrics"] == {"changed_answers": 0.2}

    classifier = client.get(f"/classifiers/{job['classifier_id']}").json()
    assert (classifier["kind"], classifier["job_id"], classifier["name"]) == ("zero_shot", job["id"], "shapes")
    made = client.post("/classifiers", json={"classes": CLASSES}).json()
    for name in ("version", "base_model", "classes", "templates"):
        assert classifier[name] == made[name], name
    adapted = client.get(f"/classifiers/{adapted_id}").json()
    assert (adapted["kind"], adapted["job_id"]) == ("adapted", job["id"])
    listed = {c["id"] for c in client.get("/classifiers?limit=100").json()["data"]}
    assert {classifier["id"], adapted_id} <= listed

    image = {"images": ("a.png", images[0].read_bytes())}
    by_job = client.post("/classify", data={"classifier": job["classifier_id"], "compare": "zero_shot"}, files=image)
    assert by_job.status_code == 200, by_job.text
    by_list = client.post("/classify", data={"classes": json.dumps(CLASSES)}, files=image)
    (result,) = by_job.json()["results"]
    assert result["predictions"] == result["zero_shot"]["predictions"] == by_list.json()["results"][0]["predictions"]

    events = client.get(f"/jobs/{job['id']}/events").json()["data"]
    (told,) = [e["data"] for e in events if e["type"] == "verdict"]
    assert (told["outcome"], told["reasons"]) == ("inconclusive", verdict("inconclusive")["reasons"])
    assert events[-1]["data"]["status"] == "succeeded"


@pytest.mark.parametrize("promotion", ["auto", "manual"])
def test_a_person_who_knows_better_promotes(
    client: TestClient, ledger: Ledger, dataset_id: str, promotion: str
) -> None:
    job_id = submit(client, dataset_id, promotion=promotion)["id"]
    early = client.post(f"/jobs/{job_id}/promote")
    assert (early.status_code, early.json()["code"]) == (409, "not_promotable")
    adapted_id = publish(ledger, job_id, "zero_shot")
    refused = client.get(f"/jobs/{job_id}").json()
    assert refused["classifier_id"] != adapted_id
    for _ in range(2):
        promoted = client.post(f"/jobs/{job_id}/promote")
        assert promoted.status_code == 200, promoted.text
        assert promoted.json() == {**refused, "classifier_id": adapted_id}
    assert client.get(f"/classifiers/{refused['classifier_id']}").status_code == 200, "who uses it goes on using it"
    events = client.get(f"/jobs/{job_id}/events").json()["data"]
    assert [e["data"] for e in events if e["type"] == "promoted"] == [{"classifier_id": adapted_id}]


def test_never_is_never(client: TestClient, ledger: Ledger, dataset_id: str) -> None:
    job_id = submit(client, dataset_id, promotion="never")["id"]
    adapted_id = publish(ledger, job_id, "adapted")
    answer = client.post(f"/jobs/{job_id}/promote")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_promotable")
    job = client.get(f"/jobs/{job_id}").json()
    assert client.get(f"/classifiers/{job['classifier_id']}").json()["kind"] == "zero_shot"
    assert job["adapted_classifier_id"] == adapted_id


@pytest.mark.parametrize("outcome", ["adapted", None])
def test_what_is_not_refused_is_promoted_at_once(
    client: TestClient, ledger: Ledger, dataset_id: str, outcome: str | None
) -> None:
    job_id = submit(client, dataset_id)["id"]
    adapted_id = publish(ledger, job_id, outcome)
    job = client.get(f"/jobs/{job_id}").json()
    assert job["classifier_id"] == job["adapted_classifier_id"] == adapted_id
    assert job["verdict"] == (None if outcome is None else told_verdict(outcome))


def test_a_form_has_the_option_too(client: TestClient, images: list[Path]) -> None:
    files = [("images", (p.name, p.read_bytes())) for p in images]
    job = client.post("/jobs", data={"classes": "a\nb", "promotion": "manual"}, files=files)
    assert (job.status_code, job.json()["promotion"]) == (202, "manual")
    client.post(f"/jobs/{job.json()['id']}/cancel")
    wrong = client.post("/jobs", data={"classes": "a\nb", "promotion": "Auto"}, files=files)
    assert (wrong.status_code, wrong.json()["param"]) == (422, "promotion")


def test_the_document_has_the_verdict(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert schemas["JobOptions" if "JobOptions" in schemas else "JobCreate"]["properties"]["promotion"]["enum"]
    assert all("description" in field for field in schemas["VerdictOut"]["properties"].values())
    form = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "promotion" in form["properties"]
