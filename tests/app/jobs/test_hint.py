"""Brokers that go, come back, are full or freeze: what sending a hint costs, and that later hints are taken."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from app.ids import new_id
from app.jobs import hint
from app.jobs.hint import HintSender
from tests.support.brokers import RedisServer, redis_server
from tests.support.clock import Clock
from tests.support.workers import wait_for


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def send(sender: HintSender) -> bool:
    return sender.send(new_id("job"))


def taken(sender: HintSender, clock: Clock) -> bool:
    """Whether a hint is taken; the pause after one that was not is over."""
    clock.now += HintSender.PAUSE_S
    return send(sender)


@pytest.mark.services
def test_hints_are_taken_again_once_the_broker_is_back_and_nothing_is_left_open(redis: RedisServer) -> None:
    clock = Clock()
    sender = HintSender(redis.url, clock=clock)
    assert send(sender)
    for _ in range(3):
        redis.stop()
        assert not send(sender)
        redis.start()
        assert not send(sender), "for a while nobody tries"
        assert not sender.is_reachable()
        wait_for(lambda: taken(sender, clock), what="a hint to be taken")
        wait_for(sender.is_reachable)
        redis.restart()
        assert send(sender), "a restart between two hints is not even noticed"
    assert redis.client.llen(hint.QUEUE) == 1
    assert len(redis.client.client_list()) == 1, "whoever asks"
    sender.close()


@pytest.mark.services
def test_a_full_broker_takes_no_hint_and_is_said_to_be_away(redis: RedisServer) -> None:
    clock = Clock()
    sender = HintSender(redis.url, clock=clock)
    with redis.full():
        assert not send(sender)
        assert not sender.is_reachable()
    wait_for(lambda: taken(sender, clock), what="a hint to be taken")
    sender.close()


@pytest.mark.services
def test_a_frozen_broker_costs_seconds(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control, a sender without limits of time, is still waiting when the other has given up twice."""
    sender = HintSender(redis.url)
    with monkeypatch.context() as patched:
        patched.setattr(hint, "_sender_options", lambda url: {"broker_url": url})
        patient = HintSender(redis.url)
    sent: list[bool] = []
    waiting = threading.Thread(target=lambda: sent.append(send(patient)), daemon=True)
    with redis.frozen():
        waiting.start()
        assert not sender.is_reachable()
        assert not send(sender)
        assert waiting.is_alive()
        assert sent == []
    waiting.join(timeout=60)
    assert sent == [True]
    sender.close()
    patient.close()


def test_while_a_broker_is_down_one_at_a_time_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    sender = HintSender("redis://127.0.0.1:1", clock=clock)
    assert not send(sender)
    tried, go_on = threading.Event(), threading.Event()

    def wait_and_fail(*_arguments: object, **_options: object) -> None:
        assert not tried.is_set(), "somebody tries already"
        tried.set()
        go_on.wait(60)
        raise OSError

    monkeypatch.setattr(Celery, "send_task", wait_and_fail)
    clock.now += HintSender.PAUSE_S
    one = threading.Thread(target=send, args=(sender,), daemon=True)
    one.start()
    assert tried.wait(60)
    assert not send(sender)
    go_on.set()
    one.join(timeout=60)
    assert not one.is_alive()
    sender.close()
