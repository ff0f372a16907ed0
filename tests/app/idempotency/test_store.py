"""Keys on both databases: taken, held, answered, free again."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc
from app.exceptions import Conflict, InvalidInput
from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.idempotency.store import KEPT, IdempotencyStore
from app.tables import IdempotencyKey

Sessions = sessionmaker[Session]

LOCK = timedelta(seconds=60)
REQUEST = KeyedRequest(tenant="t", key="k", digest="0" * 64)
ANSWER = Answer(status_code=202, headers={"Location": "/jobs/1"}, body='{"name": "猫"}')


def claim(sessions: Sessions, request: KeyedRequest = REQUEST, *, lock: timedelta = LOCK) -> Hold | Answer:
    with sessions.begin() as session:
        return IdempotencyStore(session).claim(request, f"token-{next(numbers)}", lock)


numbers = iter(range(10**6))


def held(sessions: Sessions, request: KeyedRequest = REQUEST, *, lock: timedelta = LOCK) -> Hold:
    found = claim(sessions, request, lock=lock)
    assert isinstance(found, Hold)
    return found


def complete(sessions: Sessions, hold: Hold) -> None:
    with sessions.begin() as session:
        IdempotencyStore(session).complete(hold, ANSWER)


def release(sessions: Sessions, hold: Hold) -> None:
    with sessions.begin() as session:
        IdempotencyStore(session).release(hold)


def extend(sessions: Sessions, hold: Hold, lock: timedelta = LOCK) -> bool:
    with sessions.begin() as session:
        return IdempotencyStore(session).extend(hold, lock)


def free_in(sessions: Sessions) -> timedelta:
    with sessions.begin() as session:
        free_at, now = session.execute(select(IdempotencyKey.free_at, now_utc())).one()
    assert isinstance(free_at, datetime)
    return free_at - now


def let_run_out(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(IdempotencyKey).values(free_at=now_plus(timedelta(seconds=-1))))


def swept(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return IdempotencyStore(session).remove_expired()


def test_an_answer_is_given_again_for_a_day(sessions: Sessions) -> None:
    complete(sessions, held(sessions))
    again = claim(sessions)
    assert again == Answer(status_code=202, headers=ANSWER.headers, body=ANSWER.body, is_replay=True)
    assert timedelta(0) <= KEPT - free_in(sessions) < timedelta(minutes=5)
    assert swept(sessions) == 0
    let_run_out(sessions)
    assert isinstance(claim(sessions), Hold), "as if it had never been used"


@pytest.mark.parametrize("answered", [False, True])
def test_a_key_is_of_one_request(sessions: Sessions, *, answered: bool) -> None:
    hold = held(sessions)
    if answered:
        complete(sessions, hold)
    with pytest.raises(InvalidInput, match="idempotency_key_reused"):
        claim(sessions, KeyedRequest(tenant="t", key="k", digest="1" * 64))


def test_keys_are_each_tenants_own_and_exact(sessions: Sessions) -> None:
    complete(sessions, held(sessions))
    for other in (KeyedRequest(tenant="u", key="k", digest="1" * 64), KeyedRequest(tenant="t", key="K", digest="1")):
        held(sessions, other)


def test_a_request_at_work_is_said_to_be_so_until_its_lock_runs_out(sessions: Sessions) -> None:
    first = held(sessions)
    with pytest.raises(Conflict, match="idempotency_in_flight") as told:
        claim(sessions)
    assert told.value.retry_after_s is not None
    let_run_out(sessions)
    second = held(sessions)
    assert not extend(sessions, first), "it was taken over"
    assert extend(sessions, second)
    with pytest.raises(Conflict, match="idempotency_in_flight"):
        claim(sessions)


def test_a_lock_that_is_renewed_does_not_run_out(sessions: Sessions) -> None:
    hold = held(sessions, lock=timedelta(seconds=1))
    assert extend(sessions, hold)
    assert free_in(sessions) > LOCK / 2


def test_a_request_that_failed_frees_its_key_for_any_other(sessions: Sessions) -> None:
    release(sessions, held(sessions))
    held(sessions, KeyedRequest(tenant="t", key="k", digest="1" * 64))


def test_what_was_answered_or_taken_over_is_not_released(sessions: Sessions) -> None:
    first = held(sessions)
    let_run_out(sessions)
    second = held(sessions)
    release(sessions, first)
    with pytest.raises(Conflict, match="idempotency_in_flight"):
        claim(sessions)
    complete(sessions, second)
    release(sessions, second)
    assert isinstance(claim(sessions), Answer)
    with pytest.raises(Conflict, match="idempotency_in_flight"):
        complete(sessions, second)


def test_sweeping_removes_what_is_free_and_nothing_else(sessions: Sessions) -> None:
    held(sessions)
    complete(sessions, held(sessions, KeyedRequest(tenant="t", key="2", digest="1")))
    let_run_out(sessions)
    complete(sessions, held(sessions, KeyedRequest(tenant="t", key="3", digest="1")))
    held(sessions, KeyedRequest(tenant="t", key="4", digest="1"))
    assert swept(sessions) == 2
    with sessions.begin() as session:
        assert set(session.scalars(select(IdempotencyKey.key))) == {"3", "4"}


def test_of_many_at_once_one_gets_the_key(sessions: Sessions) -> None:
    """Twice: a key that nobody used, and one whose lock has run out."""
    barrier = Barrier(8)

    def ask(_: int) -> bool:
        barrier.wait(timeout=60)
        try:
            return isinstance(claim(sessions), Hold)
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert sum(pool.map(ask, range(8))) == 1
            let_run_out(sessions)
