"""Whoever needs all blobs to stay says so, and does not say so for ever."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus
from app.housekeeping import holds
from app.housekeeping.holds import holding, is_held
from app.tables import BlobHold
from tests.support.workers import wait_for

Sessions = sessionmaker[Session]


def held(sessions: Sessions) -> bool:
    with sessions.begin() as session:
        return is_held(session)


def expire(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(BlobHold).values(held_until=now_plus(-timedelta(seconds=1))))


def test_as_long_as_anybody_holds(sessions: Sessions) -> None:
    assert not held(sessions)
    with holding(sessions):
        with holding(sessions):
            assert held(sessions)
        assert held(sessions)
    assert not held(sessions)


def test_a_hold_ends_with_its_block_however_that_ends(sessions: Sessions) -> None:
    with pytest.raises(RuntimeError), holding(sessions):
        raise RuntimeError
    assert not held(sessions)


def test_it_is_renewed(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "RENEWED_EVERY", timedelta(milliseconds=20))
    with holding(sessions):
        expire(sessions)
        wait_for(lambda: held(sessions), what="the hold to be renewed")


def test_a_dead_holders_hold_runs_out_and_is_forgotten(sessions: Sessions) -> None:
    with holding(sessions):  # renewed a minute later
        expire(sessions)
        assert not held(sessions)
        with holding(sessions), sessions.begin() as session:
            assert session.scalar(select(func.count()).select_from(BlobHold)) == 1
