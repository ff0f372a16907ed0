"""The three sets of a database and a broker that the service is made for, in turn.

Import the fixtures into a conftest to use them. A test that wants fewer is marked with `only`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from app.jobs import hint
from tests.support.databases import empty_database
from tests.support.services import RABBITMQ_URL, rabbitmq_queue, redis_database

EMBEDDED = pytest.param("sqlite", id="embedded")
REDIS = pytest.param("redis", id="redis", marks=pytest.mark.services)
RABBITMQ = pytest.param("rabbitmq", id="rabbitmq", marks=pytest.mark.services)
ALL = [EMBEDDED, REDIS, RABBITMQ]


def only(*stacks: ParameterSet) -> pytest.MarkDecorator:
    """Mark: run on these alone."""
    return pytest.mark.parametrize("stack", stacks, indirect=True)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A database without rows, and a broker without messages."""

    database_url: str
    broker_url: str | None
    """None for SQLite, where workers ask the ledger alone."""
    queue: str
    """Of the broker; this test's own."""

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables for an API and its workers."""
        return {
            "MUST_DATABASE_URL": self.database_url,
            **({"MUST_BROKER_URL": self.broker_url} if self.broker_url else {}),
            "TEST_QUEUE": self.queue,  # for tests/support/worker_main.py and api_main.py
        }


@pytest.fixture(params=ALL)
def stack(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """SQLite alone, PostgreSQL with Redis, PostgreSQL with RabbitMQ. What this process sends goes to the same queue."""
    kind = "sqlite" if request.param == "sqlite" else "postgresql"
    database_url = empty_database(kind, request, tmp_path)
    broker_url, queue = None, hint.QUEUE
    with ExitStack() as held:
        if request.param == "redis":
            broker_url = held.enter_context(redis_database())
        elif request.param == "rabbitmq":
            broker_url, queue = RABBITMQ_URL, held.enter_context(rabbitmq_queue())
        monkeypatch.setattr(hint, "QUEUE", queue)
        yield Stack(database_url=database_url, broker_url=broker_url, queue=queue)


@pytest.fixture
def database_url(stack: Stack) -> str:
    """URL of the stack's database; for `engine` and `sessions`."""
    return stack.database_url
