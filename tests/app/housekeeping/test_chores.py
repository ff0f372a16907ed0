"""A chore that is due is done once, by one."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.housekeeping.chores import ChoreList, note_reached
from app.tables import Chore

HOUR = timedelta(hours=1)


def test_each_chore_is_due_at_first_and_then_by_the_hour(sessions: sessionmaker[Session]) -> None:
    chores = ChoreList(sessions)
    assert [chores.take(name, every=HOUR) for name in ("a", "b", "a", "b")] == [True, True, False, False]
    with sessions.begin() as session:
        session.execute(update(Chore).where(Chore.name == "a").values(due_at=now_plus(-HOUR)))
    assert [chores.take(name, every=HOUR) for name in ("a", "b", "a", "b")] == [True, False, False, False]


def test_of_many_that_ask_at_once_one_gets_it(sessions: sessionmaker[Session]) -> None:
    barrier = Barrier(6)

    def ask(_: int) -> bool:
        barrier.wait(timeout=30)
        return ChoreList(sessions).take("a", every=HOUR)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(ask, range(6))) == 1


def test_how_far_it_got_never_goes_back(sessions: sessionmaker[Session]) -> None:
    chores, now = ChoreList(sessions), datetime.now(UTC)
    assert chores.reached("a") is None
    for instant in (now, now - HOUR, now + HOUR, now):
        with sessions.begin() as session:
            note_reached(session, "a", instant)
    assert chores.reached("a") == now + HOUR
    assert chores.reached("b") is None
