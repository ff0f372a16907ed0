"""Aliases as the product moves them, on both databases; the predictor's part is played by the test."""

from collections.abc import Callable
from typing import cast

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.aliases import AliasStore
from app.classifiers.messages import AliasView
from app.exceptions import Conflict, MalformedRequest, NotFound
from app.inference.catalog import ModelCatalog
from app.inference.predictor import Predictor, Source
from app.services.aliases import AliasService
from app.services.classifiers import ClassifierService
from tests.support.classifiers import add_classifier
from tests.support.databases import database_url, engine, postgres_url, sessions, sqlite_template

__all__ = ["database_url", "engine", "postgres_url", "sessions", "sqlite_template"]

Sessions = sessionmaker[Session]
NO_NAMES = ("\0", "a\0", "Upper", "clf_01k0c9v2ytq4v3m5p6r7s8t9wa")


class Loading:
    """Stands in for a predictor: every classifier loads, and the test may do something meanwhile, once."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] | None = None

    def reload(self, source: Source) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


@pytest.fixture
def loading() -> Loading:
    return Loading()


@pytest.fixture
def classifiers(sessions: Sessions, loading: Loading) -> ClassifierService:
    catalog = ModelCatalog({"tiny": "tiny"}, default="tiny")
    return ClassifierService(sessions=sessions, predictor=cast("Predictor", loading), catalog=catalog)


@pytest.fixture
def aliases(sessions: Sessions, classifiers: ClassifierService, loading: Loading) -> AliasService:
    return AliasService(sessions=sessions, classifiers=classifiers, predictor=cast("Predictor", loading))


def uses_of(name: str, aliases: AliasService, classifiers: ClassifierService) -> list[Callable[[], object]]:
    return [
        lambda: aliases.get(name, tenant="t"),
        lambda: aliases.roll_back(name, tenant="t"),
        lambda: aliases.delete(name, tenant="t"),
        lambda: classifiers.resolve(name, tenant="t"),
    ]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_can_be_no_name_is_not_found(aliases: AliasService, classifiers: ClassifierService, name: str) -> None:
    for use in uses_of(name, aliases, classifiers):
        with pytest.raises(NotFound):
            use()
    with pytest.raises(MalformedRequest) as refused:
        aliases.list(limit=1, after=name, tenant="t")
    assert (refused.value.code, refused.value.param) == ("invalid_cursor", "after")


def test_postgresql_cannot_even_look_for_it(
    engine: Engine, aliases: AliasService, classifiers: ClassifierService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what is no name reaches the database."""
    if engine.dialect.name != "postgresql":
        pytest.skip("SQLite looks for any text")
    for module in ("aliases", "classifiers"):
        monkeypatch.setattr(f"app.services.{module}.is_alias", lambda _: True)
    uses = uses_of("\0", aliases, classifiers)
    for use in [*uses, lambda: aliases.list(limit=1, after="\0", tenant="t")]:
        with pytest.raises(DataError):
            use()


@pytest.mark.parametrize("guarded", [True, False])
def test_a_rollback_goes_back_by_the_move_that_it_saw(
    sessions: Sessions, aliases: AliasService, loading: Loading, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """A name that was moved there and back while the classifier was loaded is somebody else's by now. Without the
    guard, the control, it is taken back from them."""
    a, b, c = (add_classifier(sessions) for _ in range(3))
    for classifier_id in (a, b):
        aliases.move("live", classifier_id, tenant="t")
    loading.meanwhile = lambda: [aliases.move("live", each, tenant="t") for each in (c, b)]
    if guarded:
        with pytest.raises(Conflict) as refused:
            aliases.roll_back("live", tenant="t")
        assert refused.value.code == "alias_moved"
        assert aliases.roll_back("live", tenant="t").alias.classifier_id == c
        return
    move = AliasStore.move

    def move_anyway(self: AliasStore, name: str, classifier_id: str, *, since: AliasView | None = None) -> None:
        move(self, name, classifier_id)

    monkeypatch.setattr(AliasStore, "move", move_anyway)
    assert aliases.roll_back("live", tenant="t").alias.classifier_id == a


@pytest.mark.parametrize("after", ["moved", "deleted"])
def test_a_move_tells_what_it_left(sessions: Sessions, aliases: AliasService, loading: Loading, after: str) -> None:
    """Whatever others do right after its commit. A read at that time, the control, tells of them."""
    a, b = add_classifier(sessions), add_classifier(sessions)

    def move_or_delete() -> None:
        if after == "moved":
            aliases.move("live", b, tenant="t")
        else:
            aliases.delete("live", tenant="t")

    comes: list[Callable[[], None]] = []

    def another_comes(session: Session) -> None:
        if comes and not session.in_nested_transaction():  # the end of a savepoint is told of too
            comes.pop()()

    event.listen(sessions, "after_commit", another_comes)
    loading.meanwhile = lambda: comes.append(move_or_delete)  # the next commit is the move's
    told = aliases.move("live", a, tenant="t")
    assert not comes
    assert (told.alias.classifier_id, told.alias.num_moves) == (a, 1)
    assert [move.classifier_id for move in told.moves] == [a]
    if after == "moved":
        assert aliases.get("live", tenant="t").alias.classifier_id == b
    else:
        with pytest.raises(NotFound):
            aliases.get("live", tenant="t")
