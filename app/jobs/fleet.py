"""Which workers there are. Nothing is decided by it: it is what waiting jobs are told by (app/jobs/outlook.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from app.database import now_plus, now_utc
from app.tables import Worker

FORGET_AFTER = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Presence:
    """A worker, as it introduces itself."""

    owner: str
    num_slots: int
    """Jobs that it runs at a time."""
    num_gpus: int
    """Most GPUs that one job can get of it."""


class FleetStore:
    """Rows of workers on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check_in(self, presence: Presence, again_within: timedelta) -> None:
        """Note that a worker is there, and when it says so again at the latest. Forgets those long gone."""
        values = {
            "num_slots": presence.num_slots,
            "num_gpus": presence.num_gpus,
            "expected_until": now_plus(again_within),
        }
        known = self._session.execute(
            update(Worker)
            .where(Worker.owner == presence.owner)
            .values(values)
            .returning(Worker.owner)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if known is None:
            self._session.execute(insert(Worker).values(owner=presence.owner, **values))
        self._session.execute(delete(Worker).where(Worker.expected_until < now_plus(-FORGET_AFTER)))

    def check_out(self, owner: str) -> None:
        """Note that a worker is leaving."""
        self._session.execute(delete(Worker).where(Worker.owner == owner))

    def present(self) -> Sequence[Presence]:
        """The workers that are where they said they would be."""
        rows = self._session.scalars(select(Worker).where(Worker.expected_until >= now_utc())).all()
        return [Presence(owner=row.owner, num_slots=row.num_slots, num_gpus=row.num_gpus) for row in rows]
