"""Holds: while there is one, no blob is removed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import structlog
from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc
from app.ids import new_id
from app.tables import BlobHold

_log = structlog.get_logger(__name__)

HELD_FOR = timedelta(minutes=10)
"""What is left of a hold when its holder dies."""
RENEWED_EVERY = timedelta(minutes=1)


def is_held(session: Session) -> bool:
    """Whether somebody needs all blobs to stay."""
    return bool(session.scalar(select(exists().where(BlobHold.held_until > now_utc()))))


@contextmanager
def holding(sessions: sessionmaker[Session]) -> Iterator[None]:
    """Have no blob removed within the block that a row refers to when it begins.

    A collector asks `is_held` after it has read the rows and before it removes anything: either it sees the hold, or
    what it removes was garbage already. The block's own reading of rows comes after this.
    """
    hold_id = new_id("hold")
    ended = Event()

    def renew() -> None:
        while not ended.wait(RENEWED_EVERY.total_seconds()):
            try:
                with sessions.begin() as session:
                    renewed = update(BlobHold).where(BlobHold.id == hold_id).values(held_until=now_plus(HELD_FOR))
                    session.execute(renewed.execution_options(synchronize_session=False))
            except SQLAlchemyError as e:
                _log.warning("hold_not_renewed", error=str(e)[:300])

    with sessions.begin() as session:
        session.execute(delete(BlobHold).where(BlobHold.held_until < now_utc()))
        session.execute(insert(BlobHold).values(id=hold_id, held_until=now_plus(HELD_FOR)))
    renewer = Thread(target=renew, name="blob-hold", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        with sessions.begin() as session:
            session.execute(delete(BlobHold).where(BlobHold.id == hold_id))
