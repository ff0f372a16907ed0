"""A promotion beside the deletion of what is to be promoted, each step where it hurts most."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, Select, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.store import ClassifierStore
from app.exceptions import Conflict
from app.ids import new_id
from app.jobs.ledger import Ledger
from app.jobs.messages import Publication
from app.jobs.store import JobStore
from tests.support.databases import waits_for_a_lock
from tests.support.jobs import add_job, read_job, verdict
from tests.support.workers import wait_for

Sessions = sessionmaker[Session]


@pytest.fixture
def job_id(sessions: Sessions) -> str:
    """A job that answers zero-shot and keeps an adapted classifier."""
    job_id = add_job(sessions)
    ledger = Ledger(sessions)
    claim = ledger.claim("w", timedelta(seconds=60), job_id)
    assert claim is not None
    files = {"bundle.json": "0" * 64}
    refused = Publication(
        classifier_id=new_id("clf"), files=files, version="1" * 64, metrics={}, verdict=verdict("zero_shot")
    )
    ledger.publish(claim, refused)
    return job_id


def promote(sessions: Sessions, job_id: str) -> None:
    with sessions.begin() as session:
        JobStore(session).request_promotion(job_id)


def delete(sessions: Sessions, classifier_id: str) -> None:
    with sessions.begin() as session:
        ClassifierStore(session).delete(classifier_id)


def adapted_of(sessions: Sessions, job_id: str) -> str:
    adapted = read_job(sessions, job_id).adapted_classifier_id
    assert adapted is not None
    return adapted


@pytest.fixture(params=[True, False], ids=["locked", "unlocked"])
def is_locked(request: pytest.FixtureRequest, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the promotion locks the classifier. When not, the control, the database's own check is what fails."""
    locked: bool = request.param
    if not locked:
        if engine.dialect.name != "postgresql":
            pytest.skip("SQLite has one writer at a time, and no locks of rows")
        monkeypatch.setattr(Select, "with_for_update", lambda self, **_: self)
    return locked


def before_its_update(engine: Engine, act: Callable[[], object]) -> None:
    """Do something once when the promotion has looked and is about to write."""

    waiting = [act]

    def look(connection: object, cursor: object, statement: str, *_: object) -> None:
        if waiting and statement.startswith("UPDATE jobs SET classifier_id"):
            waiting.pop()()

    event.listen(engine, "before_cursor_execute", look)


def test_a_deletion_between_its_read_and_its_write_waits(
    engine: Engine, sessions: Sessions, job_id: str, *, is_locked: bool
) -> None:
    adapted = adapted_of(sessions, job_id)
    deletions: list[Future[None]] = []

    def start_deleting() -> None:
        deletions.append(pool.submit(delete, sessions, adapted))
        if engine.dialect.name == "postgresql":
            wait_for(lambda: deletions[0].done() or waits_for_a_lock(engine), what="the deletion")

    with ThreadPoolExecutor(1) as pool:
        before_its_update(engine, start_deleting)
        if is_locked:
            promote(sessions, job_id)
            with pytest.raises(IntegrityError):  # told as resource_in_use
                deletions[0].result(timeout=60)
            assert read_job(sessions, job_id).classifier_id == adapted
        else:
            with pytest.raises(IntegrityError):
                promote(sessions, job_id)
            deletions[0].result(timeout=60)


def test_a_deletion_that_was_first_is_waited_for(
    engine: Engine, sessions: Sessions, job_id: str, *, is_locked: bool
) -> None:
    adapted = adapted_of(sessions, job_id)
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as deleting:
            ClassifierStore(deleting).delete(adapted)
            promotion = pool.submit(promote, sessions, job_id)
            if engine.dialect.name == "postgresql":
                wait_for(lambda: waits_for_a_lock(engine), what="the promotion")
        with pytest.raises(Conflict if is_locked else IntegrityError) as refused:
            promotion.result(timeout=60)
    if is_locked:
        assert getattr(refused.value, "code", None) == "not_promotable"
    after = read_job(sessions, job_id)
    assert after.classifier_id is not None
    assert after.adapted_classifier_id is None
