"""Creating requests with an Idempotency-Key: each happens once, and is answered alike however often it is sent.

The answer is recorded by the transaction that commits the effect. So a process that is killed before it leaves a lock
that runs out, and one that is killed after it has left the answer.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.idempotency.messages import Answer, Hold, KeyedRequest
from app.idempotency.recorder import Recorder
from app.idempotency.store import IdempotencyStore

_log = structlog.get_logger(__name__)

T = TypeVar("T")

LOCK = timedelta(seconds=15)
"""How long the key of a process that died is not free."""
RENEW_EVERY = timedelta(seconds=3)


class IdempotencyService:
    """Makes requests happen once. Safe to share between threads."""

    def __init__(
        self, *, sessions: sessionmaker[Session], lock: timedelta = LOCK, renew_every: timedelta = RENEW_EVERY
    ) -> None:
        self._sessions = sessions
        self._lock = lock
        self._renew_every_s = renew_every.total_seconds()

    def once(
        self, request: KeyedRequest, create: Callable[[Recorder[T]], object], shown: Callable[[T], Answer]
    ) -> Answer:
        """Do a request that was not done before, or give the answer that it got then.

        ``create`` gets the recorder that it is to call in its transaction; ``shown`` makes an answer of what that is
        told. Raises as `IdempotencyStore.claim`, `IdempotencyStore.complete` and ``create`` do; a request that fails
        leaves its key free.
        """
        with self._sessions.begin() as session:
            held = IdempotencyStore(session).claim(request, secrets.token_hex(16), self._lock)
        if isinstance(held, Answer):
            return held
        recorded: list[Answer] = []
        try:
            with self._renewing(held) as committing:

                def record(session: Session, created: T) -> None:
                    committing.set()
                    answer = shown(created)
                    IdempotencyStore(session).complete(held, answer)
                    recorded.append(answer)

                create(record)
        except BaseException:
            self._release(held)
            raise
        return recorded[-1]

    @contextmanager
    def _renewing(self, hold: Hold) -> Iterator[Event]:
        """Renew the lock until the block ends, or the event that it is given is set."""
        enough = Event()
        thread = Thread(target=self._renew, args=(hold, enough), name="idempotency-key", daemon=True)
        thread.start()
        try:
            yield enough
        finally:
            enough.set()
            thread.join()

    def _renew(self, hold: Hold, enough: Event) -> None:
        while not enough.wait(self._renew_every_s):
            try:
                with self._sessions.begin() as session:
                    is_held = IdempotencyStore(session).extend(hold, self._lock)
            except SQLAlchemyError as e:
                _log.warning("idempotency_key_not_renewed", error=str(e)[:300])
                continue
            if not is_held:
                if not enough.is_set():  # else it was answered meanwhile
                    _log.warning("idempotency_key_lost")
                return

    def _release(self, hold: Hold) -> None:
        try:
            with self._sessions.begin() as session:
                IdempotencyStore(session).release(hold)
        except SQLAlchemyError as e:  # the lock runs out by itself
            _log.warning("idempotency_key_not_released", error=str(e)[:300])
