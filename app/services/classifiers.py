"""Classifiers: making zero-shot ones, finding any, and saying what the predictor needs to answer with one."""

from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.aliases import AliasStore
from app.classifiers.messages import ClassifierView, NewClassifier
from app.classifiers.names import is_alias
from app.classifiers.store import ClassifierStore
from app.database import read_only
from app.exceptions import Conflict, NotFound
from app.idempotency.recorder import Recorder, unrecorded
from app.ids import is_id, new_id
from app.inference.catalog import ModelCatalog
from app.inference.classes import ClassList, class_list_from_rows, class_list_to_rows
from app.inference.predictor import BundleSource, Predictor, Source, ZeroShotSource
from app.services.cursors import require_cursor


class ClassifierService:
    """What the product does with classifiers."""

    def __init__(self, *, sessions: sessionmaker[Session], predictor: Predictor, catalog: ModelCatalog) -> None:
        self._sessions = sessions
        self._predictor = predictor
        self._catalog = catalog

    def create_zero_shot(
        self,
        classes: ClassList,
        *,
        base_model: str | None,
        name: str | None,
        record: Recorder[ClassifierView] = unrecorded,
    ) -> ClassifierView:
        """Make a classifier from text; it is ready when this returns. Raises `InvalidInput` and `Unavailable`."""
        source = self.zero_shot_source(classes, base_model=base_model)
        self._predictor.load(source)
        rows = class_list_to_rows(classes)
        new = NewClassifier(
            id=new_id("clf"),
            name=name,
            base_model=source.base_model,
            classes=rows.classes,
            templates=rows.templates,
        )
        with self._sessions.begin() as session:
            store = ClassifierStore(session)
            store.add_zero_shot(new)
            classifier = _found(store.get(new.id))
            record(session, classifier)
        return classifier

    def get(self, classifier_id: str) -> ClassifierView:
        """The classifier of an id; raises `NotFound`."""
        if not is_id("clf", classifier_id):
            raise NotFound
        with read_only(self._sessions) as session:
            return _found(ClassifierStore(session).get(classifier_id))

    def resolve(self, reference: str, *, tenant: str) -> ClassifierView:
        """The classifier of an id or of a tenant's alias; raises `NotFound`."""
        if is_id("clf", reference):
            return self.get(reference)
        if not is_alias(reference):
            raise NotFound
        with read_only(self._sessions) as session:
            alias = AliasStore(session, tenant).get(reference)
            return _found(None if alias is None else ClassifierStore(session).get(alias.classifier_id))

    def delete(self, classifier_id: str) -> None:
        """Remove a classifier; its files go with the next collection of garbage.

        Raises `NotFound`, and `Conflict` ``resource_in_use`` while an alias or a job answers with it.
        """
        if not is_id("clf", classifier_id):
            raise NotFound
        try:
            with self._sessions.begin() as session:
                ClassifierStore(session).delete(classifier_id)
        except IntegrityError as e:
            raise Conflict("resource_in_use", "An alias or a job answers with the classifier.") from e

    def list(self, *, limit: int, after: str | None) -> Sequence[ClassifierView]:
        """A page of classifiers, newest first; raises `MalformedRequest` ``invalid_cursor``."""
        require_cursor("clf", after)
        with read_only(self._sessions) as session:
            return ClassifierStore(session).list(limit=limit, after=after)

    def zero_shot_source(self, classes: ClassList, *, base_model: str | None) -> ZeroShotSource:
        """What answers for a class list of the moment; raises `InvalidInput` for lists that break a rule."""
        source = ZeroShotSource(self._catalog.get(base_model).name, classes.classes, classes.templates)
        self._predictor.check(source)
        return source

    @staticmethod
    def source_of(classifier: ClassifierView) -> Source:
        """What answers for a stored classifier."""
        if classifier.files:
            return BundleSource(classifier.version, tuple(sorted(classifier.files.items())))
        return ClassifierService.zero_shot_of(classifier)

    @staticmethod
    def zero_shot_of(classifier: ClassifierView) -> ZeroShotSource:
        """The unadapted classifier of the same base model and classes."""
        classes = class_list_from_rows(classifier.classes, classifier.templates)
        return ZeroShotSource(classifier.base_model, classes.classes, classes.templates)


def _found(classifier: ClassifierView | None) -> ClassifierView:
    if classifier is None:
        raise NotFound
    return classifier
