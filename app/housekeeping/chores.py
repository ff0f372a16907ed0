"""Work that comes up for all workers at once and is done by one."""

from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from app.database import now_plus, now_utc, read_only
from app.tables import Chore


class ChoreList:
    """Which chore is due. Safe to share between threads and processes."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def take(self, name: str, *, every: timedelta) -> bool:
        """Whether the chore is due and this caller's to do. Then it is due again after ``every``, also when the caller
        dies over it."""
        with read_only(self._sessions) as session:
            due_at, now = session.execute(
                select(select(Chore.due_at).where(Chore.name == name).scalar_subquery(), now_utc())
            ).one()
        if due_at is not None and due_at > now:
            return False
        with self._sessions.begin() as session:
            _make(session, name)
            taken = session.execute(
                update(Chore)
                .where(Chore.name == name, Chore.due_at <= now_utc())
                .values(due_at=now_plus(every))
                .returning(Chore.name)
                .execution_options(synchronize_session=False)
            ).one_or_none()
        return taken is not None

    def reached(self, name: str) -> datetime | None:
        """How far the chore has got."""
        with read_only(self._sessions) as session:
            return session.scalar(select(Chore.reached).where(Chore.name == name))


def note_reached(session: Session, name: str, instant: datetime) -> None:
    """Note how far a chore has got. It never goes back: of two that do it at once, the one behind changes nothing."""
    _make(session, name)
    session.execute(
        update(Chore)
        .where(Chore.name == name, or_(Chore.reached.is_(None), Chore.reached < instant))
        .values(reached=instant)
        .execution_options(synchronize_session=False)
    )


def _make(session: Session, name: str) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(Chore).values(name=name, due_at=now_utc()).on_conflict_do_nothing()
    session.execute(statement)
