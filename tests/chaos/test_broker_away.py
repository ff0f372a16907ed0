"""An API and a worker that start before their broker, and a broker that freezes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.jobs.hint import QUEUE
from app.jobs.status import JobStatus
from tests.chaos.test_broker import wait_for_sweeps
from tests.chaos.test_workers import status, wait_until
from tests.support.archives import zipped
from tests.support.brokers import RedisServer
from tests.support.databases import empty_database
from tests.support.images import sound
from tests.support.service import running_service
from tests.support.stacks import Stack
from tests.support.tiny import CLASSES, make_base
from tests.support.workers import WorkerProcess, wait_for

StartWorker = Callable[..., WorkerProcess]
Sessions = sessionmaker[Session]

pytestmark = pytest.mark.services


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Not started yet."""
    server = RedisServer(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer) -> Stack:
    """PostgreSQL with this Redis."""
    return Stack(database_url=empty_database("postgresql", request, tmp_path), broker_url=redis.url, queue=QUEUE)


def health(client: httpx.Client) -> tuple[int, dict[str, Any]]:
    answer = client.get("/health/ready")
    return answer.status_code, answer.json()


def submit(client: httpx.Client, dataset_id: str) -> str:
    answer = client.post("/jobs", json={"dataset_id": dataset_id, "classes": CLASSES})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_an_api_whose_broker_is_away_or_frozen_is_ready_but_degraded_and_its_jobs_start_later(
    start_worker: StartWorker, sessions: Sessions, stack: Stack, redis: RedisServer, tmp_path: Path
) -> None:
    """The worker takes jobs on hints alone, so that nothing starts before the broker is there."""
    degraded = (200, {"status": "degraded", "database": True, "broker": False})
    settings = {"MUST_MODELS": json.dumps({"tiny": make_base(tmp_path / "base")}), "MUST_DEFAULT_MODEL": "tiny"}
    with running_service(tmp_path / "service", {**stack.settings, **settings}) as service:
        client = service.client
        assert health(client) == degraded
        images = zipped({f"{n}.png": sound(n) for n in range(4)})
        dataset_id = client.post("/datasets", files={"archive": ("four.zip", images)}).json()["id"]
        first = submit(client, dataset_id)
        start_worker("--no-asking", data_dir=str(service.data_dir), models='{"tiny": "local-dir:/nowhere"}')
        wait_for_sweeps(sessions, 5)
        assert status(sessions, first) is JobStatus.QUEUED

        redis.start()
        wait_until(sessions, first, JobStatus.SUCCEEDED)
        wait_for(lambda: health(client)[1]["status"] == "ok", what="the API to see the broker")

        with redis.frozen():
            assert health(client) == degraded
            second = submit(client, dataset_id)  # and no wait without end; see tests/app/jobs/test_hint.py
            assert health(client) == degraded
        wait_until(sessions, second, JobStatus.SUCCEEDED)
