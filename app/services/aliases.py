"""Aliases: names that answer with a classifier, moved in one step and only to what can answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.aliases import AliasStore
from app.classifiers.messages import AliasMoveView, AliasView
from app.classifiers.names import is_alias
from app.database import read_only
from app.exceptions import Conflict, NotFound
from app.idempotency.recorder import Recorder, unrecorded
from app.inference.predictor import Predictor
from app.services.classifiers import ClassifierService
from app.services.cursors import invalid_cursor

SHOWN_MOVES = 20


@dataclass(frozen=True, kw_only=True)
class AliasHistory:
    """An alias and where it was pointed lately, newest first."""

    alias: AliasView
    moves: Sequence[AliasMoveView]


class AliasService:
    """What the product does with aliases."""

    def __init__(
        self, *, sessions: sessionmaker[Session], classifiers: ClassifierService, predictor: Predictor
    ) -> None:
        self._sessions = sessions
        self._classifiers = classifiers
        self._predictor = predictor

    def move(self, name: str, classifier_id: str, *, tenant: str) -> AliasHistory:
        """Point a name at a classifier, from the next request on.

        The classifier is loaded first, from stored files that are verified anew: one that cannot answer raises
        `Unavailable`, and the name stays where it is. Raises `NotFound` when there is no such classifier.
        """
        self._make_ready(classifier_id)
        with self._sessions.begin() as session:
            store = AliasStore(session, tenant)
            store.move(name, classifier_id)
            return _history(store, name)

    def roll_back(self, name: str, *, tenant: str, record: Recorder[AliasHistory] = unrecorded) -> AliasHistory:
        """Point a name at what it pointed at before its latest move. That is a move too: twice leads back.

        Raises `NotFound`, `Unavailable` as `move` does, and `Conflict`: there is nothing to go back to, or the name was
        moved meanwhile.
        """
        history = self.get(name, tenant=tenant)
        if len(history.moves) < 2:
            raise Conflict("nothing_to_roll_back", "The alias has never pointed anywhere else.")
        target = history.moves[1].classifier_id
        try:
            self._make_ready(target)
        except NotFound as e:
            raise Conflict("nothing_to_roll_back", "The classifier that it pointed at before was deleted.") from e
        with self._sessions.begin() as session:
            store = AliasStore(session, tenant)
            store.move(name, target, since=history.alias)
            done = _history(store, name)
            record(session, done)
        return done

    def get(self, name: str, *, tenant: str) -> AliasHistory:
        """An alias; raises `NotFound`."""
        _require_name(name)
        with read_only(self._sessions) as session:
            return _history(AliasStore(session, tenant), name)

    def list(self, *, limit: int, after: str | None, tenant: str) -> Sequence[AliasView]:
        """A page of aliases, by name; raises `MalformedRequest` ``invalid_cursor``."""
        if after is not None and not is_alias(after):
            raise invalid_cursor()
        with read_only(self._sessions) as session:
            return AliasStore(session, tenant).list(limit=limit, after=after)

    def delete(self, name: str, *, tenant: str) -> None:
        """Take a name away; the classifier stays. Raises `NotFound`."""
        _require_name(name)
        with self._sessions.begin() as session:
            AliasStore(session, tenant).delete(name)

    def _make_ready(self, classifier_id: str) -> None:
        self._predictor.reload(self._classifiers.source_of(self._classifiers.get(classifier_id)))


def _require_name(name: str) -> None:
    if not is_alias(name):
        raise NotFound


def _history(store: AliasStore, name: str) -> AliasHistory:
    alias = store.get(name)
    if alias is None:
        raise NotFound
    return AliasHistory(alias=alias, moves=store.moves(name, limit=SHOWN_MOVES))
