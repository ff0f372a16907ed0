"""An API that is killed: what was accepted is there, what was not leaves nothing, and a key makes one thing of many."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs.status import JobStatus
from app.tables import Dataset, Job
from tests.chaos.test_workers import wait_until
from tests.support.failpoints import POINTS
from tests.support.mortal_api import MortalService, mortal_service
from tests.support.stacks import EMBEDDED, REDIS, Stack, only
from tests.support.tiny import CLASSES, make_base, make_images
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
StartApi = Callable[..., MortalService]
Sessions = sessionmaker[Session]

pytestmark = pytest.mark.timeout(600)  # many processes one after the other, on a machine that may be busy

TIMEOUT_S = 120
SEED = 7
NUM_KEYS = 40
NUM_KILLS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 3)


@pytest.fixture
def start_api(stack: Stack, tmp_path: Path, base: str) -> Iterator[StartApi]:
    """Starts an API on the test's database, broker and folder; it is gone afterwards."""
    settings = {
        **stack.settings,
        "MUST_DATA_DIR": str(tmp_path),  # the workers' too
        "MUST_MODELS": f'{{"tiny-clip": "{base}"}}',
        "MUST_DEFAULT_MODEL": "tiny-clip",
        "MUST_DECODE_PROCESSES": "1",
    }
    with ExitStack() as held:
        yield lambda *taken_away: held.enter_context(mortal_service(tmp_path / "api", settings, *taken_away))


class User:
    """Somebody who submits the same job again and again."""

    def __init__(self, api: MortalService, images: Sequence[Path]) -> None:
        # A connection for each request: one that the API's death broke earlier would say nothing of the next request.
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
        self._client = httpx.Client(base_url=api.client.base_url, timeout=TIMEOUT_S, limits=limits)
        self._files = [("images", (path.name, path.read_bytes())) for path in images]
        self._form = {"classes": "\n".join(CLASSES)}
        created = self._client.post("/datasets", files=self._files)
        assert created.status_code == httpx.codes.CREATED, created.text
        self._body = {"dataset_id": created.json()["id"], "classes": CLASSES}

    def submit(self, key: str | None = None, *, with_images: bool = False) -> httpx.Response | None:
        """Once; None when there was no answer."""
        headers = {} if key is None else {"Idempotency-Key": key}
        wanted: dict[str, Any] = {"data": self._form, "files": self._files} if with_images else {"json": self._body}
        try:
            return self._client.post("/jobs", headers=headers, **wanted)
        except httpx.TransportError:
            return None

    def insist(self, key: str, **options: bool) -> httpx.Response:
        """Until there is an answer that is no request to come back."""

        def answered() -> httpx.Response | None:
            answer = self.submit(key, **options)
            if answer is None or answer.status_code in {409, 503}:
                time.sleep(0.1)
                return None
            return answer

        answer = wait_for(answered, timeout_s=TIMEOUT_S, what="an answer")
        assert answer is not None
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        return answer


def ids(sessions: Sessions, table: type[Job] | type[Dataset]) -> set[str]:
    with sessions.begin() as session:
        return set(session.scalars(select(table.id)))


@only(EMBEDDED, REDIS)
def test_whenever_the_api_dies_a_job_is_there_as_a_whole_or_not_at_all_and_runs(
    start_api: StartApi, start_worker: StartWorker, sessions: Sessions, images: list[Path]
) -> None:
    api = start_api()
    user = User(api, images)
    plain = [(point, key, False) for point in POINTS for key in (new_id("key"), None)]
    with_images = [(point, new_id("key"), True) for point in ("before_commit", "after_commit")]
    for point, key, has_images in plain + with_images:
        jobs, datasets = ids(sessions, Job), ids(sessions, Dataset)
        api.die_at(point)
        answer = user.submit(key, with_images=has_images)
        api.wait_until_reborn()
        made = ids(sessions, Job) - jobs
        assert len(made) == (0 if point == "before_commit" else 1), point
        assert len(ids(sessions, Dataset) - datasets) == (len(made) if has_images else 0)
        if answer is not None:
            assert point == "after_reply"
            assert {answer.json()["id"]} == made
        if key is not None:
            again = user.insist(key, with_images=has_images)
            assert again.headers.get("Idempotency-Replayed") == (None if point == "before_commit" else "true")
            assert ids(sessions, Job) - jobs == {again.json()["id"]} == (made or {again.json()["id"]})
            assert len(ids(sessions, Dataset) - datasets) == (1 if has_images else 0)
    accepted = ids(sessions, Job)
    assert len(accepted) == len(plain) + len(with_images) - 1, "one had no key and was killed before its commit"
    start_worker(worker_concurrency="3")
    for job_id in accepted:
        wait_until(sessions, job_id, JobStatus.SUCCEEDED)


