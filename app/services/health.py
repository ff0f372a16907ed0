"""Whether the service can do its work, told truthfully."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.database import read_only
from app.queue import TaskQueue


@dataclass(frozen=True)
class Health:
    """What works. Without the database nothing does; without the broker jobs are accepted and start later."""

    database: bool
    broker: bool

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.database

    @property
    def status(self) -> str:
        """``ok``, ``degraded`` or ``unavailable``."""
        if not self.ready:
            return "unavailable"
        return "ok" if self.broker else "degraded"


class HealthService:
    """Asks the parts."""

    def __init__(self, *, sessions: sessionmaker[Session], queue: TaskQueue) -> None:
        self._sessions = sessions
        self._queue = queue

    def check(self) -> Health:
        """Look at each part now."""
        return Health(database=self._database(), broker=self._queue.is_reachable())

    def _database(self) -> bool:
        try:
            with read_only(self._sessions) as session:
                session.execute(text("SELECT 1 FROM jobs LIMIT 1"))
        except SQLAlchemyError:
            return False
        return True
