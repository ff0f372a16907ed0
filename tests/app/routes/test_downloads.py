"""Classifiers taken away: each format answers as the service does."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.config import Settings
from app.inference.exports import Exporter
from app.inference.predictor import Source
from app.jobs.ledger import Ledger
from app.services.downloads import MAX_WAITING
from app.storage import BlobStore, LocalBlobStore
from must_core.bundle import load_bundle
from tests.support.bundles import hand_in
from tests.support.tiny import CLASSES
from tests.support.workers import wait_for
from worker.protocol import UnknownBelow


@pytest.fixture(scope="module")
def storage(settings: Settings) -> BlobStore:
    return LocalBlobStore(settings.data_dir / "blobs")


def published(client: TestClient, ledger: Ledger, storage: BlobStore, folder: Path, **fields: str) -> dict[str, str]:
    """A job that was refused, with limits; returns kinds of its classifiers -> ids."""
    job_id = client.post("/jobs", json=fields | {"classes": CLASSES}).json()["id"]
    base = client.app.state.services.settings.models["tiny"]  # type: ignore[attr-defined]
    limits = UnknownBelow(adapted=0.25, zero_shot=0.125)
    answering = hand_in(ledger, storage, job_id, folder, base_model=base, outcome="inconclusive", limits=limits)
    return {"zero_shot": answering, "adapted": client.get(f"/jobs/{job_id}").json()["adapted_classifier_id"]}


@pytest.fixture(scope="module")
def classifiers(
    client: TestClient, ledger: Ledger, storage: BlobStore, dataset_id: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return published(client, ledger, storage, tmp_path_factory.mktemp("job"), dataset_id=dataset_id)


def download(client: TestClient, classifier_id: str, to: str, folder: Path) -> Path:
    reply = client.get(f"/classifiers/{classifier_id}/download", params={"format": to})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-disposition"] == f'attachment; filename="{classifier_id}-{to}.zip"'
    zipfile.ZipFile(io.BytesIO(reply.content)).extractall(folder)
    return folder / f"{classifier_id}-{to}"


def told(client: TestClient, classifier_id: str, image: Path) -> tuple[list[str], list[float]]:
    files = [("images", (image.name, image.read_bytes()))]
    (result,) = client.post("/classify", data={"classifier": classifier_id}, files=files).json()["results"]
    return [p["label"] for p in result["predictions"]], [p["score"] for p in result["predictions"]]


@pytest.mark.parametrize("kind", ["zero_shot", "adapted"])
def test_a_bundle_answers_as_the_service_does(
    client: TestClient, classifiers: dict[str, str], images: list[Path], tmp_path: Path, kind: str
) -> None:
    folder = download(client, classifiers[kind], "bundle", tmp_path)
    bundle = load_bundle(folder)
    assert bundle.unknown_below == {"zero_shot": 0.125, "adapted": 0.25}[kind]
    image_CHW = bundle.preprocess.transform()(Image.open(images[0]).convert("RGB"))
    scores_K = bundle.classifier(image_CHW[None])[0].softmax(dim=-1)
    order = scores_K.argsort(descending=True).tolist()
    labels, scores = told(client, classifiers[kind], images[0])
    assert [bundle.class_names[k] for k in order] == labels
    assert scores_K[order].tolist() == pytest.approx(scores, abs=1e-5)


def test_onnx_answers_as_the_service_does(
    client: TestClient, classifiers: dict[str, str], images: list[Path], tmp_path: Path
) -> None:
    folder = download(client, classifiers["zero_shot"], "onnx", tmp_path)
    bundle = load_bundle(download(client, classifiers["zero_shot"], "bundle", tmp_path))
    image_CHW = bundle.preprocess.transform()(Image.open(images[0]).convert("RGB"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (logits_NK,) = session.run(None, {"images": image_CHW[None].numpy()})
    names = json.loads((folder / "classes.json").read_text())
    labels, scores = told(client, classifiers["zero_shot"], images[0])
    scores_K = torch.tensor(logits_NK[0]).softmax(dim=-1)
    assert {names[k]: pytest.approx(float(scores_K[k]), abs=1e-4) for k in range(3)} == dict(
        zip(labels, scores, strict=True)
    )


def test_open_clip_gets_a_folder_with_the_limit(
    client: TestClient, classifiers: dict[str, str], tmp_path: Path
) -> None:
    folder = download(client, classifiers["adapted"], "open_clip", tmp_path)
    assert {"open_clip_config.json", "open_clip_model.safetensors", "README.md"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "unknown.json").read_text()) == {"unknown_below": 0.25}


def test_it_is_made_once_and_a_part_of_it_can_be_asked_for(
    client: TestClient, classifiers: dict[str, str], storage: BlobStore
) -> None:
    address = f"/classifiers/{classifiers['adapted']}/download"
    whole: httpx.Response = client.get(address)
    files = client.app.state.services.classifiers.get(classifiers["adapted"]).files  # type: ignore[attr-defined]
    contents = {sha256: storage.read(sha256) for sha256 in files.values()}
    for sha256 in contents:
        storage.delete(sha256)  # a second export would find nothing
    part = client.get(address, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    for content in contents.values():
        storage.put_stream(io.BytesIO(content))


def test_what_is_damaged_is_not_handed_out(
    client: TestClient, ledger: Ledger, storage: BlobStore, dataset_id: str, tmp_path: Path
) -> None:
    adapted = published(client, ledger, storage, tmp_path, dataset_id=dataset_id)["adapted"]
    sha256 = client.app.state.services.classifiers.get(adapted).files["classifier.json"]  # type: ignore[attr-defined]
    content = storage.read(sha256)
    storage.local_path(sha256).write_bytes(content + b" ")
    for to in ("bundle", "onnx"):
        refused = client.get(f"/classifiers/{adapted}/download", params={"format": to})
        assert (refused.status_code, refused.json()["code"]) == (503, "artifact_corrupt")
    storage.local_path(sha256).write_bytes(content)
    assert client.get(f"/classifiers/{adapted}/download").status_code == 200


def test_a_download_can_be_resumed_while_the_file_is_the_same(client: TestClient, classifiers: dict[str, str]) -> None:
    address = f"/classifiers/{classifiers['zero_shot']}/download"
    whole = client.get(address)
    tag = whole.headers["etag"]
    assert client.get(address).headers["etag"] == tag
    rest = client.get(address, headers={"Range": "bytes=100-", "If-Range": tag})
    assert (rest.status_code, rest.content, rest.headers["etag"]) == (206, whole.content[100:], tag)
    another = client.get(address, headers={"Range": "bytes=100-", "If-Range": '"another"'})
    assert (another.status_code, another.content) == (200, whole.content)


def test_exports_hold_up_nobody(
    client: TestClient, classifiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More who wait than there are threads for requests; one export for all who get it."""
    kept = f"/classifiers/{classifiers['zero_shot']}/download"
    assert client.get(kept).status_code == 200
    new = client.post("/classifiers", json={"classes": ["some", "others"]}).json()["id"]
    downloads = client.app.state.services.downloads  # type: ignore[attr-defined]
    go_on, exported, export = Event(), list[object](), Exporter.export

    def slow(self: Exporter, source: Source, **how: Any) -> None:
        exported.append(source)
        assert go_on.wait(120)
        export(self, source, **how)

    monkeypatch.setattr(Exporter, "export", slow)
    with ThreadPoolExecutor(45) as threads:
        replies = [threads.submit(client.get, f"/classifiers/{new}/download") for _ in range(45)]
        try:
            wait_for(lambda: sum(reply.done() for reply in replies) == 45 - MAX_WAITING, what="those turned away")
            assert downloads._num_waiting == MAX_WAITING
            assert client.get("/health/ready").status_code == 200
            assert client.get(kept).status_code == 200
            with monkeypatch.context() as control:  # if what is kept were not looked for first
                control.setattr(downloads, "_kept", lambda *_: None)
                assert client.get(kept).status_code == 503
        finally:
            go_on.set()
    refused = [reply.result() for reply in replies if reply.result().status_code != 200]
    assert len(refused) == 45 - MAX_WAITING
    assert {(r.status_code, r.json()["code"], r.headers["retry-after"]) for r in refused} == {(503, "overloaded", "30")}
    assert len({reply.result().content for reply in replies if reply.result().status_code == 200}) == 1
    assert len(exported) == 1
    assert client.get(f"/classifiers/{new}/download").status_code == 200, "there is room to wait again"


def test_what_is_deleted_leaves_no_download(client: TestClient, settings: Settings) -> None:
    new = client.post("/classifiers", json={"classes": ["this", "that"]}).json()["id"]
    assert client.get(f"/classifiers/{new}/download").status_code == 200
    assert list((settings.data_dir / "downloads").glob(f"{new}-*"))
    assert client.delete(f"/classifiers/{new}").status_code == 204
    assert not list((settings.data_dir / "downloads").glob(f"{new}-*"))
    assert client.get(f"/classifiers/{new}/download").status_code == 404


def test_only_what_there_is(client: TestClient, classifiers: dict[str, str]) -> None:
    refused = client.get(f"/classifiers/{classifiers['adapted']}/download?format=pickle")
    assert (refused.status_code, refused.json()["param"]) == (422, "format")
    assert client.get("/classifiers/clf_01k0c9v2ytq4v3m5p6r7s8t9wa/download").status_code == 404
