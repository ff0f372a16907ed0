"""Rows of aliases, on both databases."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.aliases import AliasStore
from app.classifiers.messages import AliasView
from app.classifiers.store import ClassifierStore
from app.exceptions import Conflict, NotFound
from app.ids import new_id
from tests.support.classifiers import add_classifier
from tests.support.databases import waits_for_a_lock
from tests.support.workers import wait_for

Sessions = sessionmaker[Session]


def move(sessions: Sessions, classifier_id: str, *, name: str = "live", since: AliasView | None = None) -> AliasView:
    with sessions.begin() as session:
        AliasStore(session, "t").move(name, classifier_id, since=since)
    return get(sessions, name)


def get(sessions: Sessions, name: str = "live") -> AliasView:
    with sessions.begin() as session:
        found = AliasStore(session, "t").get(name)
    assert found is not None
    return found


def history(sessions: Sessions, name: str = "live") -> list[str]:
    with sessions.begin() as session:
        return [move.classifier_id for move in AliasStore(session, "t").moves(name, limit=20)]


def delete(sessions: Sessions, name: str = "live") -> None:
    with sessions.begin() as session:
        AliasStore(session, "t").delete(name)


def test_moves_are_counted_and_kept(sessions: Sessions) -> None:
    a, b = add_classifier(sessions), add_classifier(sessions)
    assert move(sessions, a).num_moves == 1
    assert move(sessions, a).num_moves == 1, "nothing moved"
    move(sessions, b)
    moved = move(sessions, a)
    assert (moved.name, moved.classifier_id, moved.num_moves) == ("live", a, 3)
    assert history(sessions) == [a, b, a]
    with sessions.begin() as session:
        store = AliasStore(session, "t")
        latest, before = store.moves("live", limit=2)
        assert latest.moved_at == moved.moved_at >= before.moved_at
        other = AliasStore(session, "other")
        assert (other.get("live"), other.moves("live", limit=2), other.list(limit=2)) == (None, [], [])
    delete(sessions)
    assert history(sessions) == []
    with pytest.raises(NotFound):
        delete(sessions)
    assert move(sessions, b).num_moves == 1


def test_names_are_listed_in_order(sessions: Sessions) -> None:
    a = add_classifier(sessions)
    for name in ("c", "a", "b"):
        move(sessions, a, name=name)
    with sessions.begin() as session:
        store = AliasStore(session, "t")
        assert [view.name for view in store.list(limit=2)] == ["a", "b"]
        assert [view.name for view in store.list(limit=2, after="b")] == ["c"]


def test_a_missing_classifier_gets_no_name(sessions: Sessions) -> None:
    a = add_classifier(sessions)
    with pytest.raises(NotFound):
        move(sessions, new_id("clf"))
    move(sessions, a)
    with pytest.raises(NotFound):
        move(sessions, new_id("clf"))
    assert history(sessions) == [a]
    with pytest.raises(IntegrityError), sessions.begin() as session:
        ClassifierStore(session).delete(a)


@pytest.mark.parametrize("meanwhile", ["elsewhere", "there_and_back", "taken_away", "made_anew"])
def test_a_move_since_is_refused_when_another_was_first(sessions: Sessions, meanwhile: str) -> None:
    """The control of each is the move at the end."""
    a, b, c = (add_classifier(sessions) for _ in range(3))
    move(sessions, a)
    seen = move(sessions, b)
    if meanwhile in ("elsewhere", "there_and_back"):
        move(sessions, c)
    if meanwhile == "there_and_back":
        move(sessions, b)
    if meanwhile in ("taken_away", "made_anew"):
        delete(sessions)
    if meanwhile == "made_anew":
        move(sessions, c)
        assert move(sessions, b).num_moves == seen.num_moves
    left = history(sessions)
    with pytest.raises(Conflict) as refused:
        move(sessions, a, since=seen)
    assert refused.value.code == "alias_moved"
    assert history(sessions) == left
    if meanwhile != "taken_away":
        assert move(sessions, a, since=get(sessions)).classifier_id == a


@pytest.mark.parametrize("again", [True, False])
def test_two_make_a_name_at_once(
    engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """On PostgreSQL the second finds no name, waits for the first's, and tries again within its transaction. Without
    that, the control, it fails. SQLite has one writer at a time: the second begins when the first is done."""
    postgres = engine.dialect.name == "postgresql"
    if not (postgres or again):
        pytest.skip("there is nothing to try again")
    a, b = add_classifier(sessions), add_classifier(sessions)
    try_to_point = AliasStore._try_to_point
    refused = []

    def count(self: AliasStore, name: str, classifier_id: str, since: AliasView | None) -> object:
        try:
            return try_to_point(self, name, classifier_id, since)
        except IntegrityError:
            refused.append(classifier_id)
            if not again:
                raise TimeoutError("gave up") from None
            raise

    monkeypatch.setattr(AliasStore, "_try_to_point", count)
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as first:
            AliasStore(first, "t").move("live", a)
            second = pool.submit(move, sessions, b)
            if postgres:
                wait_for(lambda: waits_for_a_lock(engine), what="the second")
        if not again:
            with pytest.raises(TimeoutError, match="gave up"):
                second.result(timeout=60)
            assert history(sessions) == [a]
        else:
            assert second.result(timeout=60).num_moves == 2
            assert history(sessions) == [b, a]
    assert refused == ([b] if postgres else [])
