"""Classifiers that are moved, damaged or broken under load, over a socket."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.ledger import Ledger
from app.storage import LocalBlobStore
from app.tables import Classifier
from tests.support.bundles import hand_in
from tests.support.service import Service, running_service
from tests.support.stacks import EMBEDDED, REDIS, Stack, only
from tests.support.tiny import make_base, make_images
from tests.support.workers import wait_for

NUM_CLIENTS = 4
NUM_MOVES = 20
NUM_TIMES = 11
"""Each image in a request: 33 in all, one more than are classified together."""
FRUIT, COMPASS = ["apple", "pear"], ["north", "south"]

pytestmark = only(EMBEDDED, REDIS)


@dataclass(frozen=True)
class World:
    """A running API, and the worker's part of it played by the test."""

    service: Service
    storage: LocalBlobStore
    sessions: sessionmaker[Session]
    base: str
    folder: Path
    images: list[Path]
    dataset_id: str

    def zero_shot(self, classes: list[str]) -> str:
        return str(self.service.client.post("/classifiers", json={"classes": classes}).json()["id"])

    def adapted(self, classes: list[str]) -> str:
        wish = {"dataset_id": self.dataset_id, "classes": classes}
        job_id = self.service.client.post("/jobs", json=wish).raise_for_status().json()["id"]
        return hand_in(Ledger(self.sessions), self.storage, job_id, self.folder / job_id, base_model=self.base)

    def put(self, name: str, classifier_id: str) -> httpx.Response:
        return self.service.client.put(f"/aliases/{name}", json={"classifier_id": classifier_id})

    def classify(self, reference: str) -> httpx.Response:
        files = [("images", (p.name, p.read_bytes())) for p in self.images] * NUM_TIMES
        return self.service.client.post("/classify", data={"classifier": reference}, files=files)

    def blobs_of(self, classifier_id: str) -> list[Path]:
        with self.sessions() as session:
            files = session.get_one(Classifier, classifier_id).files
        return [self.storage.local_path(sha256) for sha256 in files.values()]

    @contextmanager
    def load(self, reference: str) -> Iterator[Callable[[], list[httpx.Response]]]:
        """Clients that classify without end; the block gets what they have been answered so far."""
        over, replies = Event(), list[httpx.Response]()

        def ask() -> None:
            while not over.is_set():
                replies.append(self.classify(reference))

        with ThreadPoolExecutor(NUM_CLIENTS) as threads:
            asking: list[Future[None]] = [threads.submit(ask) for _ in range(NUM_CLIENTS)]
            try:
                yield lambda: list(replies)
            finally:
                over.set()
        for each in asking:
            each.result()


@pytest.fixture
def world(stack: Stack, sessions: sessionmaker[Session], tmp_path: Path) -> Iterator[World]:
    base = make_base(tmp_path / "base")
    models = {"MUST_MODELS": json.dumps({"tiny": base}), "MUST_DEFAULT_MODEL": "tiny"}
    images = make_images(tmp_path / "images", 3)
    with running_service(tmp_path / "service", {**stack.settings, **models}) as service:
        made = service.client.post("/datasets", files=[("images", (p.name, p.read_bytes())) for p in images])
        storage = LocalBlobStore(service.data_dir / "blobs")
        yield World(service, storage, sessions, base, tmp_path, images, made.raise_for_status().json()["id"])


def answered_by(reply: httpx.Response, classes: Mapping[str, list[str]]) -> str:
    """The classifier, once it is certain that it alone answered; ``classes``: those of each."""
    assert reply.status_code == 200, reply.text
    body = reply.json()
    for result in body["results"]:
        labels = {p["label"] for p in result["predictions"]}
        assert labels == set(classes[body["classifier"]]), "another classifier than the one that is named"
    return str(body["classifier"])


def test_an_alias_moves_at_once_and_a_broken_candidate_leaves_it(world: World) -> None:
    fruit, compass = world.zero_shot(FRUIT), world.adapted(COMPASS)
    classes = {fruit: FRUIT, compass: COMPASS}
    broken = world.adapted(COMPASS[::-1])
    assert world.classify(broken).status_code == 200, "from now on it is warm, and only its files are not sound"
    damaged = set(world.blobs_of(broken)) - set(world.blobs_of(compass))  # equal weights are one blob
    for blob in damaged:
        blob.write_bytes(blob.read_bytes()[:-1])
    assert damaged
    assert world.put("live", fruit).status_code == 200
    with world.load("live") as replies:
        for number in range(NUM_MOVES):
            seen = len(replies())
            assert world.put("live", (compass, fruit)[number % 2]).status_code == 200
            wait_for(lambda n=seen: len(replies()) > n, what="an answer between two moves")
        refused = world.put("live", broken)
        assert (refused.status_code, refused.json().get("code")) == (503, "artifact_corrupt")
        seen = len(replies())
        wait_for(lambda: len(replies()) >= seen + NUM_CLIENTS, what="answers after the refusal")
        assert {answered_by(reply, classes) for reply in replies()} == {fruit, compass}
        after = replies()[seen + NUM_CLIENTS - 1 :]
    assert world.service.client.get("/aliases/live").json()["classifier_id"] == fruit
    assert {answered_by(reply, classes) for reply in after} == {fruit}


def test_control_a_name_that_is_taken_away_and_given_again_fails_in_between(world: World) -> None:
    fruit, compass = world.zero_shot(FRUIT), world.zero_shot(COMPASS)
    world.put("live", fruit)

    def swap() -> bool:
        world.service.client.delete("/aliases/live")
        world.put("live", compass)
        return any(reply.status_code == 404 for reply in replies())

    with world.load("live") as replies:
        wait_for(swap, what="a request in between")


def test_one_flipped_byte_in_any_file_is_never_served(world: World) -> None:
    classifier_id = world.adapted(COMPASS)
    for blob in world.blobs_of(classifier_id):
        content = blob.read_bytes()
        blob.chmod(0o600)
        middle = len(content) // 2
        blob.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])
        refused = world.classify(classifier_id)
        assert (refused.status_code, refused.json()["code"]) == (503, "artifact_corrupt")
        blob.write_bytes(content)
    assert answered_by(world.classify(classifier_id), {classifier_id: COMPASS}) == classifier_id, "mended, it is served"
