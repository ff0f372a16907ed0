"""Classifiers to test with: rows alone, which nothing can load."""

from sqlalchemy.orm import Session, sessionmaker

from app.classifiers.messages import NewClassifier
from app.classifiers.store import ClassifierStore
from app.ids import new_id


def add_classifier(sessions: sessionmaker[Session]) -> str:
    """Insert a zero-shot classifier; returns its id."""
    classes = [{"name": name, "prompts": []} for name in ("a", "b")]
    new = NewClassifier(id=new_id("clf"), name=None, base_model="tiny", classes=classes, templates=["{}"])
    with sessions.begin() as session:
        ClassifierStore(session).add_zero_shot(new)
    return new.id
