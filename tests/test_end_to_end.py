"""The main job as its user meets it: images and class names in over HTTP, a worker killed on the way, answers out."""

import hashlib
import io
import json
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops, ImageStat
from sqlalchemy import text

from app.database import make_engine
from tests.support.service import Service, running_service
from tests.support.services import postgres_database, redis_database
from tests.support.tiny import CLASSES, make_base, make_images
from tests.support.workers import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HYPERPARAMETERS = {"epochs": 60, "batch_size": 8, "learning_rate_per_256": 1e-3}
TOTAL_STEPS = 240


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 36)


@pytest.fixture(scope="module", params=["embedded", pytest.param("celery", marks=pytest.mark.services)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base: str) -> Iterator[Service]:
    settings = {
        "MUST_MODELS": json.dumps({"tiny": base}),
        "MUST_DEFAULT_MODEL": "tiny",
        "MUST_LEASE": "PT4S",
        "MUST_SWEEP_INTERVAL": "PT1S",
        "MUST_CHECKPOINT_INTERVAL": "PT0.5S",
    }
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        with running_service(folder, settings) as running:
            yield running
        return
    with (
        postgres_database() as database_url,
        redis_database() as broker_url,
        running_service(
            folder, {**settings, "MUST_DATABASE_URL": database_url, "MUST_BROKER_URL": broker_url}
        ) as running,
    ):
        yield running


def zipped(paths: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return buffer.getvalue()


def test_a_job_survives_its_worker_and_its_classifier_answers(service: Service, images: list[Path]) -> None:
    client = service.client
    created = client.post("/datasets", data={"name": "shapes"}, files={"archive": ("shapes.zip", zipped(images))})
    assert (created.status_code, created.json().get("num_images")) == (201, 36), created.text

    submitted = client.post(
        "/jobs",
        json={
            "dataset_id": created.json()["id"],
            "classes": CLASSES,
            "hyperparameters": HYPERPARAMETERS,
            "seed": 3,
            "metadata": {"team": "shapes"},
        },
    )
    assert submitted.status_code == 202, submitted.text
    job = submitted.json()
    assert submitted.headers["Location"] == f"/jobs/{job['id']}"
    assert (job["status"], job["attempt"], job["seed"], job["metadata"]) == ("queued", 0, 3, {"team": "shapes"})

    first = service.start_worker()

    def in_the_middle() -> bool:
        progress = client.get(f"/jobs/{job['id']}").json()["progress"] or {}
        return (progress.get("step") or 0) >= TOTAL_STEPS // 4

    wait_for(in_the_middle, timeout_s=180, what=f"training\n{service.logs()}")
    first.send_signal(signal.SIGKILL)
    service.start_worker()

    done = service.wait_for_job(job["id"])
    assert done["status"] == "succeeded", (done, service.logs())
    assert done["attempt"] == 2
    assert done["progress"]["step"] == done["progress"]["total_steps"] == TOTAL_STEPS
    assert [t["status"] for t in done["status_transitions"]] == ["queued", "running", "running", "succeeded"]
    assert done["choices"]["epochs"] == {"value": 60, "reason": "As requested."}

    # It went on from a checkpoint, which the trainer of the second attempt says.
    log = (service.data_dir / "runs" / job["id"] / "attempt-2" / "trainer.log").read_text()
    told = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (resumed,) = [line["step"] for line in told if line["event"] == "resumed"]
    assert 0 < resumed < TOTAL_STEPS

    # So few images decide nothing: the job answers zero-shot, and what it trained is kept.
    assert done["promotion"] == "auto"
    assert done["verdict"]["outcome"] == "inconclusive"
    assert done["verdict"]["reasons"][0].startswith("36 images are too few")
    unadapted = client.get(f"/classifiers/{done['classifier_id']}").json()
    assert (unadapted["kind"], unadapted["job_id"]) == ("zero_shot", job["id"])
    classifier = client.get(f"/classifiers/{done['adapted_classifier_id']}").json()
    assert (classifier["kind"], classifier["job_id"]) == ("adapted", job["id"])
    reply = client.post(
        "/classify",
        data={"classifier": classifier["id"], "compare": "zero_shot", "top_k": "2"},
        files=[
            ("images", ("a.png", images[0].read_bytes())),
            ("images", ("broken.png", b"\x89PNG\r\n\x1a\nnothing")),
            ("images", ("b.png", images[1].read_bytes())),
        ],
    )
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert (body["classifier"], body["classifier_version"]) == (classifier["id"], classifier["version"])
    good, bad, other = body["results"]
    assert [r["status"] for r in body["results"]] == ["ok", "error", "ok"]
    assert bad["error"]["code"] == "image_corrupt"
    for result in (good, other):
        scores = [p["score"] for p in result["predictions"]]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert result["zero_shot"]["predictions"]
        assert result["unknown"] is (result["raw_score"] < classifier["unknown_below"])
    # Adapted weights are not the base's.
    assert good["predictions"][0]["score"] != good["zero_shot"]["predictions"][0]["score"]
    by_job = client.post(
        "/classify",
        data={"classifier": unadapted["id"], "top_k": "2"},
        files={"images": ("a.png", images[0].read_bytes())},
    )
    assert by_job.json()["results"][0]["predictions"] == near(good["zero_shot"]["predictions"])

    check_report(client, job["id"], images)
    check_backend(service, job["id"])

    # Whoever knows better promotes.
    promoted = client.post(f"/jobs/{job['id']}/promote").json()
    assert promoted == {**done, "classifier_id": classifier["id"]}


def check_report(client: httpx.Client, job_id: str, images: list[Path]) -> None:
    """What the job changed can be looked at, and the training of both attempts is one curve."""
    report = client.get(f"/jobs/{job_id}/report").json()
    assert (report["num_images"], report["num_held_out"]) == (36, 0)
    assert {c["metric"] for c in report["curves"]} >= {"loss", "confident_ratio"}
    for curve in report["curves"]:
        assert curve["steps"] == sorted(set(curve["steps"]))
        assert curve["steps"][0] < TOTAL_STEPS // 4
    position = report["audit"]["images"][0]["position"]
    thumbnail = report["audit"]["images"][0]["file"]["thumbnail"]
    with Image.open(io.BytesIO(client.get(thumbnail).content)) as shown, Image.open(images[position]) as original:
        assert shown.size == original.size
        assert max(ImageStat.Stat(ImageChops.difference(shown, original.convert("RGB"))).mean) < 12
    labels = [{"position": i["position"], "label": CLASSES[i["position"] % 3]} for i in report["audit"]["images"]]
    audited = client.post(f"/jobs/{job_id}/audit", json={"labels": labels})
    assert audited.status_code == 200, audited.text
    assert audited.json()["num_labels"] == 36


def check_backend(service: Service, job_id: str) -> None:
    """The two variants of this file must not run on the same backend by mistake."""
    ready = service.client.get("/health/ready").json()
    assert ready == {"status": "ok", "database": True, "broker": True}
    database_url = service._environment.get("MUST_DATABASE_URL", "")
    if database_url:
        with make_engine(database_url).connect() as connection:
            found = connection.execute(text("SELECT status FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one()
        assert found == "succeeded"
    else:
        assert (service.data_dir / "must.db").exists()


def near(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same labels, with scores as they come out of a batch of another size."""
    return [{**p, "score": pytest.approx(p["score"], abs=1e-5)} for p in predictions]


def test_one_request_with_images_and_classes_streams_its_events(service: Service, images: list[Path]) -> None:
    client = service.client
    submitted = client.post(
        "/jobs",
        data={
            "classes": "\n".join(CLASSES),
            "hyperparameters": json.dumps({"epochs": 2, "batch_size": 8}),
            "seed": "0",
            "name": "two in one",
        },
        files=[("images", (p.name, p.read_bytes())) for p in images],
    )
    assert submitted.status_code == 202, submitted.text
    service.start_worker()
    seen = list(stream(service, submitted.json()["id"]))
    ids = [event["id"] for event in seen]
    assert ids == sorted(set(ids))
    statuses = [e["data"]["status"] for e in seen if e["type"] == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    half = ids[len(ids) // 2]
    assert [e["id"] for e in stream(service, submitted.json()["id"], last_event_id=half)] == [
        i for i in ids if i > half
    ]


def stream(service: Service, job_id: str, *, last_event_id: int | None = None) -> Iterator[dict[str, Any]]:
    headers = {"Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    with service.client.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=180) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def test_a_running_job_is_cancelled_promptly(service: Service, images: list[Path]) -> None:
    client = service.client
    submitted = client.post(
        "/jobs",
        data={"classes": json.dumps(CLASSES), "hyperparameters": json.dumps({"epochs": 5000, "batch_size": 8})},
        files={"archive": ("shapes.zip", zipped(images))},
    ).json()
    service.start_worker()
    wait_for(
        lambda: (client.get(f"/jobs/{submitted['id']}").json()["progress"] or {}).get("step"),
        timeout_s=180,
        what=f"training\n{service.logs()}",
    )
    assert client.post(f"/jobs/{submitted['id']}/cancel").json()["status"] == "cancelling"
    assert service.wait_for_job(submitted["id"], timeout_s=60)["status"] == "cancelled"
    again = client.post(f"/jobs/{submitted['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_not_cancellable")


def test_what_cannot_be_trained_fails_with_its_reason(service: Service, tmp_path: Path) -> None:
    images = make_images(tmp_path, 8, seed=7)
    created = service.client.post("/datasets", files={"archive": ("shapes.zip", zipped(images))}).json()
    spoilt = hashlib.sha256(images[0].read_bytes()).hexdigest()
    (blob,) = (p for p in service.data_dir.rglob(spoilt) if p.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"no image any more")
    submitted = service.client.post("/jobs", json={"dataset_id": created["id"], "classes": CLASSES}).json()
    service.start_worker()
    job = service.wait_for_job(submitted["id"])
    assert (job["status"], job["attempt"]) == ("failed", 1)
    assert job["error"]["code"] == "image_corrupt"


@pytest.mark.parametrize("kind", ["list", "classifier"])
def test_zero_shot_needs_no_job(service: Service, images: list[Path], kind: str) -> None:
    client = service.client
    data = {"classes": json.dumps(CLASSES)}
    if kind == "classifier":
        made = client.post("/classifiers", json={"classes": CLASSES, "name": "shapes"})
        assert made.status_code == 201, made.text
        assert made.json()["kind"] == "zero_shot"
        data = {"classifier": made.json()["id"]}
    reply = client.post("/classify", data=data, files={"images": ("a.png", images[0].read_bytes())})
    assert reply.status_code == 200, reply.text
    (result,) = reply.json()["results"]
    assert {p["label"] for p in result["predictions"]} == set(CLASSES)
    assert sum(p["score"] for p in result["predictions"]) == pytest.approx(1, abs=1e-5)
