"""Rows of aliases <-> messages; the caller owns the transaction."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.classifiers.messages import AliasMoveView, AliasView
from app.database import now_utc
from app.exceptions import Conflict, NotFound
from app.tables import Alias, AliasMove

_Moved = tuple[int, datetime]


class AliasStore:
    """Reads and guarded writes of one tenant's aliases on one session."""

    def __init__(self, session: Session, tenant: str) -> None:
        self._session = session
        self._tenant = tenant

    def get(self, name: str) -> AliasView | None:
        """The alias of a name, or None when there is none."""
        row = self._session.scalar(select(Alias).where(*self._named(name)))
        return None if row is None else _view(row)

    def list(self, *, limit: int, after: str | None = None) -> Sequence[AliasView]:
        """Up to ``limit`` aliases by name; with ``after``, those behind that name."""
        query = select(Alias).where(Alias.tenant == self._tenant).order_by(Alias.name).limit(limit)
        return [
            _view(row) for row in self._session.scalars(query if after is None else query.where(Alias.name > after))
        ]

    def moves(self, name: str, *, limit: int) -> Sequence[AliasMoveView]:
        """The latest ``limit`` moves of an alias, newest first."""
        query = (
            select(AliasMove)
            .where(AliasMove.tenant == self._tenant, AliasMove.name == name)
            .order_by(AliasMove.number.desc())
            .limit(limit)
        )
        return [
            AliasMoveView(classifier_id=row.classifier_id, moved_at=row.moved_at)
            for row in self._session.scalars(query)
        ]

    def move(self, name: str, classifier_id: str, *, since: AliasView | None = None) -> None:
        """Point a name at a classifier; nothing changes when it points there.

        With ``since``, only if nobody has moved it since it was seen so, not even there and back: raises `Conflict`
        ``alias_moved`` otherwise. Raises `NotFound` when there is no such classifier.
        """
        try:
            moved = self._try_to_point(name, classifier_id, since)
        except IntegrityError:  # somebody else made a new alias of this name just now, or the classifier is gone
            try:
                moved = self._try_to_point(name, classifier_id, since)
            except IntegrityError as e:
                raise NotFound from e
        if moved is not None:
            number, at = moved
            move = insert(AliasMove).values(
                tenant=self._tenant, name=name, number=number, classifier_id=classifier_id, moved_at=at
            )
            self._session.execute(move)

    def delete(self, name: str) -> None:
        """Take a name away, with its history. Raises `NotFound`."""
        gone = self._session.execute(delete(Alias).where(*self._named(name)).returning(Alias.name)).one_or_none()
        if gone is None:
            raise NotFound

    def _try_to_point(self, name: str, classifier_id: str, since: AliasView | None) -> _Moved | None:
        with self._session.begin_nested():
            return self._point(name, classifier_id, since)

    def _point(self, name: str, classifier_id: str, since: AliasView | None) -> _Moved | None:
        """Returns number and time of the move; None when there was nothing to do."""
        # Locked, so that what is found here holds until the end of the transaction.
        query = select(Alias.classifier_id, Alias.num_moves, Alias.moved_at).where(*self._named(name))
        now = self._session.execute(query.with_for_update()).one_or_none()
        # The number alone would be the same again for a name that was taken away and made anew.
        if since is not None and (now is None or (now.num_moves, now.moved_at) != (since.num_moves, since.moved_at)):
            raise Conflict("alias_moved", "The alias was moved by somebody else just now.")
        if now is not None and now.classifier_id == classifier_id:
            return None
        if now is None:
            new = insert(Alias).values(
                tenant=self._tenant, name=name, classifier_id=classifier_id, num_moves=1, moved_at=now_utc()
            )
            return 1, self._session.scalars(new.returning(Alias.moved_at)).one()
        moved = (
            update(Alias)
            .where(*self._named(name))
            .values(classifier_id=classifier_id, num_moves=Alias.num_moves + 1, moved_at=now_utc())
            .returning(Alias.num_moves, Alias.moved_at)
            .execution_options(synchronize_session=False)
        )
        number, at = self._session.execute(moved).one()
        return number, at

    def _named(self, name: str) -> tuple[ColumnElement[bool], ...]:
        return (Alias.tenant == self._tenant, Alias.name == name)


def _view(row: Alias) -> AliasView:
    return AliasView(name=row.name, classifier_id=row.classifier_id, num_moves=row.num_moves, moved_at=row.moved_at)
