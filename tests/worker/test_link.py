"""The line to the ledger ends when the attempt does, whoever goes on talking."""

from collections.abc import Iterator
from datetime import timedelta
from threading import Event, Thread
from typing import Any, cast

import pytest

from app.jobs.ledger import Ledger
from app.jobs.messages import Beat, Claim, LogStream
from worker import link
from worker.job_log import JobLog
from worker.link import LedgerLink
from worker.readable import Redactor
from worker.relay import Relay

LEASE = timedelta(seconds=60)
CLAIM = Claim(
    job_id="job_1", owner="w", attempt=1, ordinal=1, max_attempts=1, dataset_id="ds_1", base_model="tiny", classes=[],
    templates=[], hyperparameters={}, seed=0,
)  # fmt: skip


class Prompting:
    """A ledger; with each report that it gets, a process that nobody waits for has written another line."""

    def __init__(self, job_log: JobLog) -> None:
        self.silenced = Event()
        self._job_log = job_log

    def beat(self, *_: Any) -> Beat:
        return Beat(cancel_requested=False, runtime_exceeded=False)

    def report(self, *_: Any) -> Beat:
        if not self.silenced.is_set():
            self._job_log.take_in(LogStream.STDERR, b"still here\n")
        return self.beat()


@pytest.fixture
def job_log() -> JobLog:
    return JobLog(Redactor())


@pytest.fixture
def ledger(job_log: JobLog) -> Iterator[Prompting]:
    ledger = Prompting(job_log)
    yield ledger
    ledger.silenced.set()


def closing(ledger: Prompting, job_log: JobLog) -> Thread:
    """The end of an attempt, awaited on a thread."""
    job_log.take_in(LogStream.STDERR, b"first\n")
    line = LedgerLink(
        cast(Ledger, ledger), CLAIM, Relay(), job_log, lease=LEASE, claimed_at=0.0, on_change=lambda: None
    )

    def run() -> None:
        with line:
            pass

    thread = Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_the_link_closes_though_somebody_goes_on_talking(ledger: Prompting, job_log: JobLog) -> None:
    thread = closing(ledger, job_log)
    thread.join(60)
    assert not thread.is_alive()


def test_negative_control_of_last_reports_without_bound(
    ledger: Prompting, job_log: JobLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "MAX_LAST_REPORTS", 10**12)
    thread = closing(ledger, job_log)
    thread.join(5)
    assert thread.is_alive()
    ledger.silenced.set()
    thread.join(60)
    assert not thread.is_alive(), "and it was the talking that held it up"