@only(EMBEDDED)
def test_without_the_one_transaction_a_crash_makes_two_of_one(
    start_api: StartApi, sessions: Sessions, images: list[Path]
) -> None:
    """The negative control of the above: answers recorded after the effect, datasets committed before their jobs."""
    api = start_api("one_transaction", "datasets_with_jobs")
    user = User(api, images)
    for point, has_images, twice in (("after_commit", False, Job), ("before_commit", True, Dataset)):
        before, key = ids(sessions, twice), new_id("key")
        api.die_at(point)
        assert user.submit(key, with_images=has_images) is None
        api.wait_until_reborn()
        user.insist(key, with_images=has_images)
        assert len(ids(sessions, twice) - before) == 2


@pytest.mark.parametrize(
    ("stack", "fence"),
    [
        pytest.param("sqlite", "fenced", id="embedded-fenced"),
        pytest.param("redis", "fenced", id="redis-fenced", marks=pytest.mark.services),
        pytest.param("sqlite", "unfenced", id="embedded-unfenced"),
    ],
    indirect=["stack"],
)
def test_an_api_that_was_frozen_commits_nothing_that_another_has_done(
    start_api: StartApi, sessions: Sessions, images: list[Path], fence: str
) -> None:
    """Unfenced is the negative control: there the zombie's job must be seen."""
    api = start_api(*(["fence"] if fence == "unfenced" else []))
    user = User(api, images)
    zombie, key = api.pid(), new_id("key")
    api.die_at("before_transaction", by=signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(user.submit, key)
        api.wait_until_reached()
        api.start_another()
        heirs = user.insist(key)
        os.kill(zombie, signal.SIGCONT)
        told = first.result()
    assert told is not None
    if fence == "unfenced":
        assert told.status_code == httpx.codes.ACCEPTED
        assert ids(sessions, Job) == {told.json()["id"], heirs.json()["id"]}
        return
    assert (told.status_code, told.json()["code"]) == (httpx.codes.CONFLICT, "idempotency_in_flight")
    assert ids(sessions, Job) == {heirs.json()["id"]}
    assert user.insist(key).content == heirs.content


@only(EMBEDDED, REDIS)
def test_fifty_at_once_with_one_key_are_one_job_and_without_a_key_fifty(
    start_api: StartApi, sessions: Sessions, images: list[Path]
) -> None:
    user = User(start_api(), images)
    key = new_id("key")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: user.insist(key), range(50)))
        assert {answer.content for answer in answers} == {answers[0].content}
        assert [answer.headers.get("Idempotency-Replayed") for answer in answers].count(None) == 1
        assert ids(sessions, Job) == {answers[0].json()["id"]}
        others = [answer for answer in pool.map(lambda _: user.submit(), range(50)) if answer is not None]
    assert [answer.status_code for answer in others] == [httpx.codes.ACCEPTED] * 50
    assert len(ids(sessions, Job)) == 51


@only(EMBEDDED, REDIS)
def test_killed_at_any_time_each_key_has_one_job(start_api: StartApi, sessions: Sessions, images: list[Path]) -> None:
    api = start_api()
    user = User(api, images)
    keys = [new_id("key") for _ in range(NUM_KEYS)]
    is_over = threading.Event()
    generator = random.Random(SEED)

    def kill() -> int:
        for num_kills in range(NUM_KILLS):
            api.wait_until_ready()
            if is_over.wait(generator.uniform(0, 1)):
                return num_kills
            api.kill_api()
        return NUM_KILLS

    with ThreadPoolExecutor(9) as pool:
        killing = pool.submit(kill)
        try:
            answers = list(pool.map(user.insist, keys))
        finally:
            is_over.set()
        assert killing.result() >= 1
    api.wait_until_ready()
    told = [answer.json()["id"] for answer in answers]
    assert len(set(told)) == NUM_KEYS
    assert ids(sessions, Job) == set(told)
    assert [user.insist(key).json()["id"] for key in keys] == told
