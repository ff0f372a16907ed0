"""Rows of Idempotency-Keys; the caller owns the transaction. Times are the database's.

A key is free when there is no row, or the row's ``free_at`` has passed. Taking it is one guarded upsert. Whoever took
it carries a token from then on, and writes that find another token match no row (docs/decisions/013-idempotency.md).
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.database import now_plus, now_utc
from app.exceptions import Conflict, InvalidInput
from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.tables import IdempotencyKey

KEPT = timedelta(hours=24)
"""How long an answer can be had again."""
RETRY_AFTER_S = 2


class IdempotencyStore:
    """Reads and writes on one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, request: KeyedRequest, token: str, lock: timedelta) -> Hold | Answer:
        """Take the key for ``lock``, or get the answer that the same request was given before.

        Raises `InvalidInput` ``idempotency_key_reused`` when the key was used for another request, and `Conflict`
        ``idempotency_in_flight`` while the same one is at work.
        """
        if self._take(request, token, lock):
            return Hold(tenant=request.tenant, key=request.key, token=token)
        row = self._session.get(IdempotencyKey, (request.tenant, request.key), populate_existing=True)
        if row is None:
            raise _in_flight()  # it was until just now
        if row.digest != request.digest:
            raise InvalidInput(
                "idempotency_key_reused", "The Idempotency-Key was used for another request.", param="idempotency_key"
            )
        if row.status_code is None or row.body is None:
            raise _in_flight()
        return Answer(status_code=row.status_code, headers=row.headers or {}, body=row.body, is_replay=True)

    def extend(self, hold: Hold, lock: timedelta) -> bool:
        """Hold the key for ``lock`` from now; False when it is held no more."""
        extended = self._session.execute(
            update(IdempotencyKey)
            .where(*self._fence(hold))
            .values(free_at=now_plus(lock))
            .returning(IdempotencyKey.key)
            .execution_options(synchronize_session=False)
        )
        return extended.one_or_none() is not None

    def complete(self, hold: Hold, answer: Answer) -> None:
        """Keep the answer, in the transaction that commits what it tells of.

        Raises `Conflict` ``idempotency_in_flight`` when another has taken the key: that one's effect is the one that
        counts, and this transaction must not commit.
        """
        completed = self._session.execute(
            update(IdempotencyKey)
            .where(*self._fence(hold))
            .values(
                status_code=answer.status_code,
                headers=dict(answer.headers),
                body=answer.body,
                free_at=now_plus(KEPT),
            )
            .returning(IdempotencyKey.key)
            .execution_options(synchronize_session=False)
        )
        if completed.one_or_none() is None:
            raise _in_flight()

    def release(self, hold: Hold) -> None:
        """Free the key of a request that failed. What was answered, or taken by another, is left as it is."""
        self._session.execute(
            delete(IdempotencyKey).where(*self._fence(hold)).execution_options(synchronize_session=False)
        )

    def remove_expired(self) -> int:
        """Remove the keys that are free; returns how many."""
        removed: CursorResult[Any] = self._session.execute(  # type: ignore[assignment]
            delete(IdempotencyKey)
            .where(IdempotencyKey.free_at <= now_utc())
            .execution_options(synchronize_session=False)
        )
        return removed.rowcount

    def _take(self, request: KeyedRequest, token: str, lock: timedelta) -> bool:
        insert = postgresql.insert if self._session.get_bind().dialect.name == "postgresql" else sqlite.insert
        taken = {
            "digest": request.digest,
            "token": token,
            "free_at": now_plus(lock),
            "status_code": None,
            "headers": None,
            "body": None,
        }
        statement = (
            insert(IdempotencyKey)
            .values(tenant=request.tenant, key=request.key, **taken)
            .on_conflict_do_update(
                index_elements=[IdempotencyKey.tenant, IdempotencyKey.key],
                set_=taken,
                where=IdempotencyKey.free_at <= now_utc(),
            )
            .returning(IdempotencyKey.key)
        )
        return self._session.execute(statement).one_or_none() is not None

    @staticmethod
    def _fence(hold: Hold) -> tuple[ColumnElement[bool], ...]:
        return (
            IdempotencyKey.tenant == hold.tenant,
            IdempotencyKey.key == hold.key,
            IdempotencyKey.token == hold.token,
            IdempotencyKey.status_code.is_(None),
        )


def _in_flight() -> Conflict:
    return Conflict(
        "idempotency_in_flight", "A request with this Idempotency-Key is at work.", retry_after_s=RETRY_AFTER_S
    )
