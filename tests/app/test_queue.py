"""Telling workers, or not being able to."""

import time

import pytest
from celery import Celery

from app.ids import new_id
from app.jobs.hint import is_job_id
from app.queue import CeleryTaskQueue, LedgerOnlyQueue, TaskQueue


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "amqp://guest:guest@127.0.0.1:1"])
def test_a_dead_broker_costs_seconds_and_raises_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue: TaskQueue = CeleryTaskQueue(url)
    began = time.monotonic()
    assert not queue.send(new_id("job"))
    assert time.monotonic() - began < 10
    tried: list[object] = []
    monkeypatch.setattr(Celery, "send_task", lambda *_args, **_options: tried.append("again"))
    assert not queue.send(new_id("job"))
    assert tried == [], "and the next request does not pay again"
    queue.close()


def test_without_a_broker_nothing_is_owed() -> None:
    queue: TaskQueue = LedgerOnlyQueue()
    assert queue.send(new_id("job"))
    queue.close()


@pytest.mark.parametrize("forged", [None, 7, "", "job_", "clf_" + "0" * 26, "job_" + "0" * 26 + "/..", ["x"], {}])
def test_forged_ids_are_told_apart(forged: object) -> None:
    assert not is_job_id(forged)
    assert is_job_id(new_id("job"))
