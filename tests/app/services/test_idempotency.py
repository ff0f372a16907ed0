"""Requests with a key happen once: what crashes, failures and zombies leave. The effect is a dataset's row."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.datasets.store import DatasetStore
from app.exceptions import Conflict, NotFound
from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.idempotency.recorder import Recorder
from app.idempotency.store import IdempotencyStore
from app.ids import new_id
from app.services.idempotency import IdempotencyService
from app.tables import Dataset, IdempotencyKey
from tests.support.workers import wait_for

Sessions = sessionmaker[Session]

REQUEST = KeyedRequest(tenant="t", key="k", digest="0" * 64)
LONG = timedelta(hours=1)


class Killed(BaseException):
    """The process ends here: nothing that would clean up after an error runs."""


def shown(dataset_id: str) -> Answer:
    return Answer(status_code=201, headers={}, body=f'"{dataset_id}"')


def create(sessions: Sessions, record: Recorder[str], before_record: Callable[[], Any] | None = None) -> None:
    dataset_id = new_id("ds")
    with sessions.begin() as session:
        DatasetStore(session).add(dataset_id, "made")
        session.flush()
        if before_record is not None:
            before_record()
        record(session, dataset_id)


def once(sessions: Sessions, creating: Callable[[Recorder[str]], object] | None = None) -> Answer:
    service = IdempotencyService(sessions=sessions, renew_every=LONG)
    return service.once(REQUEST, creating or (lambda record: create(sessions, record)), shown)


def num_datasets(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return session.scalar(select(func.count()).select_from(Dataset)) or 0


def free_at(sessions: Sessions) -> datetime:
    with sessions.begin() as session:
        return session.scalars(select(IdempotencyKey.free_at)).one()


def let_the_lock_run_out(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.status_code.is_(None))
            .values(free_at=now_plus(timedelta(seconds=-1)))
        )


def test_the_second_time_gets_the_answer_of_the_first(sessions: Sessions) -> None:
    first, second = once(sessions), once(sessions)
    assert (first.is_replay, second.is_replay) == (False, True)
    assert first.body == second.body
    assert num_datasets(sessions) == 1


def test_a_request_that_failed_left_nothing_and_may_be_sent_again(sessions: Sessions) -> None:
    def failing(record: Recorder[str]) -> None:
        with sessions.begin() as session:
            record(session, "ds_1")
            raise NotFound

    with pytest.raises(NotFound):
        once(sessions, failing)
    assert not once(sessions).is_replay
    assert num_datasets(sessions) == 1


def test_what_fails_after_the_commit_has_been_answered(sessions: Sessions) -> None:
    def failing(record: Recorder[str]) -> None:
        create(sessions, record)
        raise OperationalError("UPDATE", {}, Exception("the database is gone"))

    with pytest.raises(OperationalError):
        once(sessions, failing)
    assert once(sessions).is_replay
    assert num_datasets(sessions) == 1


@pytest.fixture
def no_cleaning_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IdempotencyService, "_release", lambda *_: None)


@pytest.mark.usefixtures("no_cleaning_up")
def test_killed_before_the_commit_nothing_exists_and_the_lock_runs_out(sessions: Sessions) -> None:
    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        once(sessions, lambda record: create(sessions, record, killed))
    with pytest.raises(Conflict, match="idempotency_in_flight"):
        once(sessions)
    let_the_lock_run_out(sessions)
    assert not once(sessions).is_replay
    assert num_datasets(sessions) == 1


@pytest.mark.usefixtures("no_cleaning_up")
@pytest.mark.parametrize("recorded", ["with_the_effect", "afterwards"])
def test_killed_after_the_commit_the_answer_is_there(sessions: Sessions, recorded: str) -> None:
    """Afterwards, in a transaction of its own, is the negative control: there the effect must be seen twice."""

    def killed(record: Recorder[str]) -> None:
        if recorded == "with_the_effect":
            create(sessions, record)
        else:
            create(sessions, lambda *_: None)  # the transaction of `record` would come now
        raise Killed

    with pytest.raises(Killed):
        once(sessions, killed)
    let_the_lock_run_out(sessions)
    assert once(sessions).is_replay == (recorded == "with_the_effect")
    assert num_datasets(sessions) == (1 if recorded == "with_the_effect" else 2)


@pytest.mark.parametrize("fence", ["fenced", "unfenced"])
def test_a_zombie_commits_nothing(sessions: Sessions, monkeypatch: pytest.MonkeyPatch, fence: str) -> None:
    """It stops for longer than its lock lasts, another does the request, and it goes on. Unfenced is the negative
    control: there the effect must be seen twice."""
    if fence == "unfenced":
        monkeypatch.setattr(IdempotencyStore, "_fence", staticmethod(lambda hold: (IdempotencyKey.key == hold.key,)))
    heirs: list[Answer] = []

    def zombie(record: Recorder[str]) -> None:
        let_the_lock_run_out(sessions)
        heirs.append(once(sessions))
        create(sessions, record)

    if fence == "unfenced":
        assert not once(sessions, zombie).is_replay
        assert num_datasets(sessions) == 2
        return
    with pytest.raises(Conflict, match="idempotency_in_flight"):
        once(sessions, zombie)
    assert num_datasets(sessions) == 1
    again = once(sessions)
    assert (again.is_replay, again.body) == (True, heirs[0].body)


@pytest.mark.parametrize("renewed", [True, False])
def test_a_long_request_keeps_its_lock(sessions: Sessions, *, renewed: bool) -> None:
    """Not renewed is the negative control: there another takes the key meanwhile."""
    service = IdempotencyService(sessions=sessions, renew_every=timedelta(seconds=0.05) if renewed else LONG)

    def long(record: Recorder[str]) -> None:
        let_the_lock_run_out(sessions)
        if renewed:
            ran_out = free_at(sessions)
            wait_for(lambda: free_at(sessions) > ran_out, what="the lock to be renewed")
            with pytest.raises(Conflict, match="idempotency_in_flight"):
                once(sessions)
        else:
            assert not once(sessions).is_replay
        create(sessions, record)

    if renewed:
        assert not service.once(REQUEST, long, shown).is_replay
        assert once(sessions).is_replay
    else:
        with pytest.raises(Conflict, match="idempotency_in_flight"):
            service.once(REQUEST, long, shown)
    assert num_datasets(sessions) == 1


def test_a_database_that_fails_a_renewal_costs_nothing(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    extend = IdempotencyStore.extend

    def failing_once(store: IdempotencyStore, hold: Hold, lock: timedelta) -> bool:
        asked.append(hold)
        if len(asked) == 1:
            raise OperationalError("UPDATE", {}, Exception("the database is gone"))
        return extend(store, hold, lock)

    monkeypatch.setattr(IdempotencyStore, "extend", failing_once)
    service = IdempotencyService(sessions=sessions, renew_every=timedelta(seconds=0.05))

    def long(record: Recorder[str]) -> None:
        wait_for(lambda: len(asked) >= 2, what="a second renewal")
        create(sessions, record)

    assert not service.once(REQUEST, long, shown).is_replay
    assert num_datasets(sessions) == 1


def test_a_key_that_cannot_be_freed_does_not_hide_why(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OperationalError("DELETE", {}, Exception("the database is gone"))

    def failing(_: Recorder[str]) -> None:
        raise NotFound

    monkeypatch.setattr(IdempotencyStore, "release", gone)
    with pytest.raises(NotFound):
        once(sessions, failing)
