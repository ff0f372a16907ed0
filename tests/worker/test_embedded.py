"""Threads that ask for work whatever happens."""

from datetime import timedelta

import pytest

from app.jobs.errors import LedgerUnavailable
from tests.support.workers import wait_for
from worker.embedded import EmbeddedWorker
from worker.supervisor import Supervisor


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), OSError(5, "disk"), ValueError("anything")])
def test_nothing_ends_a_slot(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    asked: list[int] = []

    def run_one(_: object) -> bool:
        asked.append(1)
        if len(asked) < 3:
            raise failure
        return False

    monkeypatch.setattr(Supervisor, "run_one", run_one)
    monkeypatch.setattr(Supervisor, "stop", lambda _: None)
    worker = EmbeddedWorker(object.__new__(Supervisor), concurrency=1, poll_interval=timedelta(seconds=0.01))
    worker.start()
    wait_for(lambda: len(asked) > 4, what="the slot to ask on")
    worker.stop()
