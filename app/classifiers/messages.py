"""Classifiers between the layers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ClassifierView:
    """Everything that is told about a classifier; ``files`` are bundle file name -> sha256, empty for zero-shot."""

    id: str
    name: str | None
    kind: str
    base_model: str
    classes: list[Any]
    templates: list[str]
    job_id: str | None
    files: Mapping[str, str]
    version: str
    metrics: Mapping[str, float]
    unknown_below: float | None
    """Images whose raw score is lower are unknown to it; None when nobody can say."""
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class AliasView:
    """A name and the classifier that it answers with."""

    name: str
    classifier_id: str
    num_moves: int
    """Times it was pointed somewhere, the first time too."""
    moved_at: datetime
    """The latest of them."""


@dataclass(frozen=True, kw_only=True)
class AliasMoveView:
    """Where an alias was pointed, and when."""

    classifier_id: str
    moved_at: datetime


@dataclass(frozen=True, kw_only=True)
class NewClassifier:
    """A zero-shot classifier to be stored."""

    id: str
    name: str | None
    base_model: str
    classes: list[Any]
    templates: list[str]
    job_id: str | None = None
    """The job that publishes it; None when a user makes it."""
    unknown_below: float | None = None

    @property
    def version(self) -> str:
        """Digest of what decides its answers."""
        decisive: dict[str, Any] = {"base_model": self.base_model, "classes": self.classes, "templates": self.templates}
        if self.unknown_below is not None:
            decisive["unknown_below"] = self.unknown_below
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def bundle_version(files: Mapping[str, str]) -> str:
    """Digest of a bundle: sha256 over the JSON of its sorted file names and their sha256."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True, separators=(",", ":")).encode()).hexdigest()
