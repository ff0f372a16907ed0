"""When and where a job is to run, as its user says it and sees it; the worker's part is played by the test."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.queue import LedgerOnlyQueue
from tests.support.tiny import CLASSES

WISHES = {
    "priority": -3,
    "not_before": "2126-01-02T23:00:00.5+01:00",
    "max_runtime_s": 3600,
    "max_pending_s": 60,
    "num_gpus": 2,
}


def submit(client: TestClient, dataset_id: str, **options: Any) -> dict[str, Any]:
    submitted = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES, **options})
    assert submitted.status_code == 202, submitted.text
    job: dict[str, Any] = submitted.json()
    return job


def test_a_job_without_wishes(client: TestClient, dataset_id: str) -> None:
    job = submit(client, dataset_id)
    assert (job["priority"], job["num_gpus"], job["runtime_s"]) == (0, 1, 0)
    assert job["not_before"] is job["max_runtime_s"] is job["max_pending_s"] is None


@pytest.mark.parametrize(
    ("not_before", "is_sent"), [(None, True), ("2026-01-02T22:00:00Z", True), ("2126-01-02T22:00:00Z", False)]
)
def test_workers_are_told_of_a_job_that_may_start(
    client: TestClient, dataset_id: str, monkeypatch: pytest.MonkeyPatch, not_before: str | None, *, is_sent: bool
) -> None:
    sent = []
    monkeypatch.setattr(LedgerOnlyQueue, "send", lambda _, job_id: bool(sent.append(job_id)))
    job = submit(client, dataset_id, not_before=not_before)
    assert sent == ([job["id"]] if is_sent else [])


@pytest.mark.parametrize("form", [False, True])
def test_wishes_come_back(client: TestClient, dataset_id: str, images: list[Path], *, form: bool) -> None:
    if form:
        fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in WISHES.items()}
        files = [("images", (p.name, p.read_bytes())) for p in images]
        job = client.post("/jobs", data={"classes": json.dumps(CLASSES), **fields}, files=files).json()
    else:
        job = submit(client, dataset_id, **WISHES)
    assert {k: job[k] for k in WISHES} == WISHES | {"not_before": "2126-01-02T22:00:00.500000Z"}
    listed = client.get("/jobs", params={"limit": 1}).json()["data"][0]
    assert {k: listed[k] for k in WISHES} == {k: job[k] for k in WISHES}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("priority", 101, "out_of_range"),
        ("priority", -101, "out_of_range"),
        ("priority", 1.0, "invalid_type"),
        ("priority", True, "invalid_type"),
        ("max_runtime_s", 0, "out_of_range"),
        ("max_runtime_s", 10**12, "out_of_range"),
        ("max_pending_s", -1, "out_of_range"),
        ("max_pending_s", "60", "invalid_type"),
        ("num_gpus", 0, "out_of_range"),
        ("num_gpus", 65, "out_of_range"),
        ("not_before", 1767391200, "invalid_type"),
        ("not_before", "tomorrow", "invalid_value"),
        ("not_before", "2026-01-02T22:00:00", "invalid_value"),
        ("not_before", "2026-13-02T22:00:00Z", "invalid_value"),
        ("not_before", "0001-01-01T00:00:00+14:00", "invalid_value"),
        ("not_before", "9999-12-31T23:59:59-14:00", "invalid_value"),
        ("not_before", "２０２６-01-02T22:00:00Z", "invalid_value"),
        ("not_before", "9999-12-31T23:59:59Z", "out_of_range"),
        ("tenant", "another", "unknown_field"),
    ],
)
def test_other_wishes_are_refused_by_name(
    client: TestClient, dataset_id: str, field: str, value: object, code: str
) -> None:
    refused = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES, field: value})
    assert (refused.status_code, refused.json()["code"], refused.json()["param"]) == (422, code, field)
