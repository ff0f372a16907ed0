"""Finds the services that tests need. With ``CI=true`` a missing one fails the test; elsewhere it is skipped.

Tests run side by side, and other checkouts' tests may run on the same services: what a test is given here is its alone.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import redis
from kombu import Connection
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

POSTGRES_URL = os.environ.get("MUST_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
REDIS_URL = os.environ.get("MUST_TEST_REDIS_URL", "redis://127.0.0.1:6379")
RABBITMQ_URL = os.environ.get("MUST_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672")


def require(url: str, name: str) -> str:
    """``url`` if something listens there; otherwise the test is skipped, or failed where CI promised the service."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0), timeout=3).close()
    except OSError as e:
        message = f"{name} does not answer at {address.hostname}:{address.port}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}: {e}")
        pytest.skip(message)
    return url


@contextmanager
def postgres_database() -> Iterator[str]:
    """URL of an empty PostgreSQL database of its own, dropped afterwards."""
    admin = create_engine(require(POSTGRES_URL, "PostgreSQL"), isolation_level="AUTOCOMMIT")
    name = f"must_test_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@contextmanager
def redis_database() -> Iterator[str]:
    """URL of an empty Redis database that is nobody else's meanwhile, emptied afterwards."""
    require(REDIS_URL, "Redis")
    lock = "must-test-lock"
    for number in range(15, 0, -1):
        url = f"{REDIS_URL}/{number}"
        client = redis.Redis.from_url(url)
        if client.set(lock, "1", nx=True, ex=1800):  # a killed test's goes by itself
            break
    else:
        pytest.fail("all databases of Redis are taken")
    for key in client.scan_iter():
        if key != lock.encode():
            client.delete(key)
    yield url
    client.flushdb()


@contextmanager
def rabbitmq_queue() -> Iterator[str]:
    """Name for a queue of RabbitMQ's default virtual host that nobody else uses; deleted afterwards."""
    name = f"must_test_{secrets.token_hex(6)}"
    with Connection(require(RABBITMQ_URL, "RabbitMQ")) as connection:
        yield name
        connection.default_channel.queue_delete(name)
        connection.default_channel.exchange_delete(name)  # Celery makes one for each queue
